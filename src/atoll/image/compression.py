"""The compressed forms in which kernels, their modules and packages come.

Sources: the kernel's scripts/Makefile.lib (what it packs with) and lib/decompress.c (the magic numbers); the
LZ4 project's lz4_Frame_format.md (legacy frame).
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import struct
import zlib
from types import ModuleType

from atoll import process
from atoll.errors import AtollError, ImageError, PreflightError

__all__ = ["LIMIT", "decompress", "kind_of"]

#: No kernel or module unpacks to more than this many bytes: what does is an attack or damage.
LIMIT = 512 * 1024 * 1024

_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x5d\0\0", "lzma"),
)
_LZ4_BLOCK = 8 * 1024 * 1024


def kind_of(data: bytes) -> str:
    """The compression that ``data`` begins with: gzip, xz, bzip2, lz4, zstd, lzma, or "" for none known."""
    return next((kind for magic, kind in _MAGICS if data.startswith(magic)), "")


def decompress(data: bytes, *, what: str, limit: int = LIMIT) -> bytes:
    """Unpack ``data``; bytes behind the end of the compressed stream are ignored, as the kernel appends some.

    Args:
        data: the compressed stream.
        what: its name, for errors.
        limit: bytes that the result may have.

    Raises:
        ImageError: ``image.compression``: it is truncated, damaged, too large or of no known kind.
        PreflightError: it is zstd, and neither a Python module nor the program for that is there.
    """
    kind = kind_of(data)
    try:
        match kind:
            case "gzip":
                return _drain(zlib.decompressobj(wbits=31), data, limit)
            case "xz" | "lzma":
                return _drain_lzma(lzma.LZMADecompressor(), data, limit)
            case "bzip2":
                return _drain_lzma(bz2.BZ2Decompressor(), data, limit)
            case "lz4":
                return _lz4_legacy(data, limit)
            case "zstd":
                return _zstd(data, what, limit)
            case _:
                raise ImageError(f"{what} is compressed in no known way", code="compression")
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
        raise ImageError(f"{what} is damaged or truncated ({kind}: {error})", code="compression") from error


def _drain(engine: zlib._Decompress, data: bytes, limit: int) -> bytes:
    out = engine.decompress(data, limit)
    if not engine.eof:
        raise ValueError("too large" if len(out) >= limit else "ends early")
    return out


def _drain_lzma(engine: lzma.LZMADecompressor | bz2.BZ2Decompressor, data: bytes, limit: int) -> bytes:
    out = engine.decompress(data, limit)
    if not engine.eof:
        raise ValueError("too large" if len(out) >= limit else "ends early")
    return out


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    """The frame that ``lz4 -l`` writes: blocks of at most 8 MiB, each behind its compressed size.

    The kernel's build appends the unpacked size (4 bytes), which looks like the size of one more block.
    """
    from lz4 import block  # noqa: PLC0415 - only kernels that use it need the library

    out: list[bytes] = []
    total = 0
    at = 4
    while len(data) - at > 4:
        (size,) = struct.unpack_from("<I", data, at)
        if size == 0 or size > len(data) - at - 4:
            raise ValueError("a block reaches beyond the end")
        try:
            piece: bytes = block.decompress(data[at + 4 : at + 4 + size], uncompressed_size=_LZ4_BLOCK)
        except block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        out.append(piece)
        total += len(piece)
        if total > limit:
            raise ValueError("too large")
        at += 4 + size
    if not out:
        raise ValueError("ends early")
    return b"".join(out)


def _zstd(data: bytes, what: str, limit: int) -> bytes:
    module = _zstd_module()
    if module is not None:
        try:
            out: bytes = module.ZstdDecompressor().decompressobj().decompress(data)
        except module.ZstdError as error:
            raise ValueError(str(error)) from error
    else:
        try:
            program = process.require("zstd", hint="apt install zstd, or pip install zstandard")
            out = process.run([program, "-dcq", "--no-check"], stdin=data).stdout
        except PreflightError:
            raise
        except AtollError as error:
            raise ImageError(f"{what} is damaged or truncated (zstd)", code="compression") from error
    if len(out) > limit or not out:
        raise ValueError("of no plausible size")
    return out


def _zstd_module() -> ModuleType | None:
    """The ``zstandard`` package, where somebody has installed it: Atoll itself does not need it."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        return None
