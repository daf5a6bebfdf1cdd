"""Images in chunks: the units that are hashed, stored once and found again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from atoll import store

__all__ = ["CHUNK", "DIGEST", "FRAME", "FRAME_CHUNKS", "chunks_of", "data_runs", "read_into", "windows"]

#: Bytes of a chunk. Fixed by the format.
CHUNK = 16 << 10

#: Chunks that are compressed together. Fixed by the format.
FRAME_CHUNKS = 64

#: Bytes of a full frame.
FRAME = CHUNK * FRAME_CHUNKS

#: Bytes of a SHA-256.
DIGEST = 32


def chunks_of(size: int) -> int:
    """How many chunks ``size`` bytes take."""
    return -(-size // CHUNK)


def data_runs(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The chunks of a file that are not holes (lseek(2), SEEK_DATA). It moves the file's offset.

    Args:
        fd: the file.
        size: where to end, in bytes.

    Yields:
        First chunk and count, ascending and apart.

    Raises:
        OSError: as lseek(2).
    """
    begun = ended = 0
    for start, end in store.data_ranges(fd, 0, size):
        first = start // CHUNK
        if first > ended:
            if ended > begun:
                yield begun, ended - begun
            begun = first
        ended = chunks_of(end)
    if ended > begun:
        yield begun, ended - begun


def windows(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Cut and join runs so that each window but the last holds as many chunks as a frame."""
    window: list[tuple[int, int]] = []
    room = FRAME_CHUNKS
    for first, count in runs:
        at, end = first, first + count
        while at < end:
            part = min(end - at, room)
            window.append((at, part))
            at, room = at + part, room - part
            if not room:
                yield tuple(window)
                window, room = [], FRAME_CHUNKS
    if window:
        yield tuple(window)


def read_into(fd: int, view: memoryview, at: int) -> int:
    """Fill ``view`` from byte ``at`` of a file, unless the file ends before; the count of bytes read."""
    count = 0
    while count < len(view):
        got = os.preadv(fd, [view[count:]], at + count)
        if not got:
            break
        count += got
    return count
