"""Reading tar archives that nobody vouches for, forward only and within limits.

tarfile(3) trusts sizes: a header that claims gigabytes of extended attributes is read into memory. Here each
read is bounded, nothing seeks backward, and what an archive claims is added up before it is believed.
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast

from atoll.errors import ImageError, PreflightError
from atoll.image import compression
from atoll.image.refusing import refuse

__all__ = [
    "CHUNK",
    "MOST_BYTES",
    "MOST_ENTRIES",
    "Budget",
    "Readable",
    "damage_named",
    "decompressed",
    "entries",
]

#: Bytes that are copied at once.
CHUNK = 1 << 18

#: What an image may hold at most.
MOST_ENTRIES, MOST_BYTES = 2_000_000, 64 << 30

_READ_MOST = 1 << 20  # extended headers are read at once; none that is honest is larger
_XZ_MEMORY = 256 << 20  # xz -9 needs 65 MiB

#: What tarfile and the decompressors raise on hostile input, by experience.
_DAMAGE = (
    *(tarfile.TarError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError),
    *(lzma.LZMAError, zlib.error, gzip.BadGzipFile),
)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


class _Forward:
    """A stream as tarfile wants it: a position, and seeking forward by reading."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("an entry lies before its predecessor")
        while self._position < position:
            if not self.read(min(CHUNK, position - self._position)):
                raise tarfile.ReadError("it ends early")

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _READ_MOST:
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts: list[bytes] = []
        while size and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        self.last = b"".join(parts)
        return self.last


class _Zstd:
    """A stream of the optional module, its errors as those of others."""

    def __init__(self, stream: Readable, error: type[Exception]) -> None:
        self._stream = stream
        self._error = error

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except self._error as error:
            raise ValueError(str(error)) from error


class _Xz:
    """Like `lzma.LZMAFile`, but a stream that wants much memory is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._engine = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def read(self, size: int) -> bytes:
        while not self._engine.eof:
            data = self._file.read(CHUNK) if self._engine.needs_input else b""
            if not data and self._engine.needs_input:
                raise EOFError("the compressed stream ends early")
            if out := self._engine.decompress(data, size):
                return out
        return b""


@contextmanager
def decompressed(file: IO[bytes]) -> Iterator[Readable]:
    """The content of ``file``, unpacked if it is compressed: none, gzip, xz or zstd.

    Raises:
        ImageError: ``image.archive``: it is compressed otherwise.
        PreflightError: it is zstd, and the Python module for that is missing.
    """
    kind = compression.kind_of(file.read(8))
    file.seek(0)
    match kind:
        case "":
            yield file
        case "gzip":
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream
        case "xz":
            yield _Xz(file)
        case "zstd":
            try:
                import zstandard  # noqa: PLC0415 - optional
            except ImportError:
                hint = "pip install zstandard, or unpack the file with zstd -d first"
                raise PreflightError("zstd archives need the module zstandard", hint=hint) from None
            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file) as stream:
                yield _Zstd(cast("Readable", stream), zstandard.ZstdError)
        case _:
            raise refuse(f"archives compressed by {kind} are not read", hint="use gzip, xz or zstd")


class Budget:
    """What is left of the limits; several archives of one image share it."""

    def __init__(self, *, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES) -> None:
        self.most_entries, self.most_bytes = most_entries, most_bytes
        self.entries = self.bytes = 0

    def spend(self, size: int) -> None:
        """Count one entry of ``size`` bytes. Raises ``ImageError``: ``image.archive``: it is too much."""
        self.entries += 1
        self.bytes += size
        if self.entries > self.most_entries:
            raise refuse(f"the archive has more than {self.most_entries} entries")
        if size < 0 or self.bytes > self.most_bytes:
            raise refuse(f"the archive claims more than {self.most_bytes >> 20} MiB of files")


def entries(stream: Readable, name: str, budget: Budget) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Each entry and a reader of its content, which is valid until the next entry.

    Args:
        stream: the archive, unpacked.
        name: of the archive, for errors.
        budget: what it may claim.

    Raises:
        ImageError: ``image.archive``: it is no tar, damaged, or claims too much.
    """
    forward = _Forward(stream)
    with damage_named(name):
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", forward), encoding="utf-8", errors="surrogateescape")
    while True:
        with damage_named(name):
            member = tar.next()
            if member is None and (len(forward.last) != 512 or any(forward.last)):
                raise tarfile.ReadError("it ends early")  # tarfile takes a damaged header for the end
        if member is None:
            return
        vars(tar)["members"].clear()  # else all of them stay in memory
        budget.spend(member.size)
        with damage_named(name):
            content = tar.extractfile(member) if member.isreg() else None
        yield member, content or io.BytesIO()


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Tell what libraries raise on damaged input as one error."""
    try:
        yield
    except ImageError:
        raise
    except _DAMAGE as error:
        raise refuse(f"{name} is no tar archive, or damaged: {error}") from error
