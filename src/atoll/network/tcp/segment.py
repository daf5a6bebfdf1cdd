"""TCP segments as they go over the wire (RFC 9293, section 3.1), below IPv4 and IPv6.

Headers are made from a template for each flow: all that stays the same is packed once, and so are the sums of
it. That a frame's header, with the length that QEMU wants before it, is one ``pack`` is a third of the path's
speed at large frames, and two thirds at small ones.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from atoll.network.wire import ethernet
from atoll.network.wire.checksum import ones_sum

__all__ = [
    "ACK",
    "FIN",
    "HEADER",
    "MODULUS",
    "PSH",
    "RST",
    "SYN",
    "Options",
    "Template",
    "parse_options",
    "syn_options",
]

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

#: Bytes of a header without options.
HEADER: Final = 20

#: Sequence numbers are modulo this (RFC 9293, section 3.4).
MODULUS: Final = 1 << 32

_PROTOCOL = 6
_HOPS = 64

_END, _NOTHING, _MSS, _SCALE = 0, 1, 2, 3

#: Length, Ethernet and the first two bytes of IPv4, its total length, id to protocol, checksum, addresses,
#: ports, then TCP from its sequence number on.
_HEAD4 = struct.Struct(">I16sH6sH12sIIHHHH")
#: The same over IPv6: its first four bytes, payload length, next header and hop limit, addresses and ports.
_HEAD6 = struct.Struct(">I18sH2s36sIIHHHH")


class Options(NamedTuple):
    """What a SYN may tell: the largest payload of a segment in bytes, and the shift of windows, if any."""

    mss: int | None = None
    shift: int | None = None


def parse_options(options: memoryview) -> Options:
    """What is understood of a SYN's options (RFC 9293, 3.1; RFC 7323); what is malformed ends the reading."""
    mss = shift = None
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NOTHING:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break
        if options[at] == _MSS and size == 4:
            mss = options[at + 2] << 8 | options[at + 3]
        elif options[at] == _SCALE and size == 3:
            shift = min(options[at + 2], 14)  # RFC 7323, section 2.3
        at += size
    return Options(mss, shift)


def syn_options(mss: int, shift: int | None) -> bytes:
    """The options of a SYN that offers these; without ``shift`` windows are not scaled."""
    offer = struct.pack(">BBH", _MSS, 4, mss)
    return offer if shift is None else offer + struct.pack(">BBBB", _NOTHING, _SCALE, 3, shift)


class Template:
    """Makes the headers of one flow, from this network to the guest.

    Args:
        ethernet_header: 14 bytes, with the EtherType of the addresses' version.
        source: 4 or 16 bytes, the address that the guest sees.
        destination: 4 or 16 bytes, the guest's.
        source_port: with ``source``.
        destination_port: with ``destination``.
    """

    __slots__ = ("_ends", "_ip_sum", "_is_6", "_prefix", "_sum")

    def __init__(
        self,
        ethernet_header: bytes,
        source: bytes,
        destination: bytes,
        source_port: int,
        destination_port: int,
    ) -> None:
        ports = source_port.to_bytes(2) + destination_port.to_bytes(2)
        self._ends = source + destination + ports
        self._is_6 = len(source) == 16
        # A pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1) and the ports, without the length.
        self._sum = ones_sum(self._ends) + _PROTOCOL
        self._ip_sum = 0x4500 + 0x4000 + (_HOPS << 8 | _PROTOCOL) + ones_sum(source + destination)
        self._prefix = ethernet_header + (b"\x60\x00\x00\x00" if self._is_6 else b"\x45\x00")

    def head(
        self,
        sequence: int,
        acknowledged: int,
        flags: int,
        window: int,
        *,
        size: int = 0,
        total: int = 0,
        options: bytes = b"",
    ) -> bytes:
        """A frame's bytes up to its payload, with the length before it.

        Args:
            sequence: of the first byte of the payload.
            acknowledged: next byte that is expected; 0 unless ``ACK`` is in ``flags``.
            flags: of ``FIN`` to ``ACK``.
            window: as it is written down: scaled already.
            size: bytes of the payload.
            total: ``ones_sum`` of the payload.
            options: a multiple of four bytes.
        """
        header = HEADER + len(options)
        segment = header + size
        offset_flags = header << 10 | flags
        total += (
            self._sum
            + segment
            + (sequence >> 16)
            + (sequence & 0xFFFF)
            + (acknowledged >> 16)
            + (acknowledged & 0xFFFF)
            + offset_flags
            + window
        )
        if options:
            total += ones_sum(options)
        rest = (sequence, acknowledged, offset_flags, window, 65535 - total % 65535, 0)
        if self._is_6:
            length = ethernet.HEADER + 40 + segment
            return _HEAD6.pack(length, self._prefix, segment, b"\x06\x40", self._ends, *rest) + options
        all_of_it = 20 + segment
        return (
            _HEAD4.pack(
                ethernet.HEADER + all_of_it,
                self._prefix,
                all_of_it,
                b"\x00\x00\x40\x00\x40\x06",
                65535 - (self._ip_sum + all_of_it) % 65535,
                self._ends,
                *rest,
            )
            + options
        )
