"""IPv4 and IPv6 headers (RFC 791, RFC 8200), and what the protocols above need of them."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from atoll.network.wire.checksum import checksum, ones_sum

__all__ = [
    "HOPS",
    "ICMP",
    "ICMP6",
    "PASSED_OVER",
    "TCP",
    "UDP",
    "Fragment",
    "Packet",
    "header",
    "parse",
    "pseudo_sum",
]

#: Protocol numbers (IANA); the same number is a next header of IPv6.
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMP6: Final = 58

_FRAGMENT: Final = 44
#: Extension headers that only routers and receivers need: hop-by-hop, routing, destination options.
PASSED_OVER: Final = frozenset({0, 43, 60})
_MOST_EXTENSIONS: Final = 8

HOPS: Final = 64

_HEAD4: Final = struct.Struct(">BBHHHBBH4s4s")
_HEAD6: Final = struct.Struct(">IHBB16s16s")

_MORE, _OFFSET = 0x2000, 0x1FFF


class Fragment(NamedTuple):
    """Where a fragment belongs: its packet's identification, byte offset, and whether others follow."""

    identification: int
    offset: int
    more: bool


class Packet(NamedTuple):
    """One packet of either version.

    Attributes:
        source: 4 or 16 bytes.
        destination: as long as ``source``.
        protocol: of its payload.
        hops: its time to live.
        payload: what follows the headers.
        whole: all of it, for an ICMP error about it.
        fragment: None for a whole packet.
    """

    source: bytes
    destination: bytes
    protocol: int
    hops: int
    payload: memoryview
    whole: memoryview
    fragment: Fragment | None = None


def parse(packet: memoryview) -> Packet | None:
    """A packet of either version; None if its lengths do not fit. Checksums are not looked at.

    The guest's card is memory of this host: what there could go wrong with bits goes wrong unseen by them.
    """
    if len(packet) < 20:
        return None
    return _parse_4(packet) if packet[0] >> 4 == 4 else _parse_6(packet) if packet[0] >> 4 == 6 else None


def _parse_4(packet: memoryview) -> Packet | None:
    first, _, total, identification, part, hops, protocol, _, source, destination = _HEAD4.unpack_from(packet)
    size = (first & 15) << 2
    if size < 20 or not size <= total <= len(packet):
        return None
    fragment = None
    if part & (_MORE | _OFFSET):
        fragment = Fragment(identification, (part & _OFFSET) << 3, bool(part & _MORE))
    return Packet(source, destination, protocol, hops, packet[size:total], packet[:total], fragment)


def _parse_6(packet: memoryview) -> Packet | None:
    if len(packet) < 40:
        return None
    _, size, following, hops, source, destination = _HEAD6.unpack_from(packet)
    if 40 + size > len(packet):
        return None
    whole, rest, fragment = packet[: 40 + size], packet[40 : 40 + size], None
    for _ in range(_MOST_EXTENSIONS):
        if following in PASSED_OVER and len(rest) >= 8 and len(rest) >= (rest[1] + 1) << 3:
            following, rest = rest[0], rest[(rest[1] + 1) << 3 :]
        elif following == _FRAGMENT and len(rest) >= 8 and fragment is None:
            part = rest[2] << 8 | rest[3]
            fragment = Fragment(int.from_bytes(rest[4:8]), part & 0xFFF8, bool(part & 1))
            following, rest = rest[0], rest[8:]
            if fragment.offset or fragment.more:
                break  # what follows is a part: it is read when it is whole
        else:
            break
    else:
        return None
    if fragment is not None and not fragment.offset and not fragment.more:
        fragment = None  # an atomic fragment is a whole packet (RFC 6946)
    return Packet(source, destination, following, hops, rest, whole, fragment)


def header(
    source: bytes,
    destination: bytes,
    protocol: int,
    size: int,
    *,
    hops: int = HOPS,
    fragment: Fragment | None = None,
) -> bytes:
    """The header of a packet with a payload of ``size`` bytes; of a fragment with what IPv6 adds for it."""
    if len(source) == 16:
        return _header_6(source, destination, protocol, size, hops, fragment)
    identification, part = 0, 0x4000
    if fragment is not None:
        identification = fragment.identification & 0xFFFF
        part = fragment.offset >> 3 | (_MORE if fragment.more else 0)
    fields = (0x45, 0, 20 + size, identification, part, hops, protocol)
    total = ones_sum(_HEAD4.pack(*fields, 0, source, destination))
    return _HEAD4.pack(*fields, checksum(total), source, destination)


def _header_6(
    source: bytes, destination: bytes, protocol: int, size: int, hops: int, fragment: Fragment | None
) -> bytes:
    if fragment is None:
        return _HEAD6.pack(6 << 28, size, protocol, hops, source, destination)
    part = fragment.offset | fragment.more
    extension = struct.pack(">BBHI", protocol, 0, part, fragment.identification)
    return _HEAD6.pack(6 << 28, size + 8, _FRAGMENT, hops, source, destination) + extension


def pseudo_sum(source: bytes, destination: bytes, protocol: int, size: int) -> int:
    """The sum of the pseudo header before a payload of ``size`` bytes (RFC 9293, 3.1; RFC 8200, 8.1)."""
    return ones_sum(source + destination) + protocol + (size >> 16) + (size & 0xFFFF)
