"""Copying files and directories between the host and a guest.

Names follow ``cp -r``, in both directions: where the target exists as a directory the source goes into it
under its own name, else it becomes the target, whose parent must exist. A source whose last name is ``.`` or
``..`` has no name of its own: what is in it is copied. A source that is itself a symbolic link is followed,
as by ``cp -rH``, and keeps the link's name; those inside it are copied as links.

The disk is worked on in a thread of each copy's own, one piece of a tree at a time, while the event loop goes
on. The guest is not trusted: ``TreeWriter`` says what keeps it inside the target.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from atoll.errors import GuestError, ProtocolError
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.guest.agent import Agent
from atoll.guest.channel import LinkResetError, Stream
from atoll.guest.messages import Empty, Written
from atoll.guest.tree import Limits, shown
from atoll.guest.tree_reader import TreeReader
from atoll.guest.tree_writer import TreeWriter

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["Copied", "receive_tree", "send_tree"]

T = TypeVar("T")

#: Most bytes that a guest may say at the end of a tree.
_MAX_END = 4096
#: Seconds between two events about the progress.
_PACE = 0.1

_DEFAULTS = Limits()

_AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Attributes:
        entries: files, directories and links.
        bytes: content, without holes.
        elapsed: seconds.
    """

    entries: int
    bytes: int
    elapsed: float


async def send_tree(
    agent: Agent,
    source: _AnyPath,
    target: str,
    *,
    user: str | None = None,
    emit: Emit = ignore,
    limits: Limits = _DEFAULTS,
) -> Copied:
    """Copy a file or directory of the host into a guest.

    Holes, hard links, fifos, modes and times are kept; sockets and devices are left out, as is what vanishes
    meanwhile.

    Args:
        agent: of the guest.
        source: on the host; as text it may end in ``/`` or ``/.``, which a ``Path`` cannot.
        target: absolute path in the guest.
        user: who shall own all in the guest, as for a command; without it the owners' numbers are kept.
        emit: told of the progress, the task ``copy``.
        limits: beyond them nothing is sent any more.

    Raises:
        StoreError: ``source`` does not exist or cannot be read.
        ProtocolError: ``protocol.too_large``: it exceeds ``limits``.
        GuestError: the guest could not write it; what was complete stays.
        ChannelError: the link broke.
    """
    began = time.monotonic()
    path = os.fsencode(source)
    name, reader = shown(path), TreeReader(path, limits)
    with _explained(name, "the directory that it goes into must exist in the guest: make it first"):
        async with _thread(reader.close) as run:
            total = await run(reader.open)
            with task(emit, "copy", f"Copying {name}", total=total, unit="bytes"):
                stream = agent.write_tree(target, _own_name(path), user=user)
                try:
                    await _send(stream, reader, run, _Progress(emit))
                finally:
                    stream.cancel()
    return Copied(reader.entries, reader.bytes, time.monotonic() - began)


async def receive_tree(
    agent: Agent,
    source: str,
    target: _AnyPath,
    *,
    archive: bool = False,
    emit: Emit = ignore,
    limits: Limits = _DEFAULTS,
) -> Copied:
    """Copy a file or directory of a guest to the host.

    Existing files are replaced when the new ones are complete, existing directories are merged into and keep
    their modes and times. After a failure the file that was being written is gone, what was complete stays.

    Args:
        agent: of the guest.
        source: absolute path in the guest; ``/`` or ``/.`` may stand behind it.
        target: on the host.
        archive: set modes as they are in the guest, whatever the umask is, also of directories that existed;
            as root keep owners and set-id bits, too.
        emit: told of the progress, the task ``copy``.
        limits: what the guest may send at most.

    Raises:
        StoreError: it cannot be written here: ``store.full``, ``store.unwritable``, ``store.io``,
            ``store.missing`` if the directory for it does not exist.
        ProtocolError: the guest sent no proper tree, or (``protocol.too_large``) one beyond ``limits``.
        GuestError: the guest cannot read it.
        ChannelError: the link broke.
    """
    began = time.monotonic()
    path = os.fsencode(source)
    name = shown(path)
    writer = TreeWriter(os.fsencode(target), _own_name(path), archive=archive, limits=limits)
    with _explained(name, "check the path in the guest"):
        async with _thread(writer.close) as run:
            await run(writer.open)
            stream = agent.read_tree(source)
            try:
                await stream.reply(Empty)
                total = await run(writer.write, await stream.read())  # it has the size of a single file
                with task(emit, "copy", f"Copying {name}", total=total, unit="bytes"):
                    await _receive(stream, writer, run, _Progress(emit))
            finally:
                stream.cancel()
    return Copied(writer.entries, writer.bytes, time.monotonic() - began)


async def _send(stream: Stream, reader: TreeReader, run: _Run, progress: _Progress) -> None:
    await stream.reply(Empty)
    while batch := await run(reader.read):
        await stream.write(batch)
        progress.tell(reader.entries, reader.bytes)
    await stream.write(b"", end=True)
    await _read_end(stream)


async def _receive(stream: Stream, writer: TreeWriter, run: _Run, progress: _Progress) -> None:
    while data := await stream.read():
        await run(writer.write, data)
        progress.tell(writer.entries, writer.bytes)
    await run(writer.finish)


class _Progress:
    """Tells how far a copy is, not too often."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._due = time.monotonic() + _PACE

    def tell(self, entries: int, done: int) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _PACE
            note = f"{done / (1 << 20):.1f} MiB, {entries} entries"
            self._emit(TaskAdvanced(task="copy", done=done, note=note))


@contextlib.contextmanager
def _explained(name: str, hint: str) -> Iterator[None]:
    """Say what was being copied, and what to do, where the error does not."""
    try:
        yield
    except LinkResetError as error:
        message = f"copying {name} was cut off: {error.message}"
        raise LinkResetError(message, hint="copy it again") from error
    except GuestError as error:
        if error.hint or error.errno not in {errno.ENOENT, errno.ENOTDIR}:
            raise
        raise GuestError(
            error.message, reason=error.reason, errno=error.errno, stage=error.stage, hint=hint
        ) from error


class _Run:
    """Runs functions in one thread, one after the other."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()

    async def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._pool, function, *arguments)


@asynccontextmanager
async def _thread(last: Callable[[], None]) -> AsyncIterator[_Run]:
    """A thread for the work on disk. ``last`` is done in the end whatever happens, behind what still runs.

    The loop's own threads are not taken: a slow disk would hold up everybody else who uses them.
    """
    # It cannot be loaded any more once a program's main thread has ended, and other threads may go on.
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    pool = ThreadPoolExecutor(1, "atoll-copy")
    try:
        yield _Run(pool)
    finally:
        ending = pool.submit(last)
        pool.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(ending))


async def _read_end(stream: Stream) -> Written:
    """What the guest says when it has written all."""
    said = b""
    while data := await stream.read():
        said += data
        if len(said) > _MAX_END:
            break
    try:
        return msgspec.msgpack.decode(said[:_MAX_END], type=Written)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed end of a tree from the guest: {error}") from error


def _own_name(path: bytes) -> bytes:
    """What a source is called inside an existing directory; empty if its content goes there."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    return b"" if name in {b".", b".."} else name
