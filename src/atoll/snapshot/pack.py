"""Pack files: chunks, compressed in frames, and the table that says what is where (snapshot-format.md)."""

from __future__ import annotations

import hashlib
import sys
from array import array
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec

from atoll.errors import StoreError
from atoll.snapshot.chunks import CHUNK, DIGEST, FRAME_CHUNKS

__all__ = [
    "MAGIC",
    "DamageError",
    "Fault",
    "Pack",
    "Table",
    "decode_table",
    "encode_table",
    "native",
    "refusal",
    "unreadable",
]

#: What a pack begins with; the last byte is the version.
MAGIC = b"ATOLLPK\x01"


class Fault(msgspec.Struct, frozen=True, order=True):
    """What is wrong with a file of a snapshot.

    Attributes:
        file: its name in the snapshot's directory.
        offset: the first byte of the part that is wrong.
        what: a sentence.
    """

    file: str
    offset: int
    what: str


class DamageError(Exception):
    """A file is not as it was written."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.what)
        self.fault = fault


class Pack(msgspec.Struct, frozen=True):
    """A pack as an index knows it.

    Attributes:
        name: 16 hexadecimal digits; the file is ``<name>.pack``.
        chunks: how many it holds.
        size: bytes of the file.
        digest: SHA-256 of its table.
    """

    name: str
    chunks: int
    size: int
    digest: bytes

    @property
    def file(self) -> str:
        """Its name in the snapshot's directory."""
        return f"{self.name}.pack"

    @property
    def frames(self) -> int:
        """How many frames it has: all but the last are full."""
        return -(-self.chunks // FRAME_CHUNKS)

    @property
    def table_size(self) -> int:
        """Bytes of its table."""
        return self.frames * (4 + DIGEST) + self.chunks * DIGEST

    def frame_chunks(self, frame: int) -> int:
        """How many chunks are in a frame."""
        return min(FRAME_CHUNKS, self.chunks - frame * FRAME_CHUNKS)

    def fault(self, offset: int, what: str) -> Fault:
        """What is wrong with its file."""
        return Fault(self.file, offset, what)


@dataclass(frozen=True, slots=True)
class Table:
    """What a pack says of itself.

    Attributes:
        starts: where each frame starts in the file, and where the last one ends, in bytes.
        frames: SHA-256 of what is stored of each frame, one after the other.
        chunks: SHA-256 of each chunk, one after the other.
    """

    starts: array[int]
    frames: bytes
    chunks: bytes

    @property
    def lengths(self) -> array[int]:
        """How many bytes of the file each frame takes."""
        return array("I", (end - start for start, end in pairwise(self.starts)))

    def frame_digest(self, frame: int) -> bytes:
        """That of what is stored of a frame."""
        return self.frames[frame * DIGEST : (frame + 1) * DIGEST]

    def chunk_digest(self, chunk: int) -> bytes:
        """That of a chunk, by its number in the pack."""
        return self.chunks[chunk * DIGEST : (chunk + 1) * DIGEST]


def refusal(directory: Path, fault: Fault) -> StoreError:
    """The error for a snapshot that is damaged."""
    message = f"{directory / fault.file} is corrupt: {fault.what}, at byte {fault.offset}"
    hint = "the snapshot is damaged and was kept as it is: use another"
    return StoreError(message, code="corrupt", hint=hint)


def unreadable(path: Path, error: OSError) -> StoreError:
    """The error for a file that cannot be read."""
    return StoreError(f"cannot read {path}: {error.strerror}", code="io")


def native(values: array[int]) -> array[int]:
    """Turn little-endian numbers into this machine's, or back, in place."""
    if sys.byteorder == "big":
        values.byteswap()
    return values


def encode_table(lengths: array[int], frames: bytes | bytearray, chunks: bytes | bytearray) -> bytes:
    """The table of frames of ``lengths`` bytes with these digests (see ``Table``)."""
    return b"".join((native(array("I", lengths)).tobytes(), frames, chunks))


def decode_table(data: bytes | bytearray, pack: Pack) -> Table:
    """Read a table that may say anything.

    Raises:
        DamageError: it is another one than ``pack`` has, or its frames do not fill the file.
    """
    at = pack.size - pack.table_size
    if hashlib.sha256(data).digest() != pack.digest:
        raise DamageError(pack.fault(at, "its table has another digest"))
    lengths = native(array("I", bytes(data[: 4 * pack.frames])))
    starts = array("Q", accumulate(lengths, initial=len(MAGIC)))
    fits = all(0 < length <= pack.frame_chunks(frame) * CHUNK for frame, length in enumerate(lengths))
    if not fits or starts[-1] != at:
        raise DamageError(pack.fault(at, "its frames do not fill it"))
    digests = (4 + DIGEST) * pack.frames
    return Table(starts, bytes(data[4 * pack.frames : digests]), bytes(data[digests:]))
