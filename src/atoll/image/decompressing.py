"""Streams of layers and archives without their compression, however much each byte of them unpacks to.

Every read gives a bounded piece, so that a stream that unpacks to terabytes costs no memory; whoever reads
counts. Formats: gzip (RFC 1952, also of several members), zstd (RFC 8878), xz and bzip2.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import IO, Protocol, cast

from atoll.errors import PreflightError
from atoll.image import compression
from atoll.image.refusing import refuse

__all__ = ["CHUNK", "Readable", "decompressed"]

#: Bytes that are read at once.
CHUNK = 1 << 18

_XZ_MEMORY = 256 << 20  # xz -9 needs 65 MiB
_ZSTD_WINDOW = 1 << 27  # what zstd itself accepts without being asked
_MAGIC = 8


class Readable(Protocol):
    """A stream of bytes; an empty piece is its end."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""


class _Begun:
    """A stream of which the beginning was read already."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        if not self._head:
            return self._rest.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data


class _Engine(Protocol):
    """What unpacks one member of a stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


class _Unpacked:
    """A stream of members, one behind the other, perhaps with zeros behind the last.

    Args:
        rest: the stream.
        kind: of the compression.
    """

    def __init__(self, rest: Readable, kind: str) -> None:
        self._rest = rest
        self._kind = kind
        self._engine = self._begun()
        self._input = b""

    def _begun(self) -> _Engine:
        match self._kind:
            case "gzip":
                return zlib.decompressobj(wbits=31)
            case "xz":
                return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            case _:
                return bz2.BZ2Decompressor()

    def read(self, size: int) -> bytes:
        try:
            return self._next(size)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise refuse(f"a {self._kind} stream is damaged: {error}") from error

    def _next(self, size: int) -> bytes:
        while True:
            if self._engine.eof:
                self._input = self._engine.unused_data or self._input
                if not self._another():
                    return b""
            wants = not self._input and getattr(self._engine, "needs_input", True)
            data = self._rest.read(CHUNK) if wants else self._input
            if wants and not data:
                raise EOFError("it ends early")
            out = self._decompress(data, size)
            if out:
                return out

    def _decompress(self, data: bytes, size: int) -> bytes:
        engine = self._engine
        out: bytes = engine.decompress(data, size)  # type: ignore[attr-defined]
        self._input = getattr(engine, "unconsumed_tail", b"")
        return out

    def _another(self) -> bool:
        """Begin with the next member, if there is one: zeros may stand behind the last."""
        while not self._input.strip(b"\0"):
            self._input = self._rest.read(CHUNK)
            if not self._input:
                return False
        self._input = self._input.lstrip(b"\0")
        self._engine = self._begun()
        return True


class _Zstd:
    """A stream of the optional module, its errors as those of others."""

    def __init__(self, rest: Readable) -> None:
        try:
            import zstandard  # noqa: PLC0415 - optional
        except ImportError:
            hint = "pip install zstandard, or have the image compressed by gzip"
            raise PreflightError("zstd needs the module zstandard", hint=hint) from None
        self._error = zstandard.ZstdError
        engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        source = cast("IO[bytes]", _Watched(rest))
        self._stream = engine.stream_reader(source, read_across_frames=True, closefd=False)

    def read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except self._error as error:
            raise refuse(f"a zstd stream is damaged: {error}") from error


class _Watched:
    """A stream as the module wants it."""

    def __init__(self, rest: Readable) -> None:
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        return self._rest.read(CHUNK if size < 0 else size)


def decompressed(stream: Readable) -> Readable:
    """``stream`` unpacked, if it is compressed, as its first bytes say.

    Raises:
        ImageError: ``image.archive``: it is compressed otherwise; so do reads if it is damaged or ends early.
        PreflightError: it is zstd, and the Python module for that is missing.
    """
    head = b""
    while len(head) < _MAGIC and (data := stream.read(_MAGIC - len(head))):
        head += data
    kind = compression.kind_of(head)
    begun = _Begun(head, stream)
    match kind:
        case "":
            return begun
        case "gzip" | "xz" | "bzip2":
            return _Unpacked(begun, kind)
        case "zstd":
            return _Zstd(begun)
        case _:
            raise refuse(f"archives compressed by {kind} are not read", hint="use gzip, xz, zstd or bzip2")
