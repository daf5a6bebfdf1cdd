"""Datagrams (RFC 768)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from atoll.network.wire.checksum import checksum, ones_sum
from atoll.network.wire.ip import UDP, pseudo_sum

__all__ = ["HEADER", "Datagram", "header", "parse"]

_LAYOUT: Final = struct.Struct(">HHHH")

#: Bytes of a header.
HEADER: Final = _LAYOUT.size


class Datagram(NamedTuple):
    """One datagram."""

    source_port: int
    destination_port: int
    payload: memoryview


def parse(payload: memoryview) -> Datagram | None:
    """The datagram in a packet's payload; None if its length does not fit."""
    if len(payload) < HEADER:
        return None
    source_port, destination_port, size, _ = _LAYOUT.unpack_from(payload)
    if not HEADER <= size <= len(payload):
        return None
    return Datagram(source_port, destination_port, payload[HEADER:size])


def header(
    source: bytes, destination: bytes, source_port: int, destination_port: int, payload: bytes | memoryview
) -> bytes:
    """What goes before ``payload``, at most 65,527 bytes, between these addresses."""
    size = HEADER + len(payload)
    total = pseudo_sum(source, destination, UDP, size) + source_port + destination_port + size
    return _LAYOUT.pack(source_port, destination_port, size, checksum(total + ones_sum(payload)))
