"""The host that a client's first request of HTTP/1 names (RFC 9112, sections 3.2 and 3.3).

Where servers differ about which host is meant, none is: two fields, folded lines, blanks before a colon.
Later requests of the same connection are not read.
"""

from __future__ import annotations

import re
from typing import Final

from atoll.network.dns.labels import is_hostname

__all__ = ["read_host"]

#: A request line: a method (RFC 9110, section 5.6.2), a target, a version.
_REQUEST: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} ([!-~]+) HTTP/1\.[0-9]")
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?: |\Z)")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(?:[/?#].*)?", re.IGNORECASE)
_END: Final = re.compile(rb"\n\r?\n")
_PORT: Final = re.compile(rb":[0-9]{0,5}\Z")


def read_host(data: bytes) -> str | int | None:
    """What a connection's first bytes say; see ``tls.read_server_name``."""
    if not _METHOD.match(data[:33]):
        return None
    line, is_whole, _ = data.partition(b"\n")
    request = _REQUEST.fullmatch(line.removesuffix(b"\r"))
    if is_whole and request is None:
        return None
    end = _END.search(data)
    if request is None or end is None:
        return len(data) + 1
    lines = [line.removesuffix(b"\r") for line in data[: end.start()].split(b"\n")]
    if any(b"\r" in line or b"\0" in line for line in lines):
        return None
    return _host(request[1], lines[1:])


def _host(target: bytes, fields: list[bytes]) -> str | None:
    hosts = []
    for line in fields:
        name, colon, value = line.partition(b":")
        if line[:1] in {b" ", b"\t"} or not colon or name != name.strip():
            return None
        if name.lower() == b"host":
            hosts.append(value.strip(b" \t"))
    absolute = _ABSOLUTE.fullmatch(target)
    if len(hosts) != 1 or (absolute is None and target[:1] not in {b"/", b"*"}):
        return None
    names = {_name(host) for host in (hosts if absolute is None else [*hosts, absolute[1]])}
    return names.pop() if len(names) == 1 else None


def _name(host: bytes) -> str | None:
    """A host without its port; None if it is an address or no name."""
    name = _PORT.sub(b"", host).removesuffix(b".").lower()
    if not name.isascii() or not is_hostname(name.decode("ascii")) or re.fullmatch(rb"[0-9.]+", name):
        return None
    return name.decode("ascii")
