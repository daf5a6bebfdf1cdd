"""Captured frames as Wireshark reads them: the blocks of a pcapng file (draft-ietf-opsawg-pcapng).

A file is ``section``, then ``interface`` for each card, then ``packet`` for each frame, ``statistics`` at its
end. Each returns whole blocks: a file that ends after any of them can be read. ``Blocks`` takes apart again
what these have made.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = [
    "LARGEST",
    "Blocks",
    "Direction",
    "Packet",
    "Statistics",
    "interface",
    "packet",
    "parse_packet",
    "parse_statistics",
    "section",
    "statistics",
]

#: Bytes of a frame that are kept if nothing is said: all of the largest.
LARGEST: Final = 1 << 18

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC: Final = 0x1A2B3C4D
_ETHERNET: Final = 1

#: Codes of options (sections 3.5, 4.1, 4.2, 4.3 and 4.6).
_END, _COMMENT = 0, 1
_APPLICATION: Final = 4
_NAME, _RESOLUTION = 2, 9
_FLAGS: Final = 2
_RECEIVED, _DROPPED = 4, 5

#: Timestamps count units of ten to the minus ninth of a second.
_NANOSECONDS: Final = b"\x09"

#: Bytes of the longest value of an option that stays on four bytes.
_LONGEST_OPTION: Final = 65532

#: Bytes of the longest block: of a frame of any length, with options.
_LONGEST: Final = LARGEST + (1 << 18)

_HEAD: Final = struct.Struct("<II")
_PACKET_HEAD: Final = struct.Struct("<IIIII")


class Direction(IntEnum):
    """Where a frame goes, as the interface sees it (section 4.3.1)."""

    UNKNOWN = 0
    INBOUND = 1
    OUTBOUND = 2


def section(application: str, comment: str = "") -> bytes:
    """The beginning of a file: who wrote it, and what it is about."""
    options = _text(_APPLICATION, application) + _text(_COMMENT, comment)
    return _block(_SECTION, struct.pack("<IHHq", _MAGIC, 1, 0, -1), options)


def interface(name: str, *, snap: int = LARGEST, comment: str = "") -> bytes:
    """A card. The first one of a file has the number 0, the next one 1.

    Args:
        name: as it is shown.
        snap: bytes of a frame that are kept at most; see ``packet``.
        comment: about it.
    """
    options = _text(_NAME, name) + _text(_COMMENT, comment) + _option(_RESOLUTION, _NANOSECONDS)
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snap), options)


def packet(
    number: int,
    at: int,
    frame: bytes | memoryview,
    *,
    snap: int = LARGEST,
    direction: Direction = Direction.UNKNOWN,
    comment: str = "",
) -> bytes:
    """A frame.

    Args:
        number: of its card.
        at: nanoseconds since the epoch.
        frame: from its Ethernet header on, without a checksum.
        snap: bytes of it that are kept, at most what was said of the card.
        direction: where it went.
        comment: about it.
    """
    kept = frame[:snap]
    fixed = struct.pack("<IIIII", number, at >> 32, at & 0xFFFFFFFF, len(kept), len(frame))
    options = _text(_COMMENT, comment)
    if direction:
        options += _option(_FLAGS, struct.pack("<I", direction))
    return _block(_PACKET, fixed + _padded(kept), options)


def statistics(number: int, at: int, *, received: int, dropped: int) -> bytes:
    """How many frames of a card there were, and how many of them are not in the file."""
    options = _option(_RECEIVED, struct.pack("<Q", received)) + _option(_DROPPED, struct.pack("<Q", dropped))
    return _block(_STATISTICS, struct.pack("<III", number, at >> 32, at & 0xFFFFFFFF), options)


class Packet(NamedTuple):
    """A frame that was captured: as ``packet`` was told, and how many bytes it had."""

    number: int
    at: int
    frame: bytes
    direction: Direction
    size: int


class Statistics(NamedTuple):
    """As ``statistics`` was told."""

    number: int
    received: int
    dropped: int


class Blocks:
    """Takes apart a file that comes in pieces."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The blocks that are whole with ``data``. Raises ``ValueError``: it is no such file."""
        rest = self._rest
        rest += data
        blocks = []
        at = 0
        while len(rest) - at >= 12:
            _, size = _HEAD.unpack_from(rest, at)
            if size % 4 or not 12 <= size <= _LONGEST:
                raise ValueError(f"a block of {size} bytes")
            if len(rest) - at < size:
                break
            if int.from_bytes(rest[at + size - 4 : at + size], "little") != size:
                raise ValueError("a block has two lengths")
            blocks.append(bytes(rest[at : at + size]))
            at += size
        del rest[:at]
        return blocks


def parse_packet(block: bytes) -> Packet | None:
    """The frame in a block; None if it is of another kind, or has not what it says."""
    if _HEAD.unpack_from(block)[0] != _PACKET or len(block) < 12 + _PACKET_HEAD.size:
        return None
    number, high, low, kept, size = _PACKET_HEAD.unpack_from(block, 8)
    begin = 8 + _PACKET_HEAD.size
    end = begin + kept + -kept % 4
    if end + 4 > len(block):
        return None
    flags = _options(block[end:-4]).get(_FLAGS, b"")
    direction = int.from_bytes(flags, "little") & 3
    known = Direction(direction) if direction < 3 else Direction.UNKNOWN
    return Packet(number, high << 32 | low, block[begin : begin + kept], known, size)


def parse_statistics(block: bytes) -> Statistics | None:
    """What a block says of a card's frames; None if it is of another kind, or has not what it says."""
    if _HEAD.unpack_from(block)[0] != _STATISTICS or len(block) < 24:
        return None
    options = _options(block[20:-4])
    counts = (int.from_bytes(options.get(code, b""), "little") for code in (_RECEIVED, _DROPPED))
    return Statistics(int.from_bytes(block[8:12], "little"), *counts)


def _options(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + 4 <= len(data):
        code, size = struct.unpack_from("<HH", data, at)
        at += 4
        if code == _END or at + size > len(data):
            break
        found[code] = data[at : at + size]
        at += size + -size % 4
    return found


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    if options:
        options += struct.pack("<HH", _END, 0)
    size = 12 + len(body) + len(options)
    return struct.pack("<II", kind, size) + body + options + struct.pack("<I", size)


def _text(code: int, value: str) -> bytes:
    data = value.encode("utf-8", "replace")[:_LONGEST_OPTION]
    return _option(code, data.decode("utf-8", "ignore").encode()) if data else b""


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _padded(data: bytes | memoryview) -> bytes:
    return bytes(data) + bytes(-len(data) % 4)
