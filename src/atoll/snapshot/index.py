"""The index of a snapshot's packs: which chunk of which pack belongs where (snapshot-format.md)."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.snapshot.chunks import CHUNK, FRAME_CHUNKS, chunks_of
from atoll.snapshot.pack import MAGIC as PACK_MAGIC
from atoll.snapshot.pack import Fault, Pack, native, refusal, unreadable

__all__ = ["FILE", "LARGEST", "Image", "Index", "decode", "encode", "load"]

#: Name of the file.
FILE = "index"

#: What it begins with; the last byte is the version.
MAGIC = b"ATOLLIX\x01"

#: Bytes of the largest image: chunks are counted by 32 bits.
LARGEST = CHUNK << 32

_HEAD = struct.Struct("<8sII")
_PACK = struct.Struct("<8sIQ32s")
_IMAGE = struct.Struct("<QI")

#: Bytes of a run.
_RUN = 12


@dataclass(frozen=True, slots=True)
class Image:
    """An image: what is not named here is zero.

    It has runs, each of up to 64 chunks that follow one another in the image and in a frame. The arrays have
    one number for each run.

    Attributes:
        size: in bytes.
        packs: where its chunks are.
        at: the first chunk of a run in the image; ascending.
        first: the same chunk in its pack.
        pack: which of ``packs``.
        count: how many chunks.
    """

    size: int
    packs: tuple[Pack, ...]
    at: array[int]
    first: array[int]
    pack: array[int]
    count: array[int]

    @property
    def data(self) -> int:
        """Bytes that are not in zero chunks, duplicates counted."""
        return sum(self.count) * CHUNK


@dataclass(frozen=True, slots=True)
class Index:
    """All that is needed to find what was stored.

    Attributes:
        directory: where the packs lay when it was written or loaded.
        digest: SHA-256 of the index file, hexadecimal.
        packs: those in the directory.
        images: in the order in which they were added.
    """

    directory: Path
    digest: str
    packs: tuple[Pack, ...]
    images: tuple[Image, ...]


def encode(packs: Sequence[Pack], images: Sequence[Image]) -> bytes:
    """The index file."""
    parts = [_HEAD.pack(MAGIC, len(packs), len(images))]
    parts += [_PACK.pack(bytes.fromhex(pack.name), pack.chunks, pack.size, pack.digest) for pack in packs]
    for image in images:
        parts.append(_IMAGE.pack(image.size, len(image.at)))
        columns = (image.at, image.first, image.pack, image.count)
        parts += [native(array(column.typecode, column)).tobytes() for column in columns]
    return b"".join(parts)


def load(directory: Path, digest: str) -> Index:
    """Read the index of a snapshot.

    Args:
        directory: the snapshot's.
        digest: as ``Index.digest`` was when it was written; the snapshot's manifest keeps it.

    Raises:
        StoreError: ``store.corrupt`` or ``store.io``.
    """
    path = directory / FILE
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise refusal(directory, Fault(FILE, 0, "it has another digest"))
        packs, images = decode(data)
    except FileNotFoundError as error:
        raise refusal(directory, Fault(FILE, 0, "it is missing")) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise refusal(directory, Fault(FILE, 0, str(error))) from error
    return Index(directory, digest, packs, images)


def decode(data: bytes) -> tuple[tuple[Pack, ...], tuple[Image, ...]]:
    """Read an index file that may say anything.

    Raises:
        ValueError: what is wrong with it.
    """
    source = _Source(data)
    magic, pack_count, image_count = source.take(_HEAD)
    if magic != MAGIC:
        raise ValueError("it does not begin as an index does")
    packs = tuple(_decode_pack(source) for _ in range(source.bounded(pack_count, _PACK.size)))
    if len({pack.name for pack in packs}) != len(packs):
        raise ValueError("a pack is named twice")
    images = tuple(_decode_image(source, packs) for _ in range(source.bounded(image_count, _IMAGE.size)))
    if source.left:
        raise ValueError(f"{source.left} bytes follow its end")
    return packs, images


class _Source:
    """Bytes that are taken one part after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def bounded(self, count: int, size: int) -> int:
        """``count``, unless so many parts of at least ``size`` bytes cannot follow."""
        if count * size > self.left:
            raise ValueError("it is cut off")
        return count

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        self.bounded(1, layout.size)
        values = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return values

    def column(self, typecode: str, count: int) -> array[int]:
        values: array[int] = array(typecode)
        end = self._at + self.bounded(count, values.itemsize) * values.itemsize
        values.frombytes(self._data[self._at : end])
        self._at = end
        return native(values)


def _decode_pack(source: _Source) -> Pack:
    name, chunks, size, digest = source.take(_PACK)
    pack = Pack(name.hex(), chunks, size, digest)
    least = len(PACK_MAGIC) + pack.table_size + pack.frames
    if not chunks or not least <= size <= len(PACK_MAGIC) + pack.table_size + chunks * CHUNK:
        raise ValueError(f"{pack.file} cannot have {chunks} chunks in {size} bytes")
    return pack


def _decode_image(source: _Source, packs: tuple[Pack, ...]) -> Image:
    size, runs = source.take(_IMAGE)
    source.bounded(runs, _RUN)
    image = Image(size, packs, *(source.column(typecode, runs) for typecode in "IIHH"))
    if size > LARGEST:
        raise ValueError(f"an image cannot have {size} bytes")
    _check_runs(image)
    return image


def _check_runs(image: Image) -> None:
    """Whether all runs lie in the image, ascending and apart, and in one frame of a pack."""
    chunks = [pack.chunks for pack in image.packs]
    free = 0
    for at, first, pack, count in zip(image.at, image.first, image.pack, image.count, strict=True):
        if at < free or not 0 < count <= FRAME_CHUNKS - first % FRAME_CHUNKS:
            raise ValueError(f"the run at chunk {at} overlaps another, or leaves its frame")
        if pack >= len(chunks) or first + count > chunks[pack]:
            raise ValueError(f"the run at chunk {at} is in no pack")
        free = at + count
    if free > chunks_of(image.size):
        raise ValueError("a run leaves its image")
