"""Images of a snapshot in its directory: stored once, compressed and verified.

An image is the content of a file, mostly a guest's RAM. It is cut into chunks of 16 KiB. Each that is not
zero is stored once, whatever image it is in, and not at all where an earlier snapshot has it: then that one's
pack is linked (docs/reference/snapshot-format.md). The links keep a pack: each snapshot can be removed at any
time without harm to another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from atoll import store
from atoll.snapshot.chunks import CHUNK, FRAME, FRAME_CHUNKS, data_runs, read_into, windows
from atoll.snapshot.index import FILE, LARGEST, Image, Index, encode, load
from atoll.snapshot.known import open_known
from atoll.snapshot.pack import DamageError, Fault, Pack, refusal
from atoll.snapshot.packing import NewPack
from atoll.snapshot.places import Places, place, split
from atoll.snapshot.restoring import restore
from atoll.snapshot.verifying import verify
from atoll.threads import processors

__all__ = ["Fault", "Image", "Index", "Pack", "Writer", "load", "restore", "verify"]

_ZERO = bytes(CHUNK)

#: Frames of 1 MiB that each thread may be behind: enough that none waits for another.
_BEHIND = 2


class _Draft(NamedTuple):
    """An image whose chunks are still counted by packs that may be left out."""

    size: int
    at: array[int]
    places: array[int]


class Writer:
    """Stores images in a directory that nobody else uses: one of ``store.staging``.

    What fails leaves files behind; the caller removes the directory. For use by one thread, in a ``with``
    block or up to ``finish``; it uses others for hashing and compression.

    Args:
        directory: the snapshot's.
        known: indexes of earlier snapshots, loaded from where they are, the most alike first.

    Raises:
        StoreError: ``store.full``, ``store.unwritable`` or ``store.io``.
    """

    def __init__(self, directory: Path, known: Iterable[Index] = ()) -> None:
        self._directory = directory
        self._known = open_known(directory, known)
        self._depth = processors() * _BEHIND
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - cannot be loaded once a program's first thread has ended

        self._pool = ThreadPoolExecutor(processors(), thread_name_prefix="packs")
        self._new = NewPack(directory, self._pool, self._depth)
        self._places = Places([self._new.digests, *(known.table.chunks for known in self._known)])
        for number, pack in enumerate(self._known, 1):
            self._places.put_all(number, pack.pack.chunks)
        self._drafts: list[_Draft] = []

    def add(self, fd: int, size: int) -> int:
        """Store an image.

        Args:
            fd: a file, which should stand still: what is stored of one that changes is some of this and
                some of that. Its offset is moved.
            size: how much of it, in bytes. What the file is shorter is zero.

        Returns:
            Its number: its place in ``Index.images``.

        Raises:
            StoreError: ``store.full``, ``store.unwritable`` or ``store.io``.
        """
        if not 0 <= size <= LARGEST:
            raise ValueError(f"an image cannot have {size} bytes")
        draft = _Draft(size, array("I"), array("Q"))
        reading: deque[tuple[_Window, memoryview, Future[list[bytes]]]] = deque()
        free: list[memoryview] = []
        with store.refusing(self._directory):
            try:
                for window in windows(data_runs(fd, size)):
                    if len(reading) == self._depth:
                        free.append(self._take(draft, *reading.popleft()))
                    room = free.pop() if free else memoryview(bytearray(FRAME))
                    reading.append((window, room, self._pool.submit(_digests, fd, size, window, room)))
                while reading:
                    self._take(draft, *reading.popleft())
            finally:  # nobody may read from a descriptor that the caller closes
                for *_, digests in reading:
                    digests.cancel()
                wait([digests for *_, digests in reading])
        self._drafts.append(draft)
        return len(self._drafts) - 1

    def finish(self) -> Index:
        """Write the index; all is on the disk when this returns, and nothing more can be added.

        Raises:
            StoreError: ``store.full``, ``store.unwritable`` or ``store.io``; ``store.corrupt``: an earlier
                snapshot is damaged.
        """
        with self, store.refusing(self._directory):
            try:
                moved = self._leave_old_packs()
            except DamageError as error:
                raise refusal(self._directory, error.fault) from error
            new = self._new.finish()
            for known in self._known:
                known.settle()
            found = [new, *(known.pack if known.used else None for known in self._known)]
            packs = tuple(pack for pack in found if pack is not None)
            numbers = {number: packs.index(pack) for number, pack in enumerate(found) if pack is not None}
            images = tuple(_image(draft, packs, numbers, moved) for draft in self._drafts)
            data = encode(packs, images)
            store.write_file(self._directory / FILE, data, mode=0o600)
        return Index(self._directory, hashlib.sha256(data).hexdigest(), packs, images)

    def close(self) -> None:
        """Let go of all files. What is not finished cannot be any more."""
        self._pool.shutdown(cancel_futures=True)
        self._new.close()
        while self._known:
            self._known.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(
        self, draft: _Draft, window: _Window, room: memoryview, reading: Future[list[bytes]]
    ) -> memoryview:
        """Store what is new of a window, in its order; the room, which is free again."""
        digests = iter(reading.result())
        begin = 0
        for first, count in window:
            for chunk in range(first, first + count):
                if digest := next(digests):
                    number = self._find(digest)
                    if number is None:
                        number = self._new.append(room[begin : begin + CHUNK], digest)
                        self._places.put(digest, number)
                    draft.at.append(chunk)
                    draft.places.append(number)
                begin += CHUNK
        return room

    def _find(self, digest: bytes) -> int | None:
        number = self._places.find(digest)
        if number is None or number < 1 << 32:
            return number
        pack, chunk = split(number)
        return number if self._known[pack - 1].use(chunk) else None

    def _leave_old_packs(self) -> dict[int, int]:
        """Store anew what is used of packs that are not worth it; from where to where that went."""
        moved = {}
        for pack, known in enumerate(self._known, 1):
            if not known.is_worth_it:
                for chunk, content in known.take_back():
                    digest = known.table.chunk_digest(chunk)
                    moved[place(pack, chunk)] = self._new.append(content, digest)
        return moved


#: First chunk and count of each run.
_Window = tuple[tuple[int, int], ...]


def _digests(fd: int, size: int, window: _Window, room: memoryview) -> list[bytes]:
    """Read a window into ``room``; the digest of each chunk, b"" for a zero one."""
    begin = 0
    for first, count in window:
        end = begin + count * CHUNK
        at = first * CHUNK
        got = begin + read_into(fd, room[begin : begin + min(end - begin, size - at)], at)
        if got < end:
            room[got:end] = bytes(end - got)
        begin = end
    whole = room.obj
    assert isinstance(whole, bytearray)
    return [
        b"" if whole.startswith(_ZERO, at) else hashlib.sha256(room[at : at + CHUNK]).digest()
        for at in range(0, begin, CHUNK)
    ]


def _image(draft: _Draft, packs: tuple[Pack, ...], numbers: dict[int, int], moved: dict[int, int]) -> Image:
    """Join chunks that follow one another, in the image and in a frame, to runs."""
    image = Image(draft.size, packs, array("I"), array("I"), array("H"), array("H"))
    next_at = next_place = -1
    for at, old in zip(draft.at, draft.places, strict=True):
        number = moved.get(old, old)
        if at == next_at and number == next_place and number % FRAME_CHUNKS:
            image.count[-1] += 1
        else:
            pack, chunk = split(number)
            image.at.append(at)
            image.first.append(chunk)
            image.pack.append(numbers[pack])
            image.count.append(1)
        next_at, next_place = at + 1, number + 1
    return image
