"""Where the bytes of a disk lie: runs of it, each in a file or zeroes, and disks laid over one another.

What no run covers, a file says nothing about: there the file below it shows, and at the bottom zeroes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from atoll import store

__all__ = ["ZEROES", "Extent", "copy_range", "joined", "overlaid", "raw_extents", "read_range"]

#: In the place of a file: the run reads as zeroes, whatever lies below it.
ZEROES = -1

#: Bytes copied at once: a signal is heeded in between.
_STEP = 16 << 20


class Extent(NamedTuple):
    """A run of a disk.

    Attributes:
        at: where it begins on the disk, bytes.
        length: bytes.
        source: number of the file that it lies in, or ``ZEROES``.
        offset: where it begins in that file, bytes; what lies past the end of the file reads as zeroes.
    """

    at: int
    length: int
    source: int
    offset: int = 0

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.at + self.length


def joined(extents: Iterable[Extent]) -> list[Extent]:
    """The same runs with neighbours made one."""
    found: list[Extent] = []
    for one in extents:
        last = found[-1] if found else None
        if (
            last is not None
            and (last.end, last.source) == (one.at, one.source)
            and (one.source == ZEROES or last.offset + last.length == one.offset)
        ):
            found[-1] = last._replace(length=last.length + one.length)
        else:
            found.append(one)
    return found


def overlaid(upper: Sequence[Extent], lower: Sequence[Extent], size: int) -> list[Extent]:
    """What shows of both, in order: ``upper`` where it says something, else ``lower``.

    Args:
        upper: runs in order that do not overlap.
        lower: likewise.
        size: of the upper disk, bytes; nothing shows beyond it.
    """
    found: list[Extent] = []
    at = number = 0
    for top in (*upper, Extent(size, 0, ZEROES)):
        while number < len(lower) and lower[number].at < top.at:
            part = _between(lower[number], at, min(top.at, size))
            if part.length > 0:
                found.append(part)
            if lower[number].end > top.at:
                break
            number += 1
        part = _between(top, 0, size)
        if part.length > 0:
            found.append(part)
        at = top.end
    return joined(found)


def _between(one: Extent, start: int, end: int) -> Extent:
    """The part of a run that lies there; its length is not positive if there is none."""
    begin = max(one.at, start)
    offset = one.offset + begin - one.at if one.source != ZEROES else 0
    return Extent(begin, min(one.end, end) - begin, one.source, offset)


def raw_extents(fd: int, source: int) -> list[Extent]:
    """The runs of a raw file that are no holes (lseek(2), ``SEEK_DATA``). Raises ``OSError``."""
    return [Extent(at, end - at, source, at) for at, end in store.data_ranges(fd)]


def copy_range(source: int, offset: int, target: int, at: int, length: int) -> None:
    """Copy from one file into another; what ``source`` has not is left as it is. Raises ``OSError``."""
    while length > 0:
        try:
            count = os.copy_file_range(source, target, min(_STEP, length), offset, at)
        except OSError as error:
            if error.errno not in {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
                raise
            count = os.pwrite(target, os.pread(source, min(_STEP, length), offset), at)
        if count == 0:
            return
        offset, at, length = offset + count, at + count, length - count


def read_range(files: Sequence[int], extent: Extent, skip: int, count: int) -> bytes:
    """Up to ``count`` bytes of a run, from ``skip`` on; empty at its end. Raises ``OSError``."""
    count = min(count, extent.length - skip)
    if count <= 0:
        return b""
    if extent.source == ZEROES:
        return bytes(count)
    return os.pread(files[extent.source], count, extent.offset + skip).ljust(count, b"\0")
