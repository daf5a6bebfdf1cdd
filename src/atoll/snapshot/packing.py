"""Writing a new pack: chunks in, frames compressed by several threads, a file out."""

from __future__ import annotations

import hashlib
import os
import threading
from array import array
from collections import deque
from concurrent.futures import Executor, Future
from pathlib import Path

from atoll.snapshot.chunks import CHUNK, DIGEST, FRAME
from atoll.snapshot.frames import Packer
from atoll.snapshot.pack import MAGIC, Pack, encode_table

__all__ = ["NewPack"]


class NewPack:
    """A pack that is being written. The same chunks in the same order give the same bytes.

    Args:
        directory: where.
        pool: compresses.
        depth: how many frames of 1 MiB may wait for it.
    """

    def __init__(self, directory: Path, pool: Executor, depth: int) -> None:
        self.digests = bytearray()
        self._name = os.urandom(8).hex()
        self._path = directory / f"{self._name}.pack"
        self._pool = pool
        self._depth = depth
        self._fd: int | None = None
        self._size = 0
        self._lengths = array("I")
        self._frames = bytearray()
        self._packing: deque[tuple[Future[tuple[bytes | memoryview, bytes]], memoryview]] = deque()
        self._free: list[memoryview] = []
        self._room = memoryview(bytearray(FRAME))
        self._fill = 0
        self._packers = threading.local()

    def append(self, chunk: memoryview, digest: bytes) -> int:
        """Store a chunk; its number. Raises ``OSError``."""
        number = len(self.digests) // DIGEST
        self.digests += digest
        end = self._fill + CHUNK
        self._room[self._fill : end] = chunk
        self._fill = end
        if end == FRAME:
            self._pack()
        return number

    def finish(self) -> Pack | None:
        """Write what is left and wait for the disk; None if there is nothing. Raises ``OSError``."""
        if self._fill:
            self._pack()
        while self._packing:
            self._write_frame()
        if self._fd is None:
            return None
        table = encode_table(self._lengths, self._frames, self.digests)
        self._write(table)
        os.fsync(self._fd)
        self.close()
        return Pack(self._name, len(self.digests) // DIGEST, self._size, hashlib.sha256(table).digest())

    def close(self) -> None:
        """Let go of the file, once nothing works on it any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _pack(self) -> None:
        """Have the frame compressed, and begin another."""
        frame = self._room[: self._fill]
        self._packing.append((self._pool.submit(self._packed, frame), self._room))
        while len(self._packing) >= self._depth or (self._packing and self._packing[0][0].done()):
            self._write_frame()
        self._room = self._free.pop() if self._free else memoryview(bytearray(FRAME))
        self._fill = 0

    def _packed(self, frame: memoryview) -> tuple[bytes | memoryview, bytes]:
        try:
            packer: Packer = self._packers.packer
        except AttributeError:
            packer = self._packers.packer = Packer()
        return packer.pack(frame)

    def _write_frame(self) -> None:
        packing, room = self._packing.popleft()
        stored, digest = packing.result()
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._write(MAGIC)
        self._lengths.append(len(stored))
        self._frames += digest
        self._write(stored)
        self._free.append(room)

    def _write(self, data: bytes | memoryview) -> None:
        assert self._fd is not None
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            self._size += count
            view = view[count:]
