"""Copying a guest's RAM, a file in memory, so that the guest stands still for only a part of it."""

from __future__ import annotations

import contextlib
import mmap
import os

from atoll import store

__all__ = ["Copy", "find_memory"]

#: Bytes that are compared at once: they stay in the CPU's cache.
_PIECE = 65_536


class Copy:
    """A copy of a file that is written all the while, until it is settled.

    The first pass has the kernel find pages for the copy, which takes as long as all the rest.

    Args:
        source: a descriptor, which stays its owner's.
        name: of the copy.

    Attributes:
        fd: of the copy, its owner's to close.
    """

    def __init__(self, source: int, name: str) -> None:
        self._source = source
        self._size = os.fstat(source).st_size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            store.copy_data(source, self.fd)
        except BaseException:
            os.close(self.fd)
            raise

    def settle(self) -> None:
        """Make the copy true, while nobody writes to the source. Raises ``OSError``."""
        if not self._size:
            return
        reading = mmap.PROT_READ
        with (
            mmap.mmap(self._source, self._size, prot=reading) as source,
            mmap.mmap(self.fd, self._size) as target,
        ):
            at = 0
            for start, end in store.data_ranges(self._source):
                self._clear(target, at, start)
                for first in range(start, end, _PIECE):
                    piece = slice(first, min(first + _PIECE, end))
                    if source[piece] != target[piece]:
                        target[piece] = source[piece]
                at = end
            self._clear(target, at, self._size)

    def _clear(self, target: mmap.mmap, start: int, end: int) -> None:
        """Of what is a hole in the source now, nothing may be left. To look there would fill the hole."""
        for first, last in store.data_ranges(self.fd, start, end):
            target[first:last] = bytes(last - first)


def find_memory(pid: int, name: str) -> int:
    """A descriptor of a process's file in memory of that name; -1 if it has none. Raises ``OSError``."""
    directory = f"/proc/{pid}/fd"
    wanted = f"/memfd:{name} (deleted)"
    for entry in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            if os.readlink(f"{directory}/{entry}") == wanted:
                return os.open(f"{directory}/{entry}", os.O_RDONLY | os.O_CLOEXEC)
    return -1
