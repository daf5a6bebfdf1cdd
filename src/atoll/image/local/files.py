"""Named files to read from: those of a directory, or those in a tar, found without unpacking it.

Neither is trusted. What is found is read by offset through descriptors of its own, so several threads can
read at once, and a file whose name is given to another one meanwhile stays the one that was looked at.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Protocol, cast

import msgspec

from atoll.image.decompressing import CHUNK
from atoll.image.oci.documents import MOST_JSON
from atoll.image.oci.source import Stream
from atoll.image.refusing import refuse

__all__ = ["Files", "InDirectory", "InTar", "Part", "Range", "content", "index", "part_of"]

#: An archive of images has fewer entries than this; one that has more is something else.
_MOST_ENTRIES = 50_000

#: An extended header is read at once; none that is honest is larger.
_MOST_HEADER = 1 << 20

_MOST_LINKS = 8
_ID = re.compile(r"[0-9a-f]{64}")


class Part(msgspec.Struct, frozen=True):
    """A file, or what lies in another one.

    Attributes:
        size: bytes.
        open: it, from its beginning.
    """

    size: int
    open: Callable[[], AbstractContextManager[Stream]]


class Files(Protocol):
    """Files by their paths."""

    def find(self, path: str) -> Part | None:
        """The file at a relative path; None if there is none."""


class Range:
    """A part of an open file as a stream.

    Args:
        fd: of the file; it stays the caller's, who may use it for others at the same time.
        start: where the part begins, bytes.
        size: of it.
    """

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._at, self._end = fd, start, start + size

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes. Raises ``ImageError``: ``image.archive``: the file became shorter."""
        wanted = min(size, self._end - self._at)
        data = os.pread(self._fd, wanted, self._at)
        if wanted and not data:
            raise refuse("the file ends within what it holds", hint="get it again")
        self._at += len(data)
        return data


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Tell what tarfile raises on hostile input, by experience, as one error."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise refuse(f"{name} is no tar archive, or damaged: {error}") from error


@contextmanager
def _range(fd: int, start: int, size: int) -> Iterator[Stream]:
    own = os.dup(fd)
    try:
        yield Range(own, start, size)
    finally:
        os.close(own)


def part_of(fd: int, start: int, size: int) -> Part:
    """A part of an open file, which is to stay open as long as anybody may begin to read the part."""
    return Part(size, lambda: _range(fd, start, size))


def content(part: Part, name: str, *, most: int = MOST_JSON) -> bytes:
    """All of a small file. Raises ``ImageError``: ``image.archive``: it is larger than ``most`` bytes."""
    if part.size > most:
        raise refuse(f"{name} has {part.size} bytes")
    with part.open() as stream:
        return b"".join(iter(lambda: stream.read(CHUNK), b""))


class InDirectory:
    """The files below a directory; none that a link leads out of it to.

    Args:
        directory: it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()

    def find(self, path: str) -> Part | None:
        """The file at a relative path; None if there is none, or it is no file below the directory."""
        try:
            place = (self._directory / path).resolve(strict=True)
            status = place.stat()
        except (OSError, ValueError, RuntimeError):
            return None
        if not place.is_relative_to(self._directory) or not stat.S_ISREG(status.st_mode):
            return None
        return Part(status.st_size, lambda: _opened(place, status.st_size))


@contextmanager
def _opened(place: Path, size: int) -> Iterator[Stream]:
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise refuse(f"{place} changed while it was read")
        yield Range(fd, 0, size)
    finally:
        os.close(fd)


class InTar:
    """The files of a tar.

    Args:
        fd: of the tar, which stays the caller's.
        members: its files by path, as ``index`` found them.
    """

    def __init__(self, fd: int, members: Mapping[str, tuple[int, int] | str]) -> None:
        self._fd = fd
        self._members = members

    def find(self, path: str) -> Part | None:
        """The file at a path, through links within the tar; None if there is none."""
        for _ in range(_MOST_LINKS):
            found = self._members.get(posixpath.normpath(path))
            if found is None:
                return None
            if not isinstance(found, str):
                return part_of(self._fd, *found)
            path = found
        return None


class Positioned(Protocol):
    """A stream with a position, which can be moved forward."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""

    def tell(self) -> int:
        """Bytes from its beginning."""

    def seek(self, position: int, /) -> int:
        """Go to a later position."""


class _Careful:
    """A stream as tarfile may have it: no read is larger than an honest header, no seek leads back."""

    def __init__(self, stream: Positioned) -> None:
        self._stream = stream
        self.last = b""

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        if position < self._stream.tell():
            raise tarfile.ReadError("an entry lies before its predecessor")
        return self._stream.seek(position)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts: list[bytes] = []
        while size and (data := self._stream.read(size)):
            parts.append(data)
            size -= len(data)
        self.last = b"".join(parts)
        return self.last


def index(stream: Positioned, name: str) -> dict[str, tuple[int, int] | str] | None:
    """The files of a tar of images, or None as soon as an entry is seen that only a root file system has.

    Args:
        stream: the tar, without compression.
        name: of it, for errors.

    Returns:
        For each path where its content begins and how many bytes it has, or the path that it is a link to.

    Raises:
        ImageError: ``image.archive``: it is no tar, or damaged.
    """
    careful = _Careful(stream)
    members: dict[str, tuple[int, int] | str] = {}
    with _damage_named(name):
        tar = tarfile.TarFile(fileobj=cast("IO[bytes]", careful), encoding="utf-8", errors="surrogateescape")
        for _ in range(_MOST_ENTRIES):
            member = tar.next()
            if member is None:
                if len(careful.last) != tarfile.BLOCKSIZE or any(careful.last):
                    raise tarfile.ReadError("it ends early")  # tarfile takes a damaged header for the end
                return members
            vars(tar)["members"].clear()  # else all of them stay in memory
            path = posixpath.normpath(member.name).lstrip("/")
            if path == ".":
                continue
            if _of_a_root(path, member):
                return None
            if member.isreg() and not member.issparse():
                members[path] = (member.offset_data, member.size)
            elif member.issym():
                members[path] = posixpath.join(posixpath.dirname(path), member.linkname)
            elif member.islnk():
                members[path] = member.linkname
    return None


def _of_a_root(path: str, member: tarfile.TarInfo) -> bool:
    """Whether an archive of images, of whatever tool, has no such entry.

    At its top it has files and the directories ``blobs`` and such that are named as images or layers are.
    """
    first, _, rest = path.partition("/")
    in_known = first == "blobs" or _ID.fullmatch(first) is not None
    if not rest:
        return not (member.isreg() or (member.isdir() and in_known))
    return not in_known
