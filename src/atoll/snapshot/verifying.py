"""Reading all that a snapshot stored, to say what is wrong with it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll import threads
from atoll.snapshot.index import FILE, Index
from atoll.snapshot.pack import DamageError, Fault, unreadable
from atoll.snapshot.reading import FrameReader, OpenPack

__all__ = ["verify"]


def verify(directory: Path, index: Index, step: Callable[[], None] = lambda: None) -> tuple[Fault, ...]:
    """Read the index file and all of all packs, decompress them, and compare all digests.

    Args:
        directory: the snapshot's.
        index: its index.
        step: called before each frame, in several threads; what it raises ends the work.

    Returns:
        What is wrong, by file and offset; nothing if all is as it was written. Of a pack whose table is
        damaged nothing else can be said.

    Raises:
        StoreError: ``store.io``: a file cannot be read, which says nothing of what is in it.
    """
    faults = list(_check_index(directory, index))
    with contextlib.ExitStack() as stack:
        sources = []
        for pack in index.packs:
            try:
                sources.append(stack.enter_context(OpenPack(directory / pack.file, pack)))
            except DamageError as error:
                faults.append(error.fault)
        frames = [(source, frame) for source in sources for frame in range(source.pack.frames)]
        work = functools.partial(_check_frames, faults, step)
        threads.share(work, frames, threads=min(threads.processors(), len(frames)))
    return tuple(sorted(faults))


def _check_index(directory: Path, index: Index) -> Iterator[Fault]:
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        yield Fault(FILE, 0, "it is missing")
        return
    except OSError as error:
        raise unreadable(path, error) from error
    if hashlib.sha256(data).hexdigest() != index.digest:
        yield Fault(FILE, 0, "it has another digest")


def _check_frames(
    faults: list[Fault], step: Callable[[], None], frames: Iterator[tuple[OpenPack, int]]
) -> None:
    reader = FrameReader()
    for source, frame in frames:
        step()
        try:
            reader.stored(source, frame)
            reader.content(source, frame, range(source.pack.frame_chunks(frame)))
        except DamageError as error:
            faults.append(error.fault)
