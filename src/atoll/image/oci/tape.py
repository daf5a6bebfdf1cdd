"""The tape of a layer: each byte of its tar that is no content of a file, and where the contents lie.

With it and the image the same tar, with the same digest, can be made at any time; nothing is stored twice.
The tape is compressed by zlib (RFC 1950). It has steps: two lengths, so many bytes that are no content, and
so many pieces of the image that stand behind them.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from atoll.errors import ImageError

__all__ = ["LONGEST", "Pieces", "Tape", "steps_of", "tape_of", "tar_of"]

#: Bytes that are no content in one step, about.
LONGEST = 4 << 20

#: Offset in the image and length of contents.
Pieces = tuple[tuple[int, int], ...]

_STEP = struct.Struct("<II")
_PIECE = struct.Struct("<QQ")
_MOST_PIECES = 1 << 21
_CHUNK = 1 << 20


def tape_of(place: Path) -> Path:
    """The file of a layer's tape."""
    return place.with_suffix(".tape")


class Tape:
    """A tape that is written. Methods raise ``OSError``."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._engine = zlib.compressobj(1)

    def add(self, raw: bytes | bytearray, pieces: Pieces) -> None:
        """Add a step."""
        step = _STEP.pack(len(raw), len(pieces)) + raw + b"".join(_PIECE.pack(*piece) for piece in pieces)
        self._file.write(self._engine.compress(step))

    def close(self) -> None:
        """It is whole."""
        self._file.write(self._engine.flush())
        self._file.close()

    def abandon(self) -> None:
        """Leave it as it is; nothing happens if it is closed."""
        self._file.close()


def steps_of(place: Path) -> Iterator[tuple[bytes, Pieces]]:
    """The steps on the tape of a layer.

    Args:
        place: of the layer's files, without their endings.

    Raises:
        ImageError: ``image.corrupt``.
    """
    path = tape_of(place)
    try:
        with path.open("rb") as file:
            engine = zlib.decompressobj()
            buffer = bytearray()
            while step := _next(file.fileno(), engine, buffer):
                yield step
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _corrupt(path, error) from error


def _next(fd: int, engine: zlib._Decompress, buffer: bytearray) -> tuple[bytes, Pieces] | None:
    """The next step; None at the end."""
    _fill(fd, engine, buffer, _STEP.size)
    if not buffer:
        return None
    length, count = _STEP.unpack_from(buffer)
    if length > 2 * LONGEST or count > _MOST_PIECES:
        raise EOFError("a length on it is none")
    start = _STEP.size + length
    end = start + count * _PIECE.size
    _fill(fd, engine, buffer, end)
    raw, pieces = bytes(buffer[_STEP.size : start]), tuple(_PIECE.iter_unpack(buffer[start:end]))
    if len(raw) != length or len(pieces) != count:
        raise EOFError("it ends early")
    del buffer[:end]
    return raw, pieces


def _fill(fd: int, engine: zlib._Decompress, buffer: bytearray, count: int) -> None:
    while len(buffer) < count and not engine.eof:
        data = engine.unconsumed_tail or os.read(fd, _CHUNK)
        if not data:
            raise EOFError("it ends early")
        buffer += engine.decompress(data, _CHUNK)


def tar_of(place: Path, root: int) -> Iterator[bytes]:
    """The tar of a layer again, in pieces.

    Args:
        place: of the layer's files, without their endings.
        root: a descriptor of the image.

    Raises:
        ImageError: ``image.corrupt``.
    """
    for raw, pieces in steps_of(place):
        if raw:
            yield raw
        for offset, length in pieces:
            at, end = offset, offset + length
            while at < end:
                data = os.pread(root, min(end - at, _CHUNK), at)
                if not data:
                    raise _corrupt(place.parent, EOFError("the image ends early"))
                yield data
                at += len(data)


def _corrupt(place: Path, error: Exception) -> ImageError:
    return ImageError(f"{place} is damaged: {error}", code="corrupt", hint="pull or import the image again")
