"""Room in an image's file, given out to several writers at once, and a writer of many files into it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from atoll import store
from atoll.image.oci.metadata import BLOCK
from atoll.image.refusing import refuse

__all__ = ["Area", "Space", "blocks"]

#: Bytes that a writer takes at once: what files of one layer have together on the disk.
_STRIDE = 4 << 20

#: Bytes that are gathered before they are written.
_GATHER = 1 << 20

#: Between two looks at what is left of the disk, bytes; and what must be left.
_LOOK, _SPARE = 256 << 20, 64 << 20


def blocks(size: int) -> int:
    """``size`` rounded up to whole blocks, bytes."""
    return -(-size // BLOCK) * BLOCK


class Space:
    """The room of one file.

    Args:
        fd: the file.
        directory: that it lies in.
        start: byte from which on there is room.
        most: bytes that it may have.
    """

    def __init__(self, fd: int, directory: Path, *, start: int, most: int) -> None:
        self.fd = fd
        self.end = start
        self._directory = directory
        self._most = most
        self._looked = start
        self._lock = threading.Lock()

    def take(self, size: int) -> int:
        """Where there are so many bytes, whole blocks.

        Raises:
            ImageError: ``image.archive``: it becomes too large.
            StoreError: ``store.full``.
        """
        with self._lock:
            start = self.end
            if start + size > self._most:
                raise refuse(f"it unpacks to more than {self._most >> 20} MiB")
            self.end += size
            look = self.end - self._looked >= _LOOK
            self._looked = self.end if look else self._looked
        if look:
            store.require_space(self._directory, _SPARE)
        return start

    def give_back(self, start: int, end: int) -> None:
        """Say that from ``start`` on nothing of what ends at ``end`` was used."""
        with self._lock:
            if self.end == end:
                self.end = start


class Area:
    """One writer's part of the room: files in order, gathered to few writes.

    Args:
        space: the room.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._free = self._limit = 0
        self._buffer = bytearray()
        self._at = 0  # where the buffer goes

    def begin(self, size: int) -> int:
        """Where a file of so many bytes goes; bytes that are not written are zeros."""
        need = blocks(size)
        if need > self._limit - self._free:
            if need >= _STRIDE:
                return self._space.take(need)
            self.close()
            self._free = self._space.take(_STRIDE)
            self._limit = self._free + _STRIDE
        start = self._free
        self._free += need
        return start

    def write(self, at: int, data: memoryview) -> None:
        """Have ``data`` at byte ``at``."""
        gap = at - self._at - len(self._buffer)
        if self._buffer and not 0 <= gap < BLOCK:
            self.flush()
        if not self._buffer:
            if len(data) >= _GATHER // 4:
                self._put(at, data)
                return
            self._at, gap = at, 0
        self._buffer += bytes(gap)
        self._buffer += data
        if len(self._buffer) >= _GATHER:
            self.flush()

    def flush(self) -> None:
        """Have written all that was given."""
        if self._buffer:
            self._put(self._at, memoryview(self._buffer))
            self._buffer = bytearray()

    def close(self) -> None:
        """Have written all, and give back what was not used."""
        self.flush()
        self._space.give_back(self._free, self._limit)
        self._free = self._limit = 0

    def _put(self, at: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._space.fd, data[done:], at + done)
