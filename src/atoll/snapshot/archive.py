"""What an archive of a snapshot looks like: a tar of a strict kind (snapshot-archive.md). Pure."""

from __future__ import annotations

import re

import msgspec

from atoll.snapshot.index import FILE as INDEX

__all__ = [
    "END",
    "FORMAT",
    "HEADER",
    "INDEX",
    "LARGEST_RECORD",
    "MANIFEST",
    "SUM",
    "UNIT",
    "VERSION",
    "ArchiveError",
    "Header",
    "is_record",
    "member",
    "padding",
    "parse_member",
    "part_name",
]

#: Of the format that is written here.
VERSION = 1

#: What tells it from other tars.
FORMAT = "atoll-snapshot"

#: Names of members that are no files of a snapshot, or the first one of it.
HEADER, MANIFEST, SUM = "atoll-snapshot.json", "manifest.json", "sha256"

#: Bytes of which a tar consists.
UNIT = 512

#: What ends a tar.
END = bytes(2 * UNIT)

#: Bytes that a record of a snapshot has at most.
LARGEST_RECORD = 16 << 20

_OCTAL = re.compile(rb"[0-7]{11}\0")
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,98}")

#: Sizes that eleven octal digits cannot say have this bit, and are binary (as GNU tar and others write them).
_BINARY = 0x80
_LARGEST = 1 << 62


class ArchiveError(ValueError):
    """It is no archive of a snapshot, or one that was damaged or made to do harm."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive begins with.

    Attributes:
        format: ``atoll-snapshot``.
        version: of the format.
        id: of the snapshot.
        room: bytes that its files take at most, holes not counted.
        modules: SHA-256 of the kernel's modules that its guest has, if they are not in it; else empty.
    """

    format: str = FORMAT
    version: int = VERSION
    id: str
    room: int
    modules: str = ""


def is_record(name: str) -> bool:
    """Whether a file of a snapshot is a small record, which is sent as it is."""
    return name.endswith(".json")


def part_name(name: str, number: int) -> str:
    """The member that has a part of a sparse file."""
    return f"{name}.{number:08}"


def padding(size: int) -> int:
    """Bytes of zeroes behind a member of ``size`` bytes."""
    return -size % UNIT


def member(name: str, size: int) -> bytes:
    """The header of a member (POSIX.1-2017, pax, "ustar Interchange Format"): only these vary in it."""
    octal = size < 8**11
    length = b"%011o\0" % size if octal else bytes([_BINARY]) + size.to_bytes(11, "big")
    head = b"".join((
        name.encode().ljust(100, b"\0"),
        b"0000600\0" + b"0000000\0" * 2,
        length,
        b"00000000000\0",
        b" " * 8,
        b"0".ljust(101, b"\0"),
        b"ustar\x0000".ljust(72, b"\0"),
        b"0000000\0" * 2,
    )).ljust(UNIT, b"\0")  # fmt: skip
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def parse_member(head: bytes) -> tuple[str, int]:
    """Name and size of a member; its header is exactly the one that ``member`` makes of them.

    Raises:
        ArchiveError: it is another one.
    """
    name, length = head[:100].rstrip(b"\0"), head[124:136]
    size = int(length[:11], 8) if _OCTAL.fullmatch(length) else int.from_bytes(length[1:], "big")
    if not _NAME.fullmatch(name) or size > _LARGEST or member(name.decode(), size) != head:
        raise ArchiveError("a header in it is none of such a file")
    return name.decode(), size
