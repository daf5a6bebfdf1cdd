"""Digests of files that are mostly holes: of what is in them, wherever their holes are."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll import store, threads
from atoll.errors import StoreError
from atoll.snapshot.chunks import read_into

__all__ = ["CHUNK", "begun", "digest", "hashed", "numbers"]

#: Bytes that are hashed as one; a chunk of zeroes counts as if it were a hole.
CHUNK = 1 << 20

_ZEROES = bytes(CHUNK)
_NUMBER = struct.Struct("<Q")


def digest(path: Path, step: Callable[[], None] = lambda: None) -> str:
    """SHA-256, in hexadecimal, over the size of a file and the number and SHA-256 of each chunk with data.

    Number and size are little-endian, 8 bytes. So a copy has the same digest on any file system, and holes
    cost nothing.

    Args:
        path: of the file.
        step: called before each chunk; what it raises ends the work.

    Raises:
        StoreError: ``store.missing`` or ``store.io``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _digest(fd, step)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise StoreError(f"{path} does not exist", code="missing") from error
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", code="io") from error


def begun(size: int) -> hashlib._Hash:
    """The digest of a file of ``size`` bytes; what ``hashed`` says of its chunks is still to be added."""
    return hashlib.sha256(_NUMBER.pack(size))


def hashed(number: int, chunk: memoryview) -> bytes:
    """What a chunk adds to the digest of its file: nothing if it is all zeroes."""
    if chunk == _ZEROES[: len(chunk)]:
        return b""
    return _NUMBER.pack(number) + hashlib.sha256(chunk).digest()


def _digest(fd: int, step: Callable[[], None]) -> str:
    size = os.fstat(fd).st_size
    whole = begun(size)
    rooms = threading.local()

    def part_of(number: int) -> bytes:
        try:
            room = rooms.room
        except AttributeError:
            room = rooms.room = memoryview(bytearray(CHUNK))
        begin = number * CHUNK
        chunk = room[: min(CHUNK, size - begin)]
        if read_into(fd, chunk, begin) < len(chunk):
            raise OSError(errno.EIO, "it became shorter")
        return hashed(number, chunk)

    with threads.in_order(part_of, numbers(fd)) as parts:
        for part in parts:
            step()
            whole.update(part)
    return whole.hexdigest()


def numbers(fd: int) -> Iterator[int]:
    """The chunks that are not wholly in holes (lseek(2), SEEK_DATA)."""
    following = 0
    for start, end in store.data_ranges(fd):
        for number in range(max(start // CHUNK, following), -(-end // CHUNK)):
            yield number
            following = number + 1
