"""What is said about files (docs/reference/agent-protocol.md, section 9), free of I/O.

The guest is not trusted: ``Records`` and ``Status`` let nothing pass that is not what the page says.
"""

from __future__ import annotations

import os
import posixpath
import struct
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Generic, TypeVar

import msgspec
from msgspec import Meta

from atoll.errors import ProtocolError
from atoll.guest.messages import Request

__all__ = [
    "MAX_RECORD",
    "Change",
    "ChangeKind",
    "Entry",
    "FileChange",
    "FileInfo",
    "FileKind",
    "FileList",
    "FileMakeDirectory",
    "FileMove",
    "FileRead",
    "FileRemove",
    "FileStat",
    "FileWatch",
    "FileWrite",
    "Records",
    "Status",
    "WireKind",
    "WrittenFile",
]

T = TypeVar("T")

#: Largest record, bytes without its length.
MAX_RECORD = 8192

_LENGTH = struct.Struct("<I")

_Mode = Annotated[int, Meta(ge=0, le=0o7777)]
_Id = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_Time = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Name = Annotated[bytes, Meta(min_length=1, max_length=255)]
_Path = Annotated[bytes, Meta(max_length=4096)]
_Cookie = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]


class FileKind(StrEnum):
    """What a file is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER = "character"
    BLOCK = "block"


class ChangeKind(StrEnum):
    """What happened to a file. After ``OVERFLOW`` changes were lost: look at the files themselves."""

    CREATED = "created"
    MODIFIED = "modified"
    REMOVED = "removed"
    MOVED = "moved"
    OVERFLOW = "overflow"


class WireKind(StrEnum):
    """A change as the guest tells of it: the two halves of a move come apart."""

    CREATED = "created"
    MODIFIED = "modified"
    REMOVED = "removed"
    MOVED_FROM = "moved_from"
    MOVED_TO = "moved_to"
    OVERFLOW = "overflow"


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A file in a guest. Bytes of names that are no UTF-8 are escaped as ``os.fsdecode`` does it (PEP 383).

    Attributes:
        name: the last name of its path.
        path: as it was asked for; of an entry of a directory, that directory's with the name behind it.
        kind: what it is.
        size: bytes.
        mode: permission bits and set-id, sticky.
        uid: of its owner; ``gid`` likewise of its group.
        modified: when its content was changed last, seconds since 1970.
        target: the text of a symbolic link; else None.
    """

    name: str
    path: str
    kind: FileKind
    size: int
    mode: int
    uid: int
    gid: int
    modified: float
    target: str | None = None


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """A change below what is watched.

    Attributes:
        kind: what happened.
        path: to what; where it is now, if it was moved.
        source: where it was, if it was moved within what is watched; else None.
        directory: whether it is a directory.
    """

    kind: ChangeKind
    path: str
    source: str | None = None
    directory: bool = False


class _FileRequest(Request, frozen=True, kw_only=True):
    """What all requests have: who does it, and where relative paths begin."""

    user: str | None = None
    cwd: str | bytes | None = None


class FileRead(_FileRequest, frozen=True, kw_only=True, tag="file.read"):
    """Ask for the content of a file."""

    path: str | bytes
    offset: int = 0
    length: int | None = None


class FileWrite(_FileRequest, frozen=True, kw_only=True, tag="file.write"):
    """Send the content of a file; ``how``: ``replace``, ``create``, ``truncate`` or ``append``."""

    path: str | bytes
    how: str = "replace"
    mode: int | None = None
    parents: bool = False
    sync: bool = False


class FileList(_FileRequest, frozen=True, kw_only=True, tag="file.list"):
    """Ask for what is in a directory."""

    path: str | bytes


class FileStat(_FileRequest, frozen=True, kw_only=True, tag="file.stat"):
    """Ask what a file is."""

    path: str | bytes
    follow: bool = True


class FileMakeDirectory(_FileRequest, frozen=True, kw_only=True, tag="file.make_directory"):
    """Make a directory."""

    path: str | bytes
    parents: bool = False
    exist_ok: bool = False
    mode: int = 0o755


class FileMove(_FileRequest, frozen=True, kw_only=True, tag="file.move"):
    """Give a file another name."""

    source: str | bytes
    target: str | bytes
    replace: bool = True


class FileRemove(_FileRequest, frozen=True, kw_only=True, tag="file.remove"):
    """Remove a file, or a directory."""

    path: str | bytes
    recursive: bool = False


class FileWatch(_FileRequest, frozen=True, kw_only=True, tag="file.watch"):
    """Ask to be told of changes."""

    path: str | bytes
    recursive: bool = False


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to ``FileStat`` and ``FileRead``; ``mtime`` in ns since 1970."""

    type: FileKind
    mode: _Mode
    uid: _Id
    gid: _Id
    size: _Size
    mtime: _Time
    target: _Path | None = None

    def info(self, path: str, name: str = "") -> FileInfo:
        """As programs get it."""
        return FileInfo(
            name=name or posixpath.basename(path.rstrip("/")),
            path=path,
            kind=self.type,
            size=self.size,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            modified=self.mtime / 1e9,
            target=None if self.target is None else os.fsdecode(self.target),
        )


class Entry(Status, frozen=True, kw_only=True):
    """One entry of a directory."""

    name: _Name

    def __post_init__(self) -> None:
        if b"/" in self.name or b"\0" in self.name or self.name in {b".", b".."}:
            raise ValueError("no name of a file")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change; ``path`` is relative to what is watched, empty for that itself."""

    kind: WireKind
    path: _Path
    directory: bool = False
    cookie: _Cookie = 0

    def __post_init__(self) -> None:
        names = self.path.split(b"/") if self.path else ()
        if b"\0" in self.path or any(name in {b"", b".", b".."} for name in names):
            raise ValueError("no path below what is watched")


class WrittenFile(msgspec.Struct, frozen=True):
    """Reply to ``FileWrite``: how many bytes were written."""

    bytes: int


class Records(Generic[T]):
    """Cuts records of ``kind`` out of a stream, each when it is asked for; none is larger than ``limit``."""

    def __init__(self, kind: type[T], *, limit: int = MAX_RECORD) -> None:
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._limit = limit
        self._held = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream."""
        self._held = self._held[self._at :] + data
        self._at = 0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next record that is whole.

        Raises:
            ProtocolError: it is not what the protocol says.
        """
        begin = self._at + _LENGTH.size
        if len(self._held) < begin:
            raise StopIteration
        (size,) = _LENGTH.unpack_from(self._held, self._at)
        if size > self._limit:
            raise ProtocolError(f"a record of {size} bytes about files from the guest")
        if len(self._held) < begin + size:
            raise StopIteration
        self._at = begin + size
        try:
            return self._decoder.decode(memoryview(self._held)[begin : self._at])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"malformed record about files from the guest: {error}") from error

    def finish(self) -> None:
        """The stream has ended. Raises ``ProtocolError`` if that was inside a record."""
        if self._at != len(self._held):
            raise ProtocolError("a list of files from the guest was cut short")
