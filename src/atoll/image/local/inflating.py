"""Streams of tar without their compression, whatever that is; forward only, in bounded memory."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol, cast

from atoll.errors import PreflightError
from atoll.image import compression
from atoll.image.oci.source import Stream
from atoll.image.refusing import refuse

__all__ = ["inflated", "kind_of"]

_CHUNK = 1 << 18
_HEAD = 512
_XZ_MEMORY = 256 << 20  # xz -9 needs 65 MiB
_ZSTD_WINDOW = 1 << 27  # zstd --long needs as much


class _Engine(Protocol):
    """What `bz2` and `lzma` have in common; it stands for one compressed stream of perhaps several."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib's decompressor as an ``_Engine``."""

    def __init__(self) -> None:
        self._engine = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._engine.eof

    @property
    def needs_input(self) -> bool:
        return not self._engine.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._engine.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._engine.decompress(self._engine.unconsumed_tail + data, max_length)


def kind_of(head: bytes) -> str:
    """The compression of an archive by its first 512 bytes; whatever names a tar has, it has none."""
    return "" if head[257:262] == b"ustar" else compression.kind_of(head)


class _Inflated:
    """Compressed streams one behind the other; zeros may follow them, as tapes have it."""

    def __init__(self, stream: Stream, kind: str) -> None:
        self._stream = stream
        self._kind = kind
        self._engine = self._next()

    def _next(self) -> _Engine:
        match self._kind:
            case "gzip":
                return _Gzip()
            case "bzip2":
                return cast("_Engine", bz2.BZ2Decompressor())
            case _:
                return cast("_Engine", lzma.LZMADecompressor(memlimit=_XZ_MEMORY))

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._engine.eof:
                data = self._engine.unused_data.lstrip(b"\0")
                while not data and (more := self._stream.read(_CHUNK)):
                    data = more.lstrip(b"\0")
                if not data:
                    return b""
                self._engine = self._next()
            elif self._engine.needs_input:
                data = self._stream.read(_CHUNK)
                if not data:
                    raise EOFError("the compressed stream ends early")
            if out := self._engine.decompress(data, size):
                return out


class _Headed:
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, stream: Stream) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)


class _Zstd:
    """A stream of the optional module, its errors as those of others."""

    def __init__(self, stream: Stream, error: type[Exception]) -> None:
        self._stream = stream
        self._error = error

    def read(self, size: int, /) -> bytes:
        try:
            return self._stream.read(size)
        except self._error as error:
            raise ValueError(str(error)) from error


@contextmanager
def inflated(stream: Stream) -> Iterator[Stream]:
    """A stream without its compression: none, gzip, bzip2, xz or zstd.

    Damage shows as what the libraries raise (``archive.damage_named``).

    Raises:
        ImageError: ``image.archive``: it is compressed otherwise.
        PreflightError: it is zstd, and the Python module for that is missing.
    """
    head = b""
    while len(head) < _HEAD and (data := stream.read(_HEAD - len(head))):
        head += data
    whole = _Headed(head, stream)
    kind = kind_of(head)
    match kind:
        case "":
            yield whole
        case "gzip" | "bzip2" | "xz":
            yield _Inflated(whole, kind)
        case "zstd":
            try:
                import zstandard  # noqa: PLC0415 - optional
            except ImportError:
                hint = "pip install zstandard, or unpack it with zstd -d first"
                raise PreflightError("zstd archives need the module zstandard", hint=hint) from None
            engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
            reader = engine.stream_reader(cast("IO[bytes]", whole), read_across_frames=True, closefd=False)
            with reader as plain:
                yield _Zstd(cast("Stream", plain), zstandard.ZstdError)
        case _:
            raise refuse(f"archives compressed by {kind} are not read", hint="use gzip, bzip2, xz or zstd")
