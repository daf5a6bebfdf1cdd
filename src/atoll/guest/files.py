"""Files in a guest: read, written, listed, changed and watched, one at a time.

Whole trees are copied by ``atoll.guest.copying``. All is done as the user who runs commands, and a relative
path begins where commands start. Paths are text, bytes or paths; bytes that are no UTF-8 are told as
``os.fsdecode`` has them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from atoll.errors import (
    AtollError,
    ChannelError,
    FileError,
    FileMissingError,
    ProtocolError,
    UsageError,
)
from atoll.guest import file_messages as messages
from atoll.guest.agent import Agent
from atoll.guest.channel import LinkResetError, Stream
from atoll.guest.file_arguments import Content, GuestPath, SourceError, chunks_of, raw_path, shown_path
from atoll.guest.file_errors import about_file
from atoll.guest.file_messages import FileInfo, Records, Status
from atoll.guest.messages import Empty
from atoll.guest.watching import Watch

__all__ = ["MAX_ENTRIES", "MAX_READ", "Access", "Files", "as_root"]

T = TypeVar("T")

#: Most bytes that are read at once unless more are asked for.
MAX_READ = 1 << 28
#: Most entries of a directory that are listed unless more are asked for.
MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Access:
    """The way to a guest.

    Attributes:
        agent: makes sure that it can be reached, and returns its agent.
        explain: what is behind a channel that broke.
        actor: who runs commands, and where they start; None for the guest's defaults.
    """

    agent: Callable[[], Awaitable[Agent]]
    explain: Callable[[ChannelError], Awaitable[AtollError]]
    actor: Callable[[], tuple[str | None, str | None]]


class Files:
    """The files of a guest; ``files`` of a sandbox or machine.

    All methods take ``user``: who does it, as for a command; by default who runs commands. All raise
    ``FileMissingError`` (what is named does not exist), ``FileError`` (it cannot be used otherwise;
    ``reason`` and ``errno`` say why), ``ChannelError`` (the link broke) and ``BootError`` (the VM died).
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def read(
        self,
        path: GuestPath,
        *,
        offset: int = 0,
        length: int | None = None,
        limit: int = MAX_READ,
        user: str | None = None,
    ) -> bytes:
        """The content of a file.

        Args:
            path: of the file; symbolic links are followed.
            offset: bytes to leave out at its beginning.
            length: most bytes to read; to its end by default.
            limit: bytes beyond which it is refused: all is held in memory.
            user: who reads it.

        Raises:
            ProtocolError: ``protocol.too_large``: there is more than ``limit``.
        """

        async def once() -> bytes:
            parts: list[bytes] = []
            room = limit
            async with aclosing(self.read_chunks(path, offset=offset, length=length, user=user)) as chunks:
                async for chunk in chunks:
                    room -= len(chunk)
                    if room < 0:
                        hint = "read it in pieces with `read_chunks`, or allow more with limit="
                        message = f"{shown_path(path)} has more than {limit} bytes"
                        raise ProtocolError(message, code="too_large", hint=hint)
                    parts.append(chunk)
            return b"".join(parts)

        return await _repeated(once)

    async def read_text(
        self,
        path: GuestPath,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        limit: int = MAX_READ,
        user: str | None = None,
    ) -> str:
        """The content of a file as text. Raises as ``read``, and ``UnicodeDecodeError``.

        Args:
            path: of the file; symbolic links are followed.
            encoding: of the text.
            errors: what becomes of bytes that are none, as for ``bytes.decode``.
            limit: bytes beyond which it is refused.
            user: who reads it.
        """
        return (await self.read(path, limit=limit, user=user)).decode(encoding, errors)

    async def read_chunks(
        self, path: GuestPath, *, offset: int = 0, length: int | None = None, user: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The content of a file in pieces, as they come; the guest waits while none is taken.

        Args:
            path: of the file; symbolic links are followed.
            offset: bytes to leave out at its beginning.
            length: most bytes to read; to its end by default.
            user: who reads it.
        """
        async with self._agent(path) as agent:
            actor, cwd = self._actor(user)
            request = messages.FileRead(
                path=raw_path(path), offset=offset, length=length, user=actor, cwd=cwd
            )
            stream = agent.open(request, end=True)
            try:
                await stream.reply(Status)
                left = length
                while data := await stream.read():
                    left = None if left is None else left - len(data)
                    if left is not None and left < 0:
                        raise ProtocolError("more of a file from the guest than was asked for")
                    yield data
            finally:
                stream.cancel()

    async def write(
        self,
        path: GuestPath,
        data: Content,
        *,
        mode: int | None = None,
        parents: bool = False,
        append: bool = False,
        exclusive: bool = False,
        in_place: bool = False,
        sync: bool = False,
        user: str | None = None,
    ) -> int:
        """Write a file; how many bytes that were.

        The content is written beside the file and takes its place when it is complete: whoever reads sees the
        old or the new one, and after a failure the old one is there. A symbolic link stays one, what it leads
        to is replaced. Other names of the file keep the old content; its owner is kept if ``user`` may give
        it away.

        Args:
            path: of the file.
            data: its content; text is encoded as UTF-8. Pieces that are iterated over are taken as they can
                be sent; those of an ordinary iterable in a thread.
            mode: permission bits; by default those that it has, ``0o644`` if it is new.
            parents: make directories that are missing, with the mode ``0o755``.
            append: write behind what is there, which is not replaced.
            exclusive: nothing may be there.
            in_place: write into the file that is there from its beginning, as ``/proc`` wants it; after a
                failure it holds a part.
            sync: return when it is on the disk.
            user: who writes it.

        Raises:
            UsageError: more than one of ``append``, ``exclusive`` and ``in_place`` was asked for.
        """
        how = _how(append=append, exclusive=exclusive, in_place=in_place)
        try:
            async with self._agent(path) as agent, aclosing(chunks_of(data)) as chunks:
                actor, cwd = self._actor(user)
                request = messages.FileWrite(
                    path=raw_path(path), how=how, mode=mode, parents=parents, sync=sync, user=actor, cwd=cwd
                )
                stream = agent.open(request)
                try:
                    async for chunk in chunks:
                        await stream.write(chunk)
                    await stream.write(b"", end=True)
                    return (await stream.reply(messages.WrittenFile)).bytes
                finally:
                    stream.cancel()
        except SourceError as error:
            raise error.cause from None

    async def list(
        self, path: GuestPath, *, limit: int = MAX_ENTRIES, user: str | None = None
    ) -> list[FileInfo]:
        """What is in a directory, by name; symbolic links are told of themselves.

        Args:
            path: of the directory.
            limit: entries beyond which it is refused: all are held in memory.
            user: who lists it.

        Raises:
            ProtocolError: ``protocol.too_large``: there are more than ``limit``.
        """
        place = shown_path(path).rstrip("/")

        async def once() -> list[FileInfo]:
            found: list[FileInfo] = []
            async with aclosing(self._entries(path, user)) as entries:
                async for entry in entries:
                    if len(found) == limit:
                        message = f"{place or '/'} has more than {limit} entries"
                        raise ProtocolError(message, code="too_large", hint="allow more with limit=")
                    name = os.fsdecode(entry.name)
                    found.append(entry.info(f"{place}/{name}", name))
            return sorted(found, key=lambda info: info.name)

        return await _repeated(once)

    async def _entries(self, path: GuestPath, user: str | None) -> AsyncGenerator[messages.Entry, None]:
        records = Records(messages.Entry)
        async with self._agent(path) as agent:
            actor, cwd = self._actor(user)
            stream = agent.open(messages.FileList(path=raw_path(path), user=actor, cwd=cwd), end=True)
            try:
                await stream.reply(Empty)
                while data := await stream.read():
                    records.feed(data)
                    for entry in records:
                        yield entry
                records.finish()
            finally:
                stream.cancel()

    async def stat(
        self, path: GuestPath, *, follow_symlinks: bool = True, user: str | None = None
    ) -> FileInfo:
        """What a file is.

        Args:
            path: of the file.
            follow_symlinks: tell of what a symbolic link leads to, not of itself.
            user: who looks.
        """
        async with self._agent(path) as agent:
            actor, cwd = self._actor(user)
            request = messages.FileStat(path=raw_path(path), follow=follow_symlinks, user=actor, cwd=cwd)
            return (await agent.call_again(request, Status)).info(shown_path(path))

    async def exists(self, path: GuestPath, *, user: str | None = None) -> bool:
        """Whether a path leads to something; a symbolic link that leads nowhere does not.

        Args:
            path: that may exist.
            user: who looks.
        """
        try:
            await self.stat(path, user=user)
        except FileMissingError:
            return False
        except FileError as error:
            if error.errno == errno.ENOTDIR:
                return False
            raise
        return True

    async def move(
        self, source: GuestPath, target: GuestPath, *, replace: bool = True, user: str | None = None
    ) -> None:
        """Give a file or directory another path on the same file system, at once or not at all.

        Args:
            source: its path.
            target: its new path, also where that is a directory, which is replaced only by another and if it
                is empty.
            replace: whether something may be there already.
            user: who moves it.
        """
        async with self._agent(source, target) as agent:
            actor, cwd = self._actor(user)
            request = messages.FileMove(
                source=raw_path(source), target=raw_path(target), replace=replace, user=actor, cwd=cwd
            )
            await agent.call(request, Empty)

    async def remove(
        self,
        path: GuestPath,
        *,
        recursive: bool = False,
        missing_ok: bool = False,
        user: str | None = None,
    ) -> None:
        """Remove a file, a symbolic link (not what it leads to) or an empty directory.

        Args:
            path: of it.
            recursive: remove a directory with all below it, but nothing on other file systems.
            missing_ok: it may be gone already.
            user: who removes it.
        """
        try:
            async with self._agent(path) as agent:
                actor, cwd = self._actor(user)
                request = messages.FileRemove(path=raw_path(path), recursive=recursive, user=actor, cwd=cwd)
                await agent.call(request, Empty)
        except FileMissingError:
            if not missing_ok:
                raise

    async def make_directory(
        self,
        path: GuestPath,
        *,
        mode: int = 0o755,
        parents: bool = False,
        exist_ok: bool = False,
        user: str | None = None,
    ) -> None:
        """Make a directory.

        Args:
            path: of it.
            mode: permission bits.
            parents: make those above it that are missing, with the mode ``0o755``.
            exist_ok: it may be there already, and is left as it is.
            user: who makes it.
        """
        async with self._agent(path) as agent:
            actor, cwd = self._actor(user)
            request = messages.FileMakeDirectory(
                path=raw_path(path), mode=mode, parents=parents, exist_ok=exist_ok, user=actor, cwd=cwd
            )
            await agent.call(request, Empty)

    def watch(self, path: GuestPath, *, recursive: bool = False, user: str | None = None) -> Watch:
        """Watch a file, or what is in a directory. Nothing is done before it is entered or iterated over.

        Args:
            path: of it; a symbolic link is followed.
            recursive: watch all directories below it, too, but for those that ``user`` may not read.
            user: who watches.
        """

        async def begin() -> Stream:
            async with self._agent(path) as agent:
                actor, cwd = self._actor(user)
                request = messages.FileWatch(path=raw_path(path), recursive=recursive, user=actor, cwd=cwd)
                return await agent.open(request, end=True).accepted()

        async def explain(error: AtollError) -> AtollError:
            return await self._explained(error, shown_path(path))

        return Watch(shown_path(path), begin, explain)

    @asynccontextmanager
    async def _agent(self, *paths: GuestPath) -> AsyncIterator[Agent]:
        """The agent; what is raised inside is told as an error about the first of ``paths``."""
        try:
            yield await self._access.agent()
        except AtollError as error:
            raise await self._explained(error, shown_path(paths[0])) from error

    def _actor(self, user: str | None) -> tuple[str | None, str | None]:
        """Who does it, and where relative paths begin; known only when the guest has been reached."""
        default, workdir = self._access.actor()
        return user or default, f"/{workdir.lstrip('/')}" if workdir else None

    async def _explained(self, error: AtollError, path: str) -> AtollError:
        if isinstance(error, LinkResetError):
            return LinkResetError(f"{path}: {error.message}", hint="try again")
        if isinstance(error, ChannelError) and not isinstance(error, ProtocolError):
            return await self._access.explain(error)
        return about_file(error, path)


def as_root(agent: Agent) -> Files:
    """The files of a guest for Atoll itself: as root. Errors of its channel are raised as they are."""

    async def reached() -> Agent:
        return agent

    async def explain(error: ChannelError) -> AtollError:
        return error

    return Files(Access(reached, explain, lambda: ("root", "/")))


def _how(*, append: bool, exclusive: bool, in_place: bool) -> str:
    asked = [
        how for how, is_it in (("append", append), ("create", exclusive), ("truncate", in_place)) if is_it
    ]
    if len(asked) > 1:
        raise UsageError(
            "a file cannot be written in two ways at once",
            code="write",
            hint="give one of append, exclusive and in_place",
        )
    return asked[0] if asked else "replace"


async def _repeated(once: Callable[[], Awaitable[T]]) -> T:
    """What can be asked for again is, after each loss of step."""
    while True:
        try:
            return await once()
        except LinkResetError:
            continue
