"""The host's own settings of names: whom it asks, and what it knows itself (resolv.conf(5), hosts(5)).

Parsers only; ``hostfiles`` reads the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import msgspec

from atoll.network.dns.labels import is_hostname
from atoll.network.dns.message import Rcode, Type
from atoll.network.dns.names import Address, Found, address_of, addresses_of_type

__all__ = ["Hosts", "Resolvers", "Upstream", "parse_hosts", "parse_resolvers"]

#: Upstreams, domains and names that are taken at most.
_UPSTREAMS, _DOMAINS, _NAMES = 8, 32, 65_536

_PORT = 53


class Upstream(NamedTuple):
    """A name server: its address, with a scope (``fe80::1%eth0``) if need be, and its port."""

    address: str
    port: int = _PORT


class Resolvers(msgspec.Struct, frozen=True):
    """Whom the host asks, in this order, and the domains in which it looks for short names."""

    upstreams: tuple[Upstream, ...] = (Upstream("127.0.0.1"),)
    search: tuple[str, ...] = ()


class Hosts(msgspec.Struct, frozen=True):
    """Names that the host knows without asking.

    Loopback addresses are not among them: they mean the host there, and would mean the machine here.
    """

    names: dict[str, tuple[Address, ...]] = {}
    addresses: dict[Address, str] = {}

    def lookup(self, name: str, kind: int) -> Found | None:
        """What is known of a name in lower case; None if others have to be asked."""
        if kind == Type.PTR:
            address = address_of(name)
            called = self.addresses.get(address) if address is not None else None
            return None if called is None else Found(Rcode.NOERROR, (called,), name)
        addresses = self.names.get(name)
        if addresses is None or kind not in {Type.A, Type.AAAA, Type.ANY}:
            return None
        return Found(Rcode.NOERROR, addresses_of_type(addresses, kind), name)


def parse_resolvers(text: str) -> Resolvers:
    """Read resolv.conf; what is malformed is passed over. Without a name server it is the host itself."""
    upstreams: list[Upstream] = []
    search: list[str] = []
    for words in _lines(text, "#;"):
        if words[0] == "nameserver" and len(words) > 1 and (address := _address(words[1])) is not None:
            upstreams.append(Upstream(str(address)))
        elif words[0] in {"search", "domain"}:
            domains = (word.lower().removesuffix(".") for word in words[1:])
            search = [domain for domain in domains if is_hostname(domain)]
    found = tuple(dict.fromkeys(upstreams))[:_UPSTREAMS]
    return Resolvers(found or Resolvers().upstreams, tuple(search[:_DOMAINS]))


def parse_hosts(text: str) -> Hosts:
    """Read hosts; what is malformed is passed over, and what exceeds 65,536 names."""
    names: dict[str, tuple[Address, ...]] = {}
    addresses: dict[Address, str] = {}
    for words in _lines(text, "#"):
        address = _address(words[0])
        if address is None or address.is_loopback or address.is_multicast or address.is_link_local:
            continue
        for word in words[1:]:
            name = word.lower().removesuffix(".")
            if not is_hostname(name) or (name not in names and len(names) >= _NAMES):
                continue
            known = names.get(name, ())
            names[name] = known if address in known else (*known, address)
            addresses.setdefault(address, name)
    return Hosts(names, addresses)


def _lines(text: str, comments: str) -> Iterator[list[str]]:
    """The words of each line that has some."""
    for line in text.splitlines():
        content = line
        for comment in comments:
            content = content.partition(comment)[0]
        if words := content.split():
            yield words


def _address(word: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(word)
    except ValueError:
        return None
