"""Trees of files on the wire (docs/reference/agent-protocol.md, section 8), free of I/O.

``encode`` and ``segment`` make what is sent; ``Decoder`` turns what was received into records and content. It
lets nothing pass that a writer must not use: a name that leads out of the tree, an entry without its
directory, content beyond its file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from atoll.errors import ProtocolError

__all__ = [
    "MAX_RECORD",
    "MAX_SEGMENT",
    "SEGMENT_HEADER",
    "Content",
    "Decoder",
    "Directory",
    "Entry",
    "Fifo",
    "File",
    "FileEnded",
    "Limits",
    "Link",
    "Symlink",
    "TreeEvent",
    "encode",
    "segment",
    "shown",
]

#: Largest record, bytes without its length.
MAX_RECORD = 16_384
#: Most content behind one header, bytes.
MAX_SEGMENT = 1_048_576
#: Size of the header of a segment, bytes.
SEGMENT_HEADER = 12

_LENGTH = struct.Struct("<I")
_SEGMENT = struct.Struct("<QI")
_MAX_NAME = 255
#: Longest text of a symbolic link that Linux takes, bytes (PATH_MAX with its NUL).
_MAX_LINK = 4095

_Mode = Annotated[int, Meta(ge=0, le=0o7777)]
_Id = Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)]  # the last one means "leave it" to chown(2)
_Time = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What all records have.

    Attributes:
        path: relative to the top, empty for the top itself.
        mode: permission bits and set-id, sticky.
        mtime: ns since 1970.
    """

    path: bytes
    mode: _Mode
    uid: _Id
    gid: _Id
    mtime: _Time


class File(Entry, frozen=True, tag="file"):
    """A regular file; its content follows in segments, what they leave out is a hole."""

    size: _Size


class Directory(Entry, frozen=True, tag="directory"):
    """A directory; what is in it comes later."""


class Symlink(Entry, frozen=True, tag="symlink"):
    """A symbolic link with the text ``target``."""

    target: bytes


class Link(Entry, frozen=True, tag="link"):
    """A further name of the file whose record came with the path ``target``."""

    target: bytes


class Fifo(Entry, frozen=True, tag="fifo"):
    """A named pipe."""


class Content(NamedTuple):
    """Bytes of the last ``File``; the memory is the decoder's input."""

    offset: int
    data: memoryview


class FileEnded(NamedTuple):
    """The last ``File`` is complete."""


_AnyEntry = File | Directory | Symlink | Link | Fifo
TreeEvent = _AnyEntry | Content | FileEnded


class Limits(NamedTuple):
    """What a tree may have at most.

    Attributes:
        entries: records.
        depth: names in a path.
        names: bytes of all paths together; they are held until the end.
    """

    entries: int = 1_000_000
    depth: int = 256
    names: int = 1 << 28


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_AnyEntry)


def encode(entry: Entry) -> bytes:
    """A record, ready to be sent.

    Raises:
        ProtocolError: ``protocol.too_large``: the path is so long that the record does not fit.
    """
    body = _encoder.encode(entry)
    if len(body) > MAX_RECORD:
        raise ProtocolError(f"{shown(entry.path)}: the path is too long to be copied", code="too_large")
    return _LENGTH.pack(len(body)) + body


def segment(offset: int, length: int) -> bytes:
    """The header of ``length`` bytes of content; with 0 at the file's size it ends the file."""
    return _SEGMENT.pack(offset, length)


def shown(path: bytes) -> str:
    """A path for a message: bytes that are no UTF-8 are replaced, a very long one lacks its middle."""
    text = path.decode(errors="replace")
    return text if len(text) <= 300 else f"{text[:100]}...{text[-200:]}"


class Decoder:
    """Turns a tree as received into records and content, however it was split.

    After an error it cannot be used any more.
    """

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - immutable
        self._limits = limits
        self._held = bytearray()  # the beginning of a length, record or header
        self._wanted = _LENGTH.size
        self._take: Callable[[bytes], TreeEvent | None] = self._on_length
        self._seen: dict[bytes, type[Entry]] = {}
        self._names = 0
        self._file: File | None = None
        self._position = 0  # where the next content belongs, or the lowest place where it may
        self._left = 0  # bytes of the segment that are still to come

    def feed(self, data: bytes | memoryview) -> Iterator[TreeEvent]:
        """Take input and yield what is complete by it. The iterator must be used up.

        Raises:
            ProtocolError: the input is no tree as section 8 has it (``protocol``), or exceeds the limits
                (``protocol.too_large``).
        """
        view = memoryview(data)
        while view:
            if self._left:
                content = view[: self._left]
                view = view[len(content) :]
                yield Content(self._position, content)
                self._position += len(content)
                self._left -= len(content)
                continue
            missing = self._wanted - len(self._held)
            self._held += view[:missing]
            view = view[missing:]
            if len(self._held) == self._wanted:
                item = bytes(self._held)
                self._held.clear()
                event = self._take(item)
                if event is not None:
                    yield event

    def finish(self) -> None:
        """Say that no more input comes.

        Raises:
            ProtocolError: the tree is not complete.
        """
        if not self._seen:
            raise ProtocolError("the tree is empty")
        if self._file is not None or self._held or self._take != self._on_length:
            last = next(reversed(self._seen))
            raise ProtocolError(f"the tree is cut short behind {shown(last) or 'its top'}")

    def _on_length(self, item: bytes) -> None:
        (length,) = _LENGTH.unpack(item)
        if not 0 < length <= MAX_RECORD:
            raise ProtocolError(f"a tree's record of {length} bytes")
        self._wanted, self._take = length, self._on_record

    def _on_record(self, item: bytes) -> TreeEvent:
        try:
            entry: _AnyEntry = _decoder.decode(item)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"malformed record in a tree: {error}") from error
        self._check_place(entry.path)
        self._check_target(entry)
        self._seen[entry.path] = type(entry)
        if isinstance(entry, File):
            self._file, self._position = entry, 0
            self._wanted, self._take = _SEGMENT.size, self._on_segment
        else:
            self._wanted, self._take = _LENGTH.size, self._on_length
        return entry

    def _on_segment(self, item: bytes) -> FileEnded | None:
        assert self._file is not None
        offset, length = _SEGMENT.unpack(item)
        size = self._file.size
        if not length and offset == size:
            self._file = None
            self._wanted, self._take = _LENGTH.size, self._on_length
            return FileEnded()
        if not 0 < length <= MAX_SEGMENT or offset < self._position or offset + length > size:
            name = shown(self._file.path)
            raise ProtocolError(f"{name}: {length} bytes at {offset} behind {self._position} of {size}")
        self._position, self._left = offset, length
        return None

    def _check_place(self, path: bytes) -> None:
        """Hold a path to its rules: only its last name can be wrong, as its directory came before it."""
        if not self._seen:
            if path:
                raise ProtocolError(f"{shown(path)}: a tree begins with its top")
        else:
            directory, slash, name = path.rpartition(b"/")
            wrong = name in {b"", b".", b".."} or len(name) > _MAX_NAME or b"\0" in name
            if wrong or path in self._seen or (slash and not directory):
                raise ProtocolError(f"{shown(path)!r}: not a name that may come here in a tree")
            if self._seen.get(directory) is not Directory:
                raise ProtocolError(f"{shown(path)}: an entry whose directory did not come before it")
        self._names += len(path)
        self._check_limits(path)

    def _check_limits(self, path: bytes) -> None:
        limits = self._limits
        if len(self._seen) >= limits.entries:
            raise ProtocolError(f"the tree has more than {limits.entries} entries", code="too_large")
        if path.count(b"/") >= limits.depth:
            message = f"{shown(path)}: more than {limits.depth} directories deep"
            raise ProtocolError(message, code="too_large")
        if self._names > limits.names:
            raise ProtocolError(f"the tree has more than {limits.names} bytes of names", code="too_large")

    def _check_target(self, entry: _AnyEntry) -> None:
        if isinstance(entry, Symlink) and (not 0 < len(entry.target) <= _MAX_LINK or b"\0" in entry.target):
            raise ProtocolError(f"{shown(entry.path)}: a symbolic link that leads nowhere")
        if isinstance(entry, Link) and self._seen.get(entry.target) is not File:
            raise ProtocolError(f"{shown(entry.path)}: a link to what is no earlier file")
