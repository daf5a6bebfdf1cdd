"""The server name in a TLS client's first message (RFC 8446, section 4.1.2; RFC 6066, section 3).

With Encrypted Client Hello (RFC 9849) that is the outer name: of who takes the connection for many servers,
and to whom the inner name cannot be told from here.
"""

from __future__ import annotations

from typing import Final

from atoll.network.dns.labels import is_hostname

__all__ = ["read_server_name"]

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0

#: Bytes of a record's header, of the longest record (RFC 8446, section 5.1), of a handshake message's header.
_RECORD: Final = 5
_LONGEST: Final = 1 << 14
_MESSAGE: Final = 4

#: Bytes of a message before the session id: version and random.
_FIXED: Final = 2 + 32


def read_server_name(data: bytes) -> str | int | None:
    """What a connection's first bytes say.

    Args:
        data: from the first byte on, as many as there are.

    Returns:
        The name, lower case; None if there is none or this is no such message; or how many bytes there must
        be at least before it makes sense to ask again.
    """
    message = bytearray()
    at = 0
    needed = _MESSAGE
    while len(message) < needed:
        head = data[at : at + _RECORD]
        size = int.from_bytes(head[3:5])
        if head[:2] != bytes((_HANDSHAKE, 3))[: len(head)] or (
            len(head) == _RECORD and not 0 < size <= _LONGEST
        ):
            return None
        if len(head) < _RECORD:
            return at + _RECORD
        message += data[at + _RECORD : at + _RECORD + size]
        if message and message[0] != _CLIENT_HELLO:
            return None
        if len(message) >= _MESSAGE:
            needed = _MESSAGE + int.from_bytes(message[1:4])
        at += _RECORD + size
        if at > len(data) and len(message) < needed:
            return at
    return _server_name(bytes(message[_MESSAGE:needed]))


def _server_name(hello: bytes) -> str | None:
    """The name in a whole message without its header."""
    at = _FIXED
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        at += width + int.from_bytes(hello[at : at + width])
    extensions = _vector(hello[at:], 2)
    if extensions is None or len(extensions) + 2 != len(hello) - at:
        return None
    found: bytes | None = None
    while extensions:
        body = _vector(extensions[2:], 2)
        if body is None:
            return None
        if int.from_bytes(extensions[:2]) == _SERVER_NAME:
            if found is not None:
                return None  # there is one of a kind at most (RFC 8446, section 4.2)
            found = body
        extensions = extensions[4 + len(body) :]
    return None if found is None else _host_name(found)


def _host_name(extension: bytes) -> str | None:
    """The one name in the extension; others than of hosts were never defined."""
    names = _vector(extension, 2)
    if names is None or len(names) + 2 != len(extension) or names[:1] != bytes((_HOST_NAME,)):
        return None
    name = _vector(names[1:], 2)
    if name is None or len(name) + 3 != len(names) or not name.isascii():
        return None
    host = name.decode("ascii").lower()
    return host if is_hostname(host) else None


def _vector(data: bytes, width: int) -> bytes | None:
    """What follows its length, of ``width`` bytes; None if it is not whole."""
    size = int.from_bytes(data[:width])
    return data[width : width + size] if len(data) >= width + size else None
