"""Proxies of this host as they are in a guest. Pure.

The variables are those that curl(1) and most programs read, in small and in capital letters.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

__all__ = ["Proxies", "inside", "redacted"]

_KINDS: Final = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
_NO: Final = "no_proxy"

#: Ports of proxies whose address names none, by the scheme.
_PORTS: Final = {"http": 80, "https": 443, "socks": 1080, "socks4": 1080, "socks4a": 1080, "socks5": 1080}
_PORTS_MORE: Final = {"socks5h": 1080, "": 1080}

_URL: Final = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<user>[^/@]*@)?(?P<host>\[[^]/]*\]|[^/:?#]+)"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<rest>/?)",
    re.IGNORECASE,
)

#: What no proxy is asked for, whoever says otherwise: the guest itself.
_ITSELF: Final = ("localhost", "127.0.0.1", "::1")


class Proxies(NamedTuple):
    """Proxies as a guest has them.

    Attributes:
        variables: of the environment.
        ports: of this host's loopback, where some of them listen.
        unreachable: what was left out, since a guest cannot reach it: each without its password.
    """

    variables: dict[str, str]
    ports: tuple[int, ...]
    unreachable: tuple[str, ...]


def inside(environment: Mapping[str, str], *, host: str, network: str, domain: str) -> Proxies:
    """What a guest gets of the proxies that ``environment`` names.

    Args:
        environment: this host's variables. A variable in small letters wins.
        host: what this host is called in the guest.
        network: prefix of the guest's own network; nobody asks a proxy for what is there.
        domain: of the names there.
    """
    found: dict[str, str] = {}
    ports: dict[int, None] = {}
    unreachable: dict[str, None] = {}
    for kind in _KINDS:
        given = (environment.get(kind) or environment.get(kind.upper()) or "").strip()
        if not given or not given.isprintable():
            continue
        moved = _moved(given, host)
        if moved is None:
            unreachable[redacted(given)] = None
            continue
        found[kind], port = moved
        if port:
            ports[port] = None
    if not found:
        return Proxies({}, (), tuple(unreachable))
    given = environment.get(_NO) or environment.get(_NO.upper()) or ""
    without = [word for word in re.split(r"[\s,]+", given) if word and word.isprintable()]
    found[_NO] = ",".join(dict.fromkeys((*without, *_ITSELF, domain, f".{domain}", network)))
    both = {name: value for kind, value in found.items() for name in (kind, kind.upper())}
    return Proxies(both, tuple(ports), tuple(unreachable))


def _moved(url: str, host: str) -> tuple[str, int] | None:
    """A proxy's address in the guest, and its port if it is this host's loopback's; None if out of reach."""
    read = _URL.fullmatch(url)
    if read is None:
        return None
    name = read["host"].strip("[]").lower()
    if not _is_loopback(name):
        return url, 0
    if name not in {"localhost", "127.0.0.1", "::1"}:
        return None  # a port of 127.0.0.1 is what a guest can be given
    scheme = (read["scheme"] or "").lower()
    port = int(read["port"]) if read["port"] else _PORTS.get(scheme, _PORTS_MORE.get(scheme, 0))
    if not 0 < port < 65_536:
        return None
    before = f"{read['scheme']}://" if read["scheme"] else ""
    return f"{before}{read['user'] or ''}{host}:{port}{read['rest']}", port


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def redacted(url: str) -> str:
    """An address without the user and the password in it."""
    return re.sub(r"^([a-z][a-z0-9+.-]*://)?.*@", r"\1***@", unquote(url), flags=re.IGNORECASE | re.DOTALL)
