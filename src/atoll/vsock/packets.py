"""Packets of a virtio socket device (Virtio 1.2, 5.10.6)."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

__all__ = ["HEADER_SIZE", "HOST", "LARGEST", "STREAM", "Header", "Op", "Shut", "build", "parse"]

#: The host's CID (5.10.4).
HOST = 2

#: The type of stream sockets (5.10.6); datagrams and sequenced packets are not offered.
STREAM = 1

#: Largest payload that Linux sends in one packet (``VIRTIO_VSOCK_MAX_PKT_BUF_SIZE``), bytes.
LARGEST = 65_536

#: ``struct virtio_vsock_hdr``.
_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = _HEADER.size


class Op(IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shut(IntFlag):
    """What who sends SHUTDOWN will do no more."""

    RECEIVE = 1
    SEND = 2


class Header(NamedTuple):
    """The header of a packet; ``window`` is ``buf_alloc`` and ``taken`` is ``fwd_cnt``, both in bytes."""

    source_cid: int
    target_cid: int
    source_port: int
    target_port: int
    length: int
    kind: int
    op: int
    flags: int
    window: int
    taken: int


def parse(data: bytes | memoryview) -> Header:
    """The header that ``data`` begins with, which has ``HEADER_SIZE`` bytes at least."""
    return Header._make(_HEADER.unpack_from(data))


def build(header: Header) -> bytes:
    """The bytes of a header."""
    return _HEADER.pack(*header)
