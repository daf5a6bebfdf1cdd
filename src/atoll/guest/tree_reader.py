"""Reading a tree of files from the host's disk, as section 8 of the agent protocol has it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator
from typing import NamedTuple

from atoll.errors import ProtocolError, StoreError
from atoll.guest import tree
from atoll.guest.tree import Directory, Entry, Fifo, File, Limits, Link, Symlink, shown

__all__ = ["TreeReader", "disk_failure"]

#: Bytes of a tree that are read from disk at once.
_BATCH = 524_288
#: Least room for content in a batch; with less the batch is sent.
_LEAST = 4096

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_TIME = (1 << 63) - 1


def disk_failure(error: OSError, verb: str, name: str) -> StoreError:
    """Turn an error of the disk into one that says what to do."""
    reason = f"cannot {verb} {name}: {error.strerror}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreError(reason, code="full", hint="free some space, or choose another place")
        case errno.ENOENT:
            return StoreError(reason, code="missing", hint="check the path")
        case errno.EISDIR | errno.ENOTDIR | errno.ELOOP | errno.EEXIST | errno.ENOTEMPTY:
            return StoreError(reason, code="io", hint="something else has this name: move it away")
        case errno.EACCES | errno.EPERM | errno.EROFS if verb == "write":
            return StoreError(reason, code="unwritable", hint="choose a place that this user may write")
        case _:
            return StoreError(reason, code="io")


class _Level(NamedTuple):
    """A directory that is being read: its descriptor, its path in the tree, the names still to come."""

    fd: int
    path: bytes
    names: Iterator[bytes]


class TreeReader:
    """Reads a tree from the disk, piece by piece, as section 8 has it.

    Below the top each name is opened relative to its directory and never through a symbolic link, so that a
    tree which changes meanwhile leads nowhere else.

    Attributes:
        entries: records made so far.
        bytes: content read so far.
    """

    def __init__(self, top: bytes, limits: Limits) -> None:
        self.entries = 0
        self.bytes = 0
        self._top = top
        self._limits = limits
        self._buffer = memoryview(bytearray(_BATCH + 2 * tree.MAX_RECORD))
        self._fill = 0
        self._levels: list[_Level] = []
        self._links: dict[tuple[int, int], bytes] = {}
        self._path = b""
        self._steps = self._walk()

    def open(self) -> int:
        """See that the top is there; the size of a file, else 0."""
        with self._named():
            status = os.stat(self._top)
            if stat.S_ISREG(status.st_mode):
                return status.st_size
            if not (stat.S_ISDIR(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
                raise OSError(errno.EINVAL, "it is neither a file nor a directory")
            return 0

    def read(self) -> memoryview:
        """The next piece, empty at the end. The memory is used again by the next call."""
        self._fill = 0
        with self._named():
            next(self._steps, None)
        return self._buffer[: self._fill]

    def close(self) -> None:
        """Close what is open."""
        self._steps.close()
        while self._levels:
            os.close(self._levels.pop().fd)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = b"/".join(filter(None, (self._top.rstrip(b"/"), self._path)))
            raise disk_failure(error, "read", shown(path)) from error

    def _walk(self) -> Generator[None]:
        """Fill the buffer; each step is a full one."""
        yield from self._visit(None, self._top, b"")
        while self._levels:
            level = self._levels[-1]
            name = next(level.names, None)
            if name is None:
                os.close(self._levels.pop().fd)
                continue
            path = level.path + b"/" + name if level.path else name
            with contextlib.suppress(FileNotFoundError):  # it has vanished
                yield from self._visit(level.fd, name, path)

    def _visit(self, directory: int | None, name: bytes, path: bytes) -> Iterator[None]:
        self._path = path
        status = os.stat(name, dir_fd=directory, follow_symlinks=directory is None)
        match stat.S_IFMT(status.st_mode):
            case stat.S_IFREG:
                yield from self._visit_file(directory, name, path)
            case stat.S_IFDIR:
                self._enter(directory, name, path)
            case stat.S_IFLNK:
                self._put_entry(Symlink, path, status, target=os.readlink(name, dir_fd=directory))
            case stat.S_IFIFO:
                self._put_entry(Fifo, path, status)
        if self._fill >= _BATCH:
            yield

    def _visit_file(self, directory: int | None, name: bytes, path: bytes) -> Iterator[None]:
        fd = self._open(directory, name, _READ)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ESTALE, "it changed while it was read")
            identity = status.st_dev, status.st_ino
            first = self._links.get(identity)
            if first is not None:
                self._put_entry(Link, path, status, target=first)
                return
            if status.st_nlink > 1:
                self._links[identity] = path
            self._put_entry(File, path, status, size=status.st_size)
            yield from self._put_content(fd, status)
            self._put(tree.segment(status.st_size, 0))
        finally:
            os.close(fd)

    @staticmethod
    def _open(directory: int | None, name: bytes, flags: int) -> int:
        """Open something in a directory, or the top, which alone may be a symbolic link."""
        return os.open(name, flags if directory is None else flags | os.O_NOFOLLOW, dir_fd=directory)

    def _enter(self, directory: int | None, name: bytes, path: bytes) -> None:
        fd = self._open(directory, name, _OPEN_DIRECTORY)
        try:
            self._put_entry(Directory, path, os.fstat(fd))
            names = sorted(map(os.fsencode, os.listdir(fd)))
        except BaseException:
            os.close(fd)
            raise
        self._levels.append(_Level(fd, path, iter(names)))

    def _put_entry(self, kind: type[Entry], path: bytes, status: os.stat_result, **more: object) -> None:
        if self.entries >= self._limits.entries:
            message = f"there are more than {self._limits.entries} entries"
            raise ProtocolError(message, code="too_large")
        if path.count(b"/") >= self._limits.depth:
            message = f"{shown(path)}: more than {self._limits.depth} directories deep"
            raise ProtocolError(message, code="too_large")
        self.entries += 1
        entry = kind(
            path=path,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=max(-_MAX_TIME, min(status.st_mtime_ns, _MAX_TIME)),
            **more,
        )
        self._put(tree.encode(entry))

    def _put(self, data: bytes) -> None:
        self._buffer[self._fill : self._fill + len(data)] = data
        self._fill += len(data)

    def _put_content(self, fd: int, status: os.stat_result) -> Iterator[None]:
        """The parts of a file that hold data, up to where it ended when it was opened or ends now."""
        for start, end in _extents(fd, status):
            at = start
            while at < end:
                if self._fill + _LEAST > _BATCH:
                    yield
                content = self._fill + tree.SEGMENT_HEADER
                room = self._buffer[content : content + min(end - at, _BATCH - self._fill)]
                count = os.preadv(fd, [room], at)
                if not count:
                    return
                self._put(tree.segment(at, count))
                self._fill += count
                self.bytes += count
                at += count


def _extents(fd: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where a file holds data: pairs of start and end."""
    size = status.st_size
    if status.st_blocks * 512 >= size:
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that the rest is a hole
                raise
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield min(start, size), at
