"""EROFS images: made by mkfs.erofs, and their superblock read so that damage is named before a boot.

Source of the superblock's layout: the kernel's fs/erofs/erofs_fs.h.
"""

from __future__ import annotations

import functools
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from atoll import process
from atoll.errors import ImageError, ProcessError, StoreError
from atoll.events import Emit, ignore

__all__ = [
    "HAS_CHECKSUM",
    "HEAD",
    "INSTALL_HINT",
    "MAGIC",
    "OFFSET",
    "Superblock",
    "check_file",
    "make",
    "parse",
    "tool_version",
    "with_checksum",
]

INSTALL_HINT = "apt install erofs-utils"

#: Bytes from the beginning of an image that ``parse`` wants to see.
HEAD = 4096

#: Where the superblock lies, and what it begins with.
OFFSET, MAGIC = 1024, 0xE0F5E1E2

#: It has a checksum.
HAS_CHECKSUM = 1

_SIZE = 128


class Superblock(msgspec.Struct, frozen=True):
    """What the superblock says.

    Attributes:
        block_size: in bytes.
        blocks: their number; the image has at least ``block_size * blocks`` bytes.
        inodes: number of files.
        built: seconds since the epoch.
        identity: the file system's UUID.
    """

    block_size: int
    blocks: int
    inodes: int
    built: int
    identity: uuid.UUID


@functools.cache
def _crc_table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli), reflected."""
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _crc32c(data: bytes | bytearray) -> int:
    """As the kernel's crc32c(~0, data): without the inversion at the end."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def _checksum(covered: bytes) -> int:
    """The checksum of a superblock and what is behind it in its block, with its own field as zeros."""
    return _crc32c(covered[:4] + bytes(4) + covered[8:])


def with_checksum(block: bytes) -> bytes:
    """A first block whose superblock has a checksum, with that filled in."""
    return block[: OFFSET + 4] + _checksum(block[OFFSET:]).to_bytes(4, "little") + block[OFFSET + 8 :]


def parse(head: bytes, size: int, *, name: str, checksum: bool = True) -> Superblock:
    """Read and check a superblock.

    Args:
        head: the first ``HEAD`` bytes of the image.
        size: the image's size in bytes.
        name: the image's name, for errors.
        checksum: verify the superblock's checksum, where it has one (0.5 ms).

    Raises:
        ImageError: ``image.corrupt``: it is truncated, damaged or no EROFS.
    """
    if len(head) < OFFSET + _SIZE:
        raise ImageError(f"{name} is truncated: it has {size} bytes", code="corrupt")
    magic, found, compatible, bits, _slots, _root, inodes, built = struct.unpack_from(
        "<IIIBBHQQ", head, OFFSET
    )
    if magic != MAGIC:
        raise ImageError(f"{name} is no EROFS image", code="corrupt")
    if not 9 <= bits <= 16:
        raise ImageError(f"{name} is damaged: its block size is 2^{bits}", code="corrupt")
    (blocks,) = struct.unpack_from("<I", head, OFFSET + 36)
    if blocks << bits > size:
        message = f"{name} is truncated: it has {size} of {blocks << bits} bytes"
        raise ImageError(message, code="corrupt")
    if checksum and compatible & HAS_CHECKSUM:
        end = max(1 << bits, OFFSET + _SIZE) if 1 << bits > OFFSET else OFFSET + (1 << bits)
        if len(head) >= end and _checksum(head[OFFSET:end]) != found:
            raise ImageError(f"{name} is damaged: its superblock fails its checksum", code="corrupt")
    identity = uuid.UUID(bytes=head[OFFSET + 48 : OFFSET + 64])
    return Superblock(1 << bits, blocks, inodes, built, identity)


def check_file(path: Path, *, checksum: bool = True) -> Superblock:
    """``parse`` of the image at ``path``.

    Raises:
        ImageError: ``image.corrupt``, as ``parse``, or it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD)
            size = file.seek(0, 2)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", code="corrupt") from error
    return parse(head, size, name=str(path), checksum=checksum)


def tool_version() -> str:
    """The version of erofs-utils, as ``1.5``; "" if it says none.

    Raises:
        PreflightError: they are not installed.
    """
    done = process.run([process.require("dump.erofs", hint=INSTALL_HINT), "-V"])  # mkfs.erofs 1.5 has no flag
    words = (done.stdout + done.stderr).decode(errors="replace").split()
    return next((word for word in words if word[:1].isdigit()), "")


def make(
    source: Path,
    output: Path,
    *,
    epoch: int,
    identity: uuid.UUID,
    compression: str = "lz4hc",
    cluster: int = 16384,
    root_owned: bool = False,
    xattrs: bool = True,
    exclude: str = "",
    prefix: Sequence[str] = (),
    emit: Emit = ignore,
) -> None:
    """Make the EROFS image of a directory: the same tree gives the same bytes.

    Args:
        source: the directory that becomes the root.
        output: the image.
        epoch: the date of every file, in seconds since the epoch.
        identity: UUID of the file system.
        compression: ``lz4``, ``lz4hc`` (10 % smaller, as fast to read), or "" for none.
        cluster: bytes that are compressed together at most; larger is smaller on disk but reads more for
            one page (measured on Debian: 4096 56.3 MB, 16384 51.9 MB, 65536 49.5 MB).
        root_owned: make root own every file.
        xattrs: keep extended attributes (file capabilities are such).
        exclude: regular expression of paths, relative to ``source``, to leave out.
        prefix: words before the command, to run it in another user namespace.
        emit: told of the command.

    Raises:
        PreflightError: mkfs.erofs is missing.
        ImageError: ``image.build``: it failed.
        StoreError: ``store.full``: the disk is full.
    """
    program = process.require("mkfs.erofs", hint=INSTALL_HINT)
    argv = [*prefix, program, "--quiet", f"-T{epoch}", f"-U{identity}"]
    if compression:
        argv += [f"-z{compression}", f"-C{cluster}"]
    if root_owned:
        argv.append("--all-root")
    if not xattrs:
        argv.append("-x-1")
    if exclude:
        argv.append(f"--exclude-regex={exclude}")
    try:
        process.run([*argv, str(output), str(source)], emit=emit)
    except ProcessError as error:
        if "No space left" in error.detail:
            hint = "free some space, or choose another place with ATOLL_DATA_DIR and ATOLL_CACHE_DIR"
            raise StoreError(f"no space left to write {output}", code="full", hint=hint) from error
        raise ImageError(f"cannot make {output}: {error}", code="build", detail=error.detail) from error
