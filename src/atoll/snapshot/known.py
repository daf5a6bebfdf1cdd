"""Packs of earlier snapshots, of which a new one may use chunks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from atoll import store
from atoll.errors import StoreError
from atoll.snapshot.chunks import CHUNK, FRAME_CHUNKS
from atoll.snapshot.index import Index
from atoll.snapshot.pack import DamageError, Pack
from atoll.snapshot.reading import FrameReader, OpenPack

__all__ = ["KnownPack", "open_known"]

#: How many packs are looked at: each holds a descriptor and its digests in memory. The rest is stored anew.
_MOST = 64

#: A pack of which less than one chunk in so many is used is not kept alive for it: its file stays whole as
#: long as one snapshot has it, so a chain of snapshots would hold up to that many times what it needs.
_WORTH = 8

#: The file system has no hard links, or not there, or no more of them: link(2).
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}


class KnownPack:
    """A pack that lies in the new directory already, or is held open, so that nobody can take it away.

    Args:
        source: it.
        path: where it is, or will be, in the new directory.
        reader: for its frames; others may use it, too.
        linked: whether it is there already.
    """

    def __init__(self, source: OpenPack, path: Path, reader: FrameReader, *, linked: bool) -> None:
        self.pack = source.pack
        self.table = source.table
        self._source = source
        self._path = path
        self._linked = linked
        self._used = bytearray(self.pack.chunks)
        self._good: dict[int, bool] = {}
        self._reader = reader

    @property
    def used(self) -> bool:
        """Whether a chunk of it is."""
        return any(self._used)

    @property
    def is_worth_it(self) -> bool:
        """Whether enough of it is used."""
        return self._used.count(1) * _WORTH >= self.pack.chunks

    def use(self, chunk: int) -> bool:
        """Use a chunk, unless what is stored of its frame is damaged: nothing new shall rest on that."""
        frame = chunk // FRAME_CHUNKS
        good = self._good.get(frame)
        if good is None:
            good = self._good[frame] = self._is_good(frame)
        if good:
            self._used[chunk] = 1
        return good

    def _is_good(self, frame: int) -> bool:
        try:
            self._reader.stored(self._source, frame)
        except (DamageError, StoreError):
            return False
        return True

    def take_back(self) -> Iterator[tuple[int, memoryview]]:
        """Use none of its chunks any more.

        Yields:
            Each that was used: its number and its content, which stands until the next one.

        Raises:
            DamageError: it does not hold what its table says.
            StoreError: ``store.io``: it cannot be read any more.
        """
        for frame in range(self.pack.frames):
            first = frame * FRAME_CHUNKS
            slots = [slot for slot, used in enumerate(self._used[first : first + FRAME_CHUNKS]) if used]
            if slots:
                content = self._reader.content(self._source, frame, slots)
                for slot in slots:
                    yield first + slot, content[slot * CHUNK : (slot + 1) * CHUNK]
        self._used = bytearray(self.pack.chunks)

    def settle(self) -> None:
        """Have the file in the new directory if, and only if, it is used. Raises ``OSError``."""
        if not self.used:
            if self._linked:
                self._path.unlink()
        elif not self._linked:
            target = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                store.copy_data(self._source.fd, target)
                os.fsync(target)
            finally:
                os.close(target)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def open_known(directory: Path, indexes: Iterable[Index]) -> list[KnownPack]:
    """The packs of earlier snapshots that can be used for one in ``directory``.

    Left out are those that were removed meanwhile, that are damaged, and all but the first 64.

    Raises:
        StoreError: ``store.full``, ``store.unwritable`` or ``store.io``: of ``directory``.
    """
    known: dict[str, KnownPack] = {}
    reader = FrameReader()
    try:
        for index in indexes:
            for pack in index.packs:
                if pack.name not in known and len(known) < _MOST:
                    found = _open(directory, index.directory, pack, reader)
                    if found is not None:
                        known[pack.name] = found
    except BaseException:
        for found in known.values():
            found.close()
        raise
    return list(known.values())


def _open(directory: Path, old: Path, pack: Pack, reader: FrameReader) -> KnownPack | None:
    path = directory / pack.file
    source, linked = old / pack.file, True
    with store.refusing(path):
        try:
            os.link(source, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            linked = False
    try:
        return KnownPack(OpenPack(path if linked else source, pack), path, reader, linked=linked)
    except (DamageError, StoreError):
        if linked:
            path.unlink()
        return None
