"""Copying a guest's RAM, a file in memory, so that the guest stands still for only a part of it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from atoll import store

__all__ = ["PIECE", "Copy", "find_memory", "provide", "unmapped"]

#: Bytes that are compared at once: they stay in the CPU's cache.
_PIECE = 65_536

#: Bytes whose mapping is looked at together.
PIECE = 4 << 20


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


def find_memory(pid: int, name: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a process's file in memory of that name; -1 if it has none. Raises ``OSError``."""
    directory = f"/proc/{pid}/fd"
    wanted = f"/memfd:{name} (deleted)"
    for entry in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            if os.readlink(f"{directory}/{entry}") == wanted:
                return os.open(f"{directory}/{entry}", flags | os.O_CLOEXEC)
    return -1


def provide(pid: int, names: Mapping[str, int | None]) -> None:
    """Have the host provide memory for a process's files in memory, where they have holes.

    Args:
        pid: of the process.
        names: how much of each file, bytes from its beginning; None for all of it.

    Raises:
        OSError: ``ENOMEM``: there is less than these and a copy of them take.
    """
    with ExitStack() as stack:
        wanted = []
        for name, size in names.items():
            fd = find_memory(pid, name, os.O_RDWR)
            if fd >= 0:
                stack.callback(os.close, fd)
                wanted.append((fd, os.fstat(fd).st_size if size is None else size))
        if sum(size for _, size in wanted) > _available():
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        for fd, size in wanted:
            if size:
                os.posix_fallocate(fd, 0, size)


def unmapped(pid: int, name: str) -> Iterator[int]:
    """Which pieces of ``PIECE`` bytes of a file in memory a process has not mapped as a whole.

    By one page in sixteen: that many the kernel maps at once, if they are there. By their offsets, those that
    lie in one mapping (proc(5), ``/proc/pid/maps`` and ``/proc/pid/pagemap``). Raises ``OSError``.
    """
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        if not line.endswith(f"/memfd:{name} (deleted)".encode()):
            continue
        where, _, offset, *_ = line.split()
        start, end = (int(word, 16) for word in where.split(b"-"))
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for at in range(start, end, PIECE):
                count = min(PIECE, end - at) // mmap.PAGESIZE
                entries = os.pread(pagemap.fileno(), count * 8, at // mmap.PAGESIZE * 8)
                if not all(high & 0x80 for high in entries[7 :: 8 * 16]):
                    yield int(offset, 16) + at - start


def _available() -> int:
    """Bytes that can be had on this host without swapping (proc(5), ``MemAvailable``)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
