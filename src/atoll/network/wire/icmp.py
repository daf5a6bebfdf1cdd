"""Control messages of IPv4 and IPv6 (RFC 792, RFC 4443): echoes, and why a packet did not arrive."""

from __future__ import annotations

from enum import Enum
from typing import Final

from atoll.network.wire import ip
from atoll.network.wire.checksum import checksum, ones_sum

__all__ = ["Reason", "echo_reply", "echo_reply_kind", "error", "is_echo", "message"]

_ECHO_4, _ECHO_REPLY_4 = 8, 0
_ECHO_6, _ECHO_REPLY_6 = 128, 129

#: Bytes of the packet in question that an error repeats: all errors fit the least MTU (RFC 1812, 4.3.2.3).
_QUOTED_4: Final = 576 - 20 - 8
_QUOTED_6: Final = 1280 - 40 - 8


class Reason(Enum):
    """Why a packet did not arrive: type and code of IPv4, type and code of IPv6."""

    NO_ROUTE = (3, 0, 1, 0)
    NO_HOST = (3, 1, 1, 3)
    NO_PORT = (3, 3, 1, 4)
    PROHIBITED = (3, 13, 1, 1)
    NO_PROTOCOL = (3, 2, 4, 1)
    TOO_FAR = (11, 0, 3, 0)


def message(source: bytes, destination: bytes, kind: int, code: int, rest: bytes) -> bytes:
    """A message with its checksum; ``rest`` is what follows it, for IPv6 between these addresses."""
    total = (kind << 8 | code) + ones_sum(rest)
    if len(source) == 16:
        total += ip.pseudo_sum(source, destination, ip.ICMP6, 4 + len(rest))
    return bytes((kind, code)) + checksum(total).to_bytes(2) + rest


def is_echo(packet: ip.Packet) -> bool:
    """Whether ``packet`` holds an echo request."""
    kind = _ECHO_6 if len(packet.source) == 16 else _ECHO_4
    return len(packet.payload) >= 8 and packet.payload[0] == kind and not packet.payload[1]


def echo_reply_kind(address: bytes) -> int:
    """The type of an echo reply between addresses of this version."""
    return _ECHO_REPLY_6 if len(address) == 16 else _ECHO_REPLY_4


def echo_reply(packet: ip.Packet) -> bytes:
    """The message that answers the echo request in ``packet``."""
    kind = echo_reply_kind(packet.source)
    return message(packet.destination, packet.source, kind, 0, bytes(packet.payload[4:]))


def error(source: bytes, packet: ip.Packet, reason: Reason) -> bytes:
    """The message, from ``source``, that ``packet`` did not arrive."""
    kind_4, code_4, kind_6, code_6 = reason.value
    if len(source) == 16:
        rest = bytes(4) + bytes(packet.whole[:_QUOTED_6])
        return message(source, packet.source, kind_6, code_6, rest)
    return message(source, packet.source, kind_4, code_4, bytes(4) + bytes(packet.whole[:_QUOTED_4]))
