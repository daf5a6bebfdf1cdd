"""Packs that are open, and what is in their frames."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from atoll.snapshot.chunks import CHUNK, FRAME, FRAME_CHUNKS, read_into
from atoll.snapshot.frames import Unpacker
from atoll.snapshot.pack import MAGIC, DamageError, Pack, Table, decode_table, unreadable

__all__ = ["FrameReader", "OpenPack"]


class OpenPack:
    """A pack file whose table was read and checked. Several threads may use it.

    Raises:
        DamageError: it is missing, or no pack, or another one, or cut off, or too long.
        StoreError: ``store.io``: it cannot be read.
    """

    def __init__(self, path: Path, pack: Pack) -> None:
        self.pack = pack
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DamageError(pack.fault(0, "it is missing")) from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            self.table = self._read_table()
        except OSError as error:
            self.close()
            raise unreadable(path, error) from error
        except BaseException:
            self.close()
            raise

    def _read_table(self) -> Table:
        size = os.fstat(self.fd).st_size
        if size != self.pack.size:
            offset = min(size, self.pack.size)
            raise DamageError(self.pack.fault(offset, f"it has {size} bytes, not {self.pack.size}"))
        if os.pread(self.fd, len(MAGIC), 0) != MAGIC:
            raise DamageError(self.pack.fault(0, "it does not begin as a pack does"))
        data = bytearray(self.pack.table_size)
        read_into(self.fd, memoryview(data), size - len(data))
        return decode_table(data, self.pack)

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FrameReader:
    """Reads frames, each into the same memory: 2 MiB. For one thread."""

    def __init__(self) -> None:
        self._unpacker = Unpacker()
        self._stored = memoryview(mmap.mmap(-1, FRAME))  # takes memory only as far as it is used
        self._content = memoryview(mmap.mmap(-1, FRAME))

    def stored(self, source: OpenPack, frame: int) -> memoryview:
        """What is stored of a frame, verified. It stands until the next call.

        Raises:
            DamageError: it has another digest.
            StoreError: ``store.io``.
        """
        stored = self._read(source, frame)
        if hashlib.sha256(stored).digest() != source.table.frame_digest(frame):
            raise DamageError(source.pack.fault(source.table.starts[frame], "a frame has another digest"))
        return stored

    def content(self, source: OpenPack, frame: int, slots: Iterable[int]) -> memoryview:
        """The chunks of a frame. It stands until the next call.

        Args:
            source: the pack.
            frame: which of its frames.
            slots: which chunks of the frame are verified.

        Raises:
            DamageError: it cannot be decompressed, or a chunk has another digest.
            StoreError: ``store.io``.
        """
        offset = source.table.starts[frame]
        content = self._content[: source.pack.frame_chunks(frame) * CHUNK]
        if not self._unpacker.unpack(self._read(source, frame), content):
            raise DamageError(source.pack.fault(offset, "a frame cannot be decompressed"))
        digests, sha256 = source.table.chunk_digest, hashlib.sha256
        first = frame * FRAME_CHUNKS
        for slot in slots:
            if sha256(content[slot * CHUNK : (slot + 1) * CHUNK]).digest() != digests(first + slot):
                raise DamageError(source.pack.fault(offset, f"chunk {slot} of a frame has another digest"))
        return content

    def _read(self, source: OpenPack, frame: int) -> memoryview:
        start, end = source.table.starts[frame], source.table.starts[frame + 1]
        try:
            count = read_into(source.fd, self._stored[: end - start], start)
        except OSError as error:
            raise unreadable(source.path, error) from error
        return self._stored[:count]
