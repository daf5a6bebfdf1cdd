"""A layer that another image has already: its contents are copied, and nothing of it comes a second time.

Where the file system can share blocks (btrfs, XFS and others, by copy_file_range(2)), nothing is copied.
"""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from atoll.image.oci.layer import read_index, write_index
from atoll.image.oci.merging import Item
from atoll.image.oci.metadata import BLOCK
from atoll.image.oci.space import Area, Space
from atoll.image.oci.tape import Pieces, Tape, steps_of, tape_of

__all__ = ["relocate"]

_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_CHUNK = 4 << 20

_Run = tuple[int, int, int]  # offset there, offset here, length


def relocate(source: Path, root: Path, space: Space, place: Path) -> None:
    """Copy a layer from another image.

    Args:
        source: the layer's files there, without their endings.
        root: the file with its contents.
        space: of the image.
        place: for the layer's files here.

    Raises:
        ImageError: ``image.corrupt``: the layer there is damaged. ``image.archive``: it becomes too large.
        OSError: the disk is full, or cannot be read or written.
    """
    area = Area(space)
    items = read_index(source)
    moved = [
        msgspec.structs.replace(item, offset=area.begin(item.size)) if _has_content(item) else item
        for item in items
    ]
    area.close()
    moves = sorted(
        (old.offset, new.offset) for old, new in zip(items, moved, strict=True) if _has_content(old)
    )
    tape = Tape(tape_of(place))
    try:
        with root.open("rb") as file:
            for run in _joined(_relocated(source, moves, tape)):
                _copy(file.fileno(), space.fd, *run)
        tape.close()
    finally:
        tape.abandon()
    write_index(place, moved)


def _has_content(item: Item) -> bool:
    return item.kind == "file" and item.size > 0


def _relocated(source: Path, moves: list[tuple[int, int]], tape: Tape) -> Iterator[_Run]:
    """Write the tape anew; where each piece was and goes."""
    starts = [old for old, _ in moves]
    for raw, pieces in steps_of(source):
        placed: Pieces = ()
        for offset, length in pieces:
            old, new = moves[bisect.bisect_right(starts, offset) - 1]
            placed += ((offset - old + new, length),)
            yield offset, offset - old + new, length
        tape.add(raw, placed)


def _joined(runs: Iterable[_Run]) -> Iterator[_Run]:
    """Runs that follow one another in both places, with no more than padding between, as one."""
    known: _Run | None = None
    for old, new, length in runs:
        if known is not None:
            gap = old - known[0] - known[2]
            if 0 <= gap < BLOCK and new - known[1] == old - known[0]:
                known = known[0], known[1], known[2] + gap + length
                continue
            yield known
        known = old, new, length
    if known is not None:
        yield known


def _copy(source: int, target: int, old: int, new: int, length: int) -> None:
    while length:
        try:
            count = os.copy_file_range(source, target, length, old, new)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            count = os.pwrite(target, os.pread(source, min(length, _CHUNK), old), new)
        if not count:
            raise OSError(errno.EIO, "an image ends early")
        old, new, length = old + count, new + count, length - count
