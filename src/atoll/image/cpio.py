"""The initramfs archive format: cpio "newc", written so that the same entries always give the same bytes.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Archives may follow one
another in one initramfs, so one part can be replaced without writing the other again.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterable

import msgspec

__all__ = ["Entry", "archive", "character_device", "directory", "file", "symlink"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_MAX_FIELD = 0xFFFFFFFF


class Entry(msgspec.Struct, frozen=True):
    """One file of an archive.

    Attributes:
        path: relative to the root, without ``.`` and ``..``.
        mode: type and permissions, as in st_mode.
        data: a file's content or a symbolic link's target.
        device: major and minor number of a device node.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(path: str, mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(path, stat.S_IFDIR | mode)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, data)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(path, stat.S_IFCHR | mode, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of ``entries`` in their order, owned by root, dated 0, inode numbers counted from 1.

    Directories that are missing above an entry are added: the kernel does not make them by itself.

    Raises:
        ValueError: a path is unsafe or given twice, or content is too large for the format (4 GiB).
    """
    parts: list[bytes] = []
    seen: set[str] = set()
    for entry in entries:
        _check(entry)
        if entry.path in seen:
            raise ValueError(f"{entry.path} is in the archive twice")
        for parent in _parents(entry.path):
            if parent not in seen:
                seen.add(parent)
                parts.append(_encode(directory(parent), len(seen)))
        seen.add(entry.path)
        parts.append(_encode(entry, len(seen)))
    parts.append(_encode(Entry(_TRAILER, 0), 0))
    return b"".join(parts)


def _check(entry: Entry) -> None:
    path = entry.path
    if (
        not path
        or path.startswith("/")
        or posixpath.normpath(path) != path
        or path.split("/")[0] in {".", ".."}
    ):
        raise ValueError(f"{path!r} is no clean relative path")
    if "\0" in path or path == _TRAILER:
        raise ValueError(f"{path!r} cannot be the name of a file in an archive")
    if len(entry.data) > _MAX_FIELD:
        raise ValueError(f"{path} is too large for a cpio archive")


def _parents(path: str) -> list[str]:
    names = path.split("/")
    return ["/".join(names[:count]) for count in range(1, len(names))]


def _encode(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, nlink, mtime, file size, device major, minor, node major, minor, name size, check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % value for value in fields) + name
    return b"".join((head, bytes(-len(head) % 4), entry.data, bytes(-len(entry.data) % 4)))
