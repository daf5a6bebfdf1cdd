"""Headers of tar entries, written so that nothing is lost and the same entry gives the same bytes. Pure.

Format: POSIX ustar, and pax extended headers (pax(1), "Extended header") for what does not fit: long names,
large numbers, parts of seconds, and extended attributes in the records ``SCHILY.xattr.`` that star(1), tar(1)
and container tools share.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = [
    "BLOCK",
    "CHARACTER",
    "DEVICE",
    "DIRECTORY",
    "END",
    "FIFO",
    "FILE",
    "HARD_LINK",
    "SYMLINK",
    "Entry",
    "header",
    "padding",
]

#: Bytes that an archive is made of.
BLOCK: Final = 512

#: What an archive ends with.
END: Final = bytes(2 * BLOCK)

#: Kinds of entries.
FILE, HARD_LINK, SYMLINK, CHARACTER, DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_EXTENDED = b"x"
_NAME, _LINK = 100, 100
_SECOND = 1_000_000_000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry.

    Attributes:
        name: its path; a directory's ends with a slash.
        kind: one of the constants.
        mode: permissions with setuid, setgid and sticky.
        uid: owner; ``gid`` likewise.
        size: bytes of content that follow; of files alone.
        mtime: ns since the epoch.
        link: of a symbolic link what it says, of a hard link the path of the other name.
        device: major and minor number.
        xattrs: extended attributes, sorted.
    """

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def padding(size: int) -> int:
    """Zero bytes behind a content of ``size`` bytes."""
    return -size % BLOCK


def header(entry: Entry) -> bytes:
    """What stands before the content of an entry: a header, and before that an extended one if need be."""
    records = [(b"SCHILY.xattr." + name, value) for name, value in entry.xattrs]
    if len(entry.name) > _NAME:
        records.append((b"path", entry.name))
    if len(entry.link) > _LINK:
        records.append((b"linkpath", entry.link))
    for key, number, digits in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", entry.size, 11)):
        if number >= 8**digits:
            records.append((key, b"%d" % number))
    seconds, rest = divmod(entry.mtime, _SECOND)
    if rest or not 0 <= seconds < 8**11:
        records.append((b"mtime", _time(entry.mtime)))
    own = _block(entry, seconds)
    if not records:
        return own
    body = b"".join(_record(key, value) for key, value in sorted(records))
    extended = Entry(name=b"PaxHeaders/" + entry.name[-80:], kind=_EXTENDED, size=len(body))
    return _block(extended, 0) + body + bytes(padding(len(body))) + own


def _time(mtime: int) -> bytes:
    seconds, rest = divmod(abs(mtime), _SECOND)
    text = f"{seconds}.{rest:09d}".rstrip("0").rstrip(".")
    return f"{'-' if mtime < 0 else ''}{text}".encode()


def _record(key: bytes, value: bytes) -> bytes:
    """A record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))
    return b"%d %s=%s\n" % (size, key, value)


def _octal(number: int, width: int) -> bytes:
    """A number, or 0 where it does not fit and an extended header has it."""
    return b"%0*o\0" % (width - 1, number if 0 <= number < 8 ** (width - 1) else 0)


def _block(entry: Entry, seconds: int) -> bytes:
    fields = (
        entry.name[:_NAME].ljust(_NAME, b"\0"),
        _octal(entry.mode, 8),
        _octal(entry.uid, 8),
        _octal(entry.gid, 8),
        _octal(entry.size, 12),
        _octal(seconds, 12),
        b" " * 8,
        entry.kind,
        entry.link[:_LINK].ljust(_LINK, b"\0"),
        b"ustar\x0000",
        bytes(64),
        _octal(entry.device[0], 8),
        _octal(entry.device[1], 8),
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
