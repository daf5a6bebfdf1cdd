"""Which addresses a new network gets: those that are asked for, or the first that are free. Pure.

What is taken are the addresses of the other networks, and what this host has routes to or has itself: a guest
could not reach those any more.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from atoll.errors import NetworkError, UsageError

__all__ = [
    "AUTOMATIC",
    "LEAST_MTU",
    "Taken",
    "choose",
    "parse_addresses",
    "parse_routes",
    "parse_routes_6",
    "parse_subnet",
    "parse_subnet_6",
    "require_free",
]

Network = IPv4Network | IPv6Network

#: What networks get whose user names no addresses: the first of these that is free. Those of the engines of
#: containers, and of clusters, that guests have are others.
AUTOMATIC = (
    *(IPv4Network(f"10.{number}.0.0/24") for number in range(200, 240)),
    *(IPv4Network(f"192.168.{number}.0/24") for number in range(200, 240)),
)

#: Bytes of the packets that every network of IPv6 carries (RFC 8200, section 5).
LEAST_MTU = 1280

#: What no guest can have as its own (RFC 6890), by what it is.
_SPECIAL: tuple[tuple[Network, str], ...] = (
    (IPv4Network("0.0.0.0/8"), "this host itself"),
    (IPv4Network("127.0.0.0/8"), "the loopback"),
    (IPv4Network("169.254.0.0/16"), "what is on one link"),
    (IPv4Network("224.0.0.0/3"), "groups of hosts, or nobody"),
    (IPv6Network("::/8"), "the loopback, and IPv4"),
    (IPv6Network("fe80::/10"), "what is on one link"),
    (IPv6Network("ff00::/8"), "groups of hosts"),
)

#: A route's flag of being usable (include/uapi/linux/route.h).
_UP = 0x1

#: The interface whose routes lead nowhere else.
_LOOPBACK = "lo"

#: Bits of the shortest prefix that counts: a VPN has a default route in halves.
_DEFAULT = 8


class Taken(NamedTuple):
    """Addresses that are in use, and whose they are, in words."""

    network: Network
    whose: str


def parse_subnet(text: str) -> IPv4Network:
    """Addresses of a network. Raises ``UsageError``: ``usage.subnet``: they are none, too many or too few."""
    try:
        network = IPv4Network(text)
    except ValueError as error:
        hint = "write its first address and the length of its prefix, as 10.20.0.0/24"
        raise UsageError(f"{text!r} is no subnet: {error}", code="subnet", hint=hint) from error
    if not 8 <= network.prefixlen <= 27:  # the first machine has the 15th address
        raise UsageError(f"{text} has no fit size", code="subnet", hint="use a prefix of 8 to 27 bits")
    _require_ordinary(network)
    return network


def parse_subnet_6(text: str) -> IPv6Network:
    """A prefix of 64 bits. Raises as ``parse_subnet``."""
    try:
        network = IPv6Network(text)
    except ValueError as error:
        hint = "write a prefix of 64 bits, as fd12:3456:789a:1::/64"
        raise UsageError(f"{text!r} is no subnet of IPv6: {error}", code="subnet", hint=hint) from error
    if network.prefixlen != 64:  # guests make their addresses themselves (RFC 4862)
        raise UsageError(f"{text} has no fit size", code="subnet", hint="use a prefix of 64 bits")
    _require_ordinary(network)
    return network


def _require_ordinary(network: Network) -> None:
    for special, what in _SPECIAL:
        if special.version == network.version and network.overlaps(special):
            message = f"{network} cannot be a network's: {special} stands for {what}"
            raise UsageError(message, code="subnet", hint="use private addresses, as 10.20.0.0/24")


def require_free(wanted: Network, taken: Iterable[Taken]) -> None:
    """See that addresses are nobody else's. Raises ``NetworkError``: ``network.subnet``."""
    clash = _clash(wanted, taken)
    if clash is not None:
        message = f"{wanted} overlaps with {clash.network}: {clash.whose}"
        raise NetworkError(
            message, code="subnet", hint="choose other addresses, or leave the choice to Atoll"
        )


def choose(taken: Iterable[Taken]) -> IPv4Network:
    """The first of ``AUTOMATIC`` that is nobody else's. Raises ``NetworkError``: ``network.subnet``."""
    known = tuple(taken)
    for network in AUTOMATIC:
        if _clash(network, known) is None:
            return network
    message = f"all of {AUTOMATIC[0]} to {AUTOMATIC[-1]} are in use"
    raise NetworkError(message, code="subnet", hint="name one with --subnet, or remove a network")


def _clash(wanted: Network, taken: Iterable[Taken]) -> Taken | None:
    same = (each for each in taken if each.network.version == wanted.version)
    return next((each for each in same if each.network.overlaps(wanted)), None)


def parse_routes(table: str) -> Iterator[Taken]:
    """What the host has routes of IPv4 to, but for the default one (proc(5), ``/proc/net/route``)."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or words[0] == _LOOPBACK or not int(words[3], 16) & _UP:
            continue
        # Words of 32 bits in the order of an x86 or arm64 host.
        destination, mask = (struct.pack("<I", int(words[at], 16)) for at in (1, 7))
        length = int.from_bytes(mask).bit_count()
        if length >= _DEFAULT:
            network = IPv4Network((IPv4Address(destination), length), strict=False)
            yield Taken(network, f"this host has a route to it, by {words[0]}")


def parse_addresses(trie: str) -> Iterator[Taken]:
    """The host's own addresses of IPv4, without the loopback's (``/proc/net/fib_trie``)."""
    for found in re.finditer(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", trie):
        address = IPv4Address(found[1])
        if not address.is_loopback:
            yield Taken(IPv4Network(address), "this host has that address")


def parse_routes_6(table: str) -> Iterator[Taken]:
    """Likewise of IPv6, with the host's own addresses (``/proc/net/ipv6_route``)."""
    for line in table.splitlines():
        words = line.split()
        if len(words) < 10 or words[-1] == _LOOPBACK or int(words[1], 16) < _DEFAULT:
            continue
        network = IPv6Network((IPv6Address(bytes.fromhex(words[0])), int(words[1], 16)), strict=False)
        if not network.is_link_local and not network.is_multicast:
            yield Taken(network, f"this host has a route to it, by {words[-1]}")
