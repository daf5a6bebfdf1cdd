"""A directory of this host as a stream of tar, read as it is wanted.

Each directory and file is opened below the directory that it was found in and through no link (openat(2),
``O_NOFOLLOW``), so nothing outside is read whoever moves things about meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll.errors import ImageError
from atoll.events import Emit, Warned
from atoll.image.decompressing import CHUNK
from atoll.image.local.tarheaders import (
    CHARACTER,
    DEVICE,
    DIRECTORY,
    END,
    FIFO,
    FILE,
    HARD_LINK,
    SYMLINK,
    Entry,
    header,
    padding,
)
from atoll.image.oci.source import Stream

__all__ = ["Tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

#: Attributes that mean this host's security modules, or an overlay that a directory was a part of.
_NOT_TAKEN = (b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.")

_NODES = {stat.S_IFCHR: CHARACTER, stat.S_IFBLK: DEVICE, stat.S_IFIFO: FIFO}
_SHOWN = 5


class Tree:
    """A directory that is to be a root.

    Args:
        directory: it.
        emit: told, once, of what is left out.
    """

    def __init__(self, directory: Path, emit: Emit) -> None:
        self._directory = directory
        self._emit = emit
        self._told = False

    @contextmanager
    def open(self) -> Iterator[Stream]:
        """What is in it now as a tar. Entries stand in the order of their names' bytes.

        Other file systems that are mounted there are empty directories, as their mount points; sockets are
        left out. What is read may raise ``ImageError``: ``image.unreadable``.
        """
        with contextlib.closing(self._pieces()) as pieces:
            yield _Pieces(pieces)

    def _pieces(self) -> Generator[bytes]:
        walk = _Walk()
        try:
            root = os.open(self._directory, _DIRECTORY & ~os.O_NOFOLLOW)
            yield from walk.below(root)
        except OSError as error:
            place = os.fsdecode(walk.at) or str(self._directory)
            message = f"cannot read {place}: {error.strerror}"
            raise ImageError(message, code="unreadable", hint="read it as root") from error
        yield END
        if not self._told:
            self._told = True
            walk.tell(self._emit)


class _Walk:
    """One reading of a tree.

    Attributes:
        at: the path that is being read.
    """

    def __init__(self) -> None:
        self.at = b""
        self._first: dict[tuple[int, int], bytes] = {}
        self._sockets: list[bytes] = []
        self._mounts: list[bytes] = []
        self._shrunk: list[bytes] = []

    def tell(self, emit: Emit) -> None:
        """Say what is not as it was."""
        for paths, what in (
            (self._sockets, "sockets were left out"),
            (self._mounts, "directories are empty, as other file systems are mounted there"),
            (self._shrunk, "files became shorter while they were read, and end with zeros"),
        ):
            if paths:
                shown = ", ".join(os.fsdecode(path) for path in paths[:_SHOWN])
                more = ", ..." if len(paths) > _SHOWN else ""
                emit(Warned(message=f"{len(paths)} {what}: {shown}{more}"))

    def below(self, root: int) -> Iterator[bytes]:
        """The entries of a tree, whose descriptor is closed at the end."""
        ways: list[tuple[int, bytes, Iterator[bytes]]] = [(root, b"", iter(()))]
        try:
            device = os.fstat(root).st_dev
            yield header(_entry(b"./", os.fstat(root), DIRECTORY, _xattrs(root)))
            ways = [(root, b"", _names(root))]
            while ways:
                here, prefix, names = ways[-1]
                name = next(names, None)
                if name is None:
                    os.close(ways.pop()[0])
                    continue
                self.at = prefix + name
                with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        yield from self._leaf(here, name, status)
                        continue
                    fd = os.open(name, _DIRECTORY, dir_fd=here)
                    ways.append((fd, self.at + b"/", iter(())))
                    status = os.fstat(fd)
                    yield header(_entry(self.at + b"/", status, DIRECTORY, _xattrs(fd)))
                    if status.st_dev != device:
                        self._mounts.append(self.at)
                        continue
                    ways[-1] = (fd, self.at + b"/", _names(fd))
        finally:
            for fd, *_ in ways:
                os.close(fd)

    def _leaf(self, here: int, name: bytes, status: os.stat_result) -> Iterator[bytes]:
        key = (status.st_dev, status.st_ino)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            self._sockets.append(self.at)
        elif key in self._first:
            yield header(_entry(self.at, status, HARD_LINK, link=self._first[key]))
        elif kind == stat.S_IFREG:
            yield from self._file(here, name)
        else:
            place = b"/proc/self/fd/%d/%s" % (here, name)
            link = os.readlink(name, dir_fd=here) if kind == stat.S_IFLNK else b""
            entry = _entry(self.at, status, _NODES.get(kind, SYMLINK), _xattrs(place), link=link)
            self._remember(status)
            yield header(entry)

    def _remember(self, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            self._first[status.st_dev, status.st_ino] = self.at

    def _file(self, here: int, name: bytes) -> Iterator[bytes]:
        fd = os.open(name, _FILE, dir_fd=here)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # another took its name
            self._remember(status)
            yield header(_entry(self.at, status, FILE, _xattrs(fd)))
            left = status.st_size
            while left and (data := os.read(fd, min(left, CHUNK))):
                left -= len(data)
                yield data
            if left:
                self._shrunk.append(self.at)
            while left:
                yield bytes(min(left, CHUNK))
                left -= min(left, CHUNK)
            if rest := padding(status.st_size):
                yield bytes(rest)
        finally:
            os.close(fd)


def _names(fd: int) -> Iterator[bytes]:
    return iter(sorted(os.fsencode(name) for name in os.listdir(fd)))


def _xattrs(place: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes of an open file, or of what is at a path itself."""
    follow = isinstance(place, int)
    found = []
    try:
        for name in os.listxattr(place, follow_symlinks=follow):
            key = os.fsencode(name)
            if not key.startswith(_NOT_TAKEN):
                with contextlib.suppress(OSError):  # it went away meanwhile, or only the kernel may read it
                    found.append((key, os.getxattr(place, name, follow_symlinks=follow)))
    except OSError as error:
        if error.errno not in {errno.ENOTSUP, errno.ENOENT, errno.EPERM}:
            raise
    return tuple(sorted(found))


def _entry(
    name: bytes,
    status: os.stat_result,
    kind: bytes,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
    *,
    link: bytes = b"",
) -> Entry:
    nodes = kind in {CHARACTER, DEVICE}
    return Entry(
        name=name,
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind == FILE else 0,
        mtime=status.st_mtime_ns,
        link=link,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if nodes else (0, 0),
        xattrs=xattrs,
    )


class _Pieces:
    """A stream of pieces; small ones are given together."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        parts: list[bytes] = []
        wanted = size
        while wanted and (data := self._rest or next(self._pieces, b"")):
            parts.append(data[:wanted])
            self._rest = data[wanted:]
            wanted -= len(parts[-1])
            if wanted < size // 2:
                break
        return b"".join(parts)
