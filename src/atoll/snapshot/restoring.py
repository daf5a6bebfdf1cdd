"""Filling a file with an image that was stored."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from atoll import store, threads
from atoll.snapshot.chunks import CHUNK, FRAME_CHUNKS
from atoll.snapshot.index import Image
from atoll.snapshot.pack import DamageError, refusal
from atoll.snapshot.reading import FrameReader, OpenPack

__all__ = ["restore"]

#: Instead of the number of a run: there is none.
_NONE = (1 << 32) - 1


def restore(image: Image, directory: Path, fd: int) -> None:
    """Fill a file with an image. Each chunk is verified by its SHA-256 before it is written.

    Args:
        image: of an index that was loaded, or finished.
        directory: the snapshot's.
        fd: an empty file that may have holes. It gets the image's size.

    Raises:
        StoreError: ``store.corrupt``: a file of the snapshot is damaged or missing; ``store.io``: one cannot
            be read; ``store.full``, ``store.unwritable`` or ``store.io``: the file cannot be written. What
            the file holds then is of no use.
    """
    with contextlib.ExitStack() as stack:
        try:
            sources = {
                number: stack.enter_context(
                    OpenPack(directory / image.packs[number].file, image.packs[number])
                )
                for number in sorted(set(image.pack))
            }
            filling = _Filling(image, sources, fd)
            if os.fstat(fd).st_blocks:
                raise ValueError("the file to restore to is not empty")
            with store.refusing(filling.target):
                os.ftruncate(fd, image.size)
            frames = sum(source.pack.frames for source in sources.values())
            threads.share(filling.fill, _frames(image), threads=min(threads.processors(), frames))
        except DamageError as error:
            raise refusal(directory, error.fault) from error


def _frames(image: Image) -> Iterator[tuple[int, int, list[int]]]:
    """The frames that an image uses, each once: number of the pack, of the frame, and of its runs.

    Runs of a frame are chained by their numbers: a sort would make an object of each.
    """
    used = set(image.pack)
    frames = [pack.frames if number in used else 0 for number, pack in enumerate(image.packs)]
    bases = [0, *accumulate(frames)]
    heads = array("I", [_NONE]) * bases[-1]
    following = array("I", [_NONE]) * len(image.at)
    for run in reversed(range(len(image.at))):
        frame = bases[image.pack[run]] + image.first[run] // FRAME_CHUNKS
        following[run] = heads[frame]
        heads[frame] = run
    for number, count in enumerate(frames):
        for frame in range(count):
            runs = list(_chain(heads[bases[number] + frame], following))
            if runs:
                yield number, frame, runs


def _chain(head: int, following: array[int]) -> Iterator[int]:
    while head != _NONE:
        yield head
        head = following[head]


class _Filling:
    """A file that is being filled by several threads."""

    def __init__(self, image: Image, sources: dict[int, OpenPack], fd: int) -> None:
        self.target = Path(f"/proc/self/fd/{fd}")
        self._image = image
        self._sources = sources
        self._fd = fd

    def fill(self, frames: Iterator[tuple[int, int, list[int]]]) -> None:
        """Fill in what frames hold. Raises ``DamageError`` or ``StoreError``."""
        reader = FrameReader()
        first, count = self._image.first, self._image.count
        for pack, frame, runs in frames:
            wanted = 0
            for run in runs:
                wanted |= (1 << count[run]) - 1 << first[run] % FRAME_CHUNKS
            slots = [slot for slot in range(FRAME_CHUNKS) if wanted >> slot & 1]
            content = reader.content(self._sources[pack], frame, slots)
            with store.refusing(self.target):
                for run in runs:
                    self._write(content, run)

    def _write(self, content: memoryview, run: int) -> None:
        image = self._image
        begin = image.first[run] % FRAME_CHUNKS * CHUNK
        at = image.at[run] * CHUNK
        left = content[begin : begin + min(image.count[run] * CHUNK, image.size - at)]
        while left:
            written = os.pwritev(self._fd, [left], at)
            at, left = at + written, left[written:]
