"""Sparse files in an archive: blocks that are not all zeroes, compressed where that saves something."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterator

import zstandard

from atoll import threads
from atoll.snapshot import digests
from atoll.snapshot.chunks import read_into
from atoll.snapshot.frames import Unpacker

__all__ = ["BLOCK", "LARGEST_PART", "Writing", "packed", "room"]

#: Bytes of a block: what is hashed as one is sent as one.
BLOCK = digests.CHUNK

#: Of a block: its number, and how many bytes of it follow.
_RECORD = struct.Struct("<II")

#: A part of a file ends with the block with which it has so many bytes.
_PART = 16 << 20

#: Bytes that a part has at most.
LARGEST_PART = _PART + BLOCK + _RECORD.size

#: Of zstd's, as for packs. Level 1 makes a disk an eighth smaller still, and takes 1.6 times as long.
_LEVEL = -1

#: A block is compressed if that makes it at most so many tenths: else it is not worth the work.
_TENTHS = 9

#: Bytes of a file that are looked at one by one for zeroes: a page of most file systems.
_PAGE = 4096

_ZEROES = bytes(BLOCK)


def room(fd: int) -> int:
    """Bytes of all blocks of a file that may have to be sent. Raises ``OSError``."""
    size = os.fstat(fd).st_size
    return sum(min(BLOCK, size - number * BLOCK) for number in digests.numbers(fd))


def packed(fd: int, whole: hashlib._Hash) -> Iterator[bytes]:
    """The parts of a sparse file.

    Args:
        fd: of the file, which nobody writes.
        whole: ``digests.begun`` of it: it has the file's digest when all parts were taken.

    Raises:
        OSError: it cannot be read.
    """
    size = os.fstat(fd).st_size
    rooms = threading.local()

    def work(number: int) -> tuple[bytes, bytes, bytes]:
        if not hasattr(rooms, "content"):
            rooms.content = memoryview(bytearray(BLOCK))
            rooms.zstd = zstandard.ZstdCompressor(level=_LEVEL)
        content = rooms.content[: min(BLOCK, size - number * BLOCK)]
        if read_into(fd, content, number * BLOCK) < len(content):
            raise OSError(5, "it became shorter")
        said = digests.hashed(number, content)
        if not said:
            return b"", b"", b""
        stored = rooms.zstd.compress(content)
        if len(stored) * 10 > len(content) * _TENTHS:
            stored = bytes(content)
        return said, _RECORD.pack(number, len(stored)), stored

    pieces: list[bytes] = []
    length = 0
    with threads.in_order(work, digests.numbers(fd)) as found:
        for said, head, stored in found:
            whole.update(said)
            pieces += (head, stored)
            length += len(head) + len(stored)
            if length >= _PART:
                yield b"".join(pieces)
                pieces, length = [], 0
    if length:
        yield b"".join(pieces)


class Writing:
    """A sparse file that is put together of its parts.

    Args:
        fd: of the file, which is empty; it gets ``size`` bytes.
        size: likewise.

    Attributes:
        content: bytes of the blocks that were written.
    """

    def __init__(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)
        self.content = 0
        self._fd = fd
        self._size = size
        self._next = 0

    def add(self, part: bytes, most: int) -> None:
        """Write the blocks of the next part, whose ``content`` grows by at most ``most`` bytes.

        Raises:
            ValueError: what is wrong with it.
            OSError: the file cannot be written.
        """
        records = list(self._records(memoryview(part)))
        count = sum(length for _, length, _ in records)
        if count > most:
            raise ValueError("it holds more than it said")
        rooms = threading.local()

        def work(record: tuple[int, int, memoryview]) -> None:
            if not hasattr(rooms, "content"):
                rooms.content, rooms.unpacker = memoryview(bytearray(BLOCK)), Unpacker()
            number, length, stored = record
            content = rooms.content[:length]
            if not rooms.unpacker.unpack(stored, content):
                raise ValueError(f"block {number} cannot be decompressed")
            _write(self._fd, content, number * BLOCK)

        with threads.in_order(work, records) as done:
            for _ in done:
                pass
        self.content += count

    def _records(self, part: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """The blocks of a part: number, bytes of the content, what is stored."""
        if not part:
            raise ValueError("a part is empty")
        at = 0
        while at < len(part):
            if at + _RECORD.size > len(part):
                raise ValueError("a part is cut off")
            number, length = _RECORD.unpack_from(part, at)
            at += _RECORD.size
            whole = min(BLOCK, self._size - number * BLOCK)
            if number < self._next or whole <= 0 or not 0 < length <= whole or at + length > len(part):
                raise ValueError(f"block {number} is out of place")
            yield number, whole, part[at : at + length]
            at += length
            self._next = number + 1


def _write(fd: int, content: memoryview, begin: int) -> None:
    """Write what is no zero, by pages: the file keeps its holes."""
    for at, end in _runs(content):
        done = at
        while done < end:
            done += os.pwrite(fd, content[done:end], begin + done)


def _runs(content: memoryview) -> Iterator[tuple[int, int]]:
    begun = -1
    for at in range(0, len(content), _PAGE):
        page = content[at : at + _PAGE]
        if page == _ZEROES[: len(page)]:
            if begun >= 0:
                yield begun, at
            begun = -1
        elif begun < 0:
            begun = at
    if begun >= 0:
        yield begun, len(content)
