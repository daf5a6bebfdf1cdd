"""Frames: up to 64 chunks, compressed together."""

from __future__ import annotations

import hashlib

import zstandard

from atoll.snapshot.chunks import FRAME

__all__ = ["Packer", "Unpacker"]

#: Of zstd's. Higher ones save a tenth more and take half as long again; on lower ones it is not quicker.
_LEVEL = -1

#: A frame is stored compressed if that is at most so many tenths of it: else it is not worth the work.
_TENTHS = 9


class Packer:
    """Compresses frames; for one thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL)

    def pack(self, frame: memoryview) -> tuple[bytes | memoryview, bytes]:
        """What is stored of a frame, perhaps ``frame`` itself, and the SHA-256 of that."""
        packed: bytes | memoryview = self._zstd.compress(frame)
        if len(packed) * 10 > len(frame) * _TENTHS:
            packed = frame
        return packed, hashlib.sha256(packed).digest()


class Unpacker:
    """Decompresses frames into memory that is there already; for one thread.

    What is claimed of a frame's size by the frame itself is not heeded: no more is written than fits, and
    zstd's own window is bounded by the largest frame.
    """

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=FRAME)

    def unpack(self, stored: memoryview, frame: memoryview) -> bool:
        """Fill ``frame`` with what ``stored`` holds; False if that is no frame of this size.

        Given all input and all room at once, zstd decompresses in one pass without a copy (RFC 8878 for the
        format): twice as fast here as into memory of its own.
        """
        if len(stored) >= len(frame):
            frame[:] = stored[: len(frame)]
            return len(stored) == len(frame)
        count = 0
        try:
            with self._zstd.stream_reader(stored, closefd=False) as reader:
                while count < len(frame) and (got := reader.readinto(frame[count:])):
                    count += got
        except zstandard.ZstdError:
            return False
        return count == len(frame)
