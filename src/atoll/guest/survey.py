"""What a guest has written over its root, and what that holds: the agent's ``--survey``, seen from here.

It is a process of its own in the guest, whose output has the flow control of any command's
(docs/reference/agent-protocol.md, section 11). All that it says is checked: the guest may be anybody's.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from atoll.errors import BootError, GuestError, ProtocolError
from atoll.guest.agent import Agent
from atoll.guest.execution import Execution
from atoll.guest.file_messages import Records
from atoll.guest.messages import ExecStart

__all__ = ["IN_MEMORY", "Bounds", "End", "Entry", "Piece", "Pieces", "Record", "Survey", "alike"]

T = TypeVar("T")

#: In the place of a disk: what the guest writes lies in its memory.
IN_MEMORY = "memory"

#: Largest record, bytes; ``SURVEY_RECORD_MAX`` of the agent.
_MOST = 65536

#: Most records, and bytes of them: what a tree of so many files takes here is some gigabytes.
_MOST_RECORDS, _MOST_LISTED = 4_000_000, 2 << 30

#: Most bytes of the contents of files, their holes not counted.
_MOST_CONTENT = 1 << 40

#: Seconds in which the guest says something when it is waited for.
_SILENCE = 60.0

#: Largest number of an error (errno(3)).
_MOST_ERRNO = 4095

#: Bytes that are kept of what went wrong.
_SAID = 4096

_Mode = Annotated[int, Meta(ge=0, le=0o7777)]
_Id = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Time = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Kind = Literal["file", "directory", "symlink", "fifo", "socket", "block", "character"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A file.

    Attributes:
        type: what it is.
        mode: permission bits.
        uid: of its owner; ``gid`` likewise of its group.
        size: of a regular file, bytes; else 0.
        mtime: of its content, ns since 1970.
        device: number of a device; else 0.
        target: of a symbolic link; else empty.
        xattrs: extended attributes by their names, each name, a zero, the length in four bytes, the value.
        place: of a regular file: inode, time of the last change of its status, and where its bytes lie on the
            disk; empty if that is not known.
    """

    type: _Kind
    mode: _Mode
    uid: _Id
    gid: _Id
    size: _Size
    mtime: _Time = 0
    device: _Size = 0
    target: Annotated[bytes, Meta(max_length=4096)] = b""
    xattrs: Annotated[bytes, Meta(max_length=16384)] = b""
    place: Annotated[bytes, Meta(max_length=2048)] = b""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A file that is not just what the root has.

    Attributes:
        path: below the root, without a slash at its beginning; empty for the root itself.
        here: what it is; None if it was removed.
        base: what the root has there; None for nothing.
    """

    path: Annotated[bytes, Meta(max_length=4096)]
    here: Entry | None = None
    base: Entry | None = None


class Piece(NamedTuple):
    """Bytes of a file; those before them that nobody told of are zeroes."""

    offset: int
    data: bytes


class End(NamedTuple):
    """The end of a file, and how many bytes it has."""

    size: int


_HEAD = struct.Struct("<QI")
_FAILED = 0xFFFF_FFFF


class Pieces:
    """Cuts the contents of files out of a stream: pieces in order, and an end of each file. Pure."""

    def __init__(self) -> None:
        self._held = b""
        self._offset = 0
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream."""
        self._held += data

    def take(self) -> Piece | End | None:
        """The next piece, or as much of it as is there; None if more bytes are needed.

        Raises:
            GuestError: the file cannot be read.
            ProtocolError: the stream is not what the protocol says.
        """
        if not self._left:
            if len(self._held) < _HEAD.size:
                return None
            offset, length = _HEAD.unpack_from(self._held)
            self._held = self._held[_HEAD.size :]
            if length == _FAILED:
                message = os.strerror(offset) if offset < _MOST_ERRNO else "unknown error"
                raise GuestError(f"a file cannot be read: {message}", reason="os")
            if offset < self._offset or offset + length >= 1 << 63:
                raise ProtocolError(f"a piece of a file at byte {offset} from the guest")
            if not length:
                self._offset = 0
                return End(offset)
            self._offset, self._left = offset, length
        data = self._held[: self._left]
        if not data:
            return None
        self._held = self._held[len(data) :]
        piece = Piece(self._offset, data)
        self._offset += len(data)
        self._left -= len(data)
        return piece


async def alike(one: AsyncIterator[Piece | End], other: AsyncIterator[Piece | End]) -> bool:
    """Whether the next files of two streams hold the same; both are read to their ends.

    Raises:
        StopAsyncIteration: a stream has ended before that.
    """
    same = True
    left, right = await anext(one), await anext(other)
    while True:
        match left, right:
            case End(), End():
                return same and left == right
            case Piece(), Piece() if left.offset == right.offset:
                size = min(len(left.data), len(right.data))
                same = same and left.data[:size] == right.data[:size]
                left, right = await _after(left, size, one), await _after(right, size, other)
            case Piece(), _ if isinstance(right, End) or left.offset < right.offset:
                size = _until(left, right)
                same = same and not any(left.data[:size])
                left = await _after(left, size, one)
            case _, Piece():
                size = _until(right, left)
                same = same and not any(right.data[:size])
                right = await _after(right, size, other)


def _until(piece: Piece, other: Piece | End) -> int:
    """How many bytes of a piece lie before the other one."""
    return len(piece.data) if isinstance(other, End) else min(len(piece.data), other.offset - piece.offset)


async def _after(piece: Piece, size: int, stream: AsyncIterator[Piece | End]) -> Piece | End:
    if size < len(piece.data):
        return Piece(piece.offset + size, piece.data[size:])
    return await anext(stream)


class Bounds(NamedTuple):
    """What a guest may say at most: anybody's may say anything, and without an end.

    Attributes:
        records: number of them; ``listed`` their bytes.
        content: bytes of files, holes not counted.
        silence: seconds in which it says something when it is waited for.
    """

    records: int = _MOST_RECORDS
    listed: int = _MOST_LISTED
    content: int = _MOST_CONTENT
    silence: float = _SILENCE


_USUAL = Bounds()


@dataclass(frozen=True)
class Survey:
    """A root in a guest that can be looked through.

    Attributes:
        agent: of the guest.
        program: path of the agent's program there.
        upper: serial of the disk that holds what was written, or ``IN_MEMORY``: then all other processes of
            the guest stand still from the first look on.
        lower: serial of the root.
        bounds: of what it may say.
    """

    agent: Agent
    program: str
    upper: str
    lower: str
    bounds: Bounds = _USUAL

    async def records(self, *, everything: bool, patience: float) -> list[Record]:
        """What was written over the root, in no order.

        Args:
            everything: also what the root has; what is not there then has no record.
            patience: seconds for the first one: a disk may have a journal to be replayed.

        Raises:
            GuestError: it cannot be read.
            BootError: stage ``root``: the first one takes too long.
            ProtocolError: what comes is no such list; ``protocol.too_large``: or too long;
                ``protocol.silent``: nothing comes any more.
            ChannelError: the link broke.
        """
        found: list[Record] = []
        left = self.bounds.listed
        records = Records(Record, limit=_MOST)
        async with self._running("all" if everything else "changed") as execution:
            try:
                async with asyncio.timeout(patience):
                    data = await execution.stdout.read()
            except TimeoutError:
                message = f"the guest did not mount {self.upper} within {patience:g} s"
                hint = "make room beside the snapshots, or raise boot_timeout"
                raise BootError(message, stage="root", hint=hint) from None
            while data:
                records.feed(data)
                left -= len(data)
                found.extend(records)
                if left < 0 or len(found) > self.bounds.records:
                    raise ProtocolError("more files than can be compared", code="too_large")
                data = await self._heard(execution.stdout.read())
            await self._finish(execution)
            records.finish()
        return found

    async def contents(self, paths: Sequence[bytes]) -> AsyncGenerator[Piece | End]:
        """The contents of files, one after the other. Raises as ``records``."""
        pieces = Pieces()
        left = self.bounds.content
        async with self._running("read", stdin=True) as execution:
            asking = asyncio.create_task(_ask(execution, paths))
            try:
                while data := await self._heard(execution.stdout.read()):
                    left -= len(data)
                    if left < 0:
                        raise ProtocolError("larger files than can be compared", code="too_large")
                    pieces.feed(data)
                    while (piece := pieces.take()) is not None:
                        yield piece
                await self._heard(asking)
                await self._finish(execution)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def _heard(self, answer: Awaitable[T]) -> T:
        """What the guest says next. Raises ``ProtocolError``: ``protocol.silent``: nothing."""
        try:
            async with asyncio.timeout(self.bounds.silence):
                return await answer
        except TimeoutError:
            message = f"its files cannot be read: it has said nothing for {self.bounds.silence:g} s"
            hint = "try again when the host has less to do"
            raise ProtocolError(message, code="silent", hint=hint) from None

    async def _finish(self, execution: Execution) -> None:
        """Wait for the end. Raises ``GuestError``: it failed."""
        end = await self._heard(execution.wait())
        if end.code == 0:
            return
        said = b""
        while len(said) < _SAID and (data := await self._heard(execution.stderr.read())):
            said += data
        message = said[:_SAID].decode(errors="replace").strip() or f"status {end.code}, signal {end.signal}"
        hint = "redirect_dir and metacopy of overlayfs are not supported" if "supported" in message else ""
        raise GuestError(f"its files cannot be read: {message}", reason="os", hint=hint)

    @asynccontextmanager
    async def _running(self, mode: str, *, stdin: bool = False) -> AsyncIterator[Execution]:
        argv = (self.program, "--survey", mode, self.upper, self.lower)
        start = ExecStart(id=f"survey-{os.urandom(4).hex()}", argv=argv, user="0:0", cwd="/", stdin=stdin)
        execution = self.agent.start(start)
        try:
            await self._heard(execution.started())
            yield execution
        finally:
            execution.release()


async def _ask(execution: Execution, paths: Sequence[bytes]) -> None:
    assert execution.stdin is not None
    for first in range(0, len(paths), 256):
        await execution.stdin.write(b"".join(path + b"\0" for path in paths[first : first + 256]))
    await execution.stdin.end()
