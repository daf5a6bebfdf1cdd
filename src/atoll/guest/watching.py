"""Changes of files in a guest, as they happen."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from atoll.errors import AtollError
from atoll.guest.channel import Stream
from atoll.guest.file_messages import Change, ChangeKind, FileChange, Records, WireKind
from atoll.guest.opening import Closing

__all__ = ["Pairing", "Watch"]

#: Seconds that the first half of a move waits for the second: they come at once, or there is none.
_PAIRING = 0.05


class Pairing:
    """Makes changes out of what the guest tells: both halves of a move are one. Free of I/O.

    Args:
        top: what is watched.
    """

    def __init__(self, top: str) -> None:
        self._top = top
        self._left: Change | None = None

    @property
    def waiting(self) -> bool:
        """Whether half a move is held back."""
        return self._left is not None

    def take(self, change: Change) -> list[FileChange]:
        """What is known with this change."""
        left, self._left = self._left, None
        if left is not None and change.kind is WireKind.MOVED_TO and change.cookie == left.cookie:
            return [self._told(ChangeKind.MOVED, change, source=self._path(left))]
        known = [] if left is None else [self._told(ChangeKind.REMOVED, left)]
        if change.kind is WireKind.MOVED_FROM:
            self._left = change
        elif change.kind is WireKind.MOVED_TO:
            known.append(self._told(ChangeKind.CREATED, change))
        else:
            known.append(self._told(ChangeKind(change.kind.value), change))
        return known

    def settle(self) -> list[FileChange]:
        """What half a move is, when there is no other half: it went out of what is watched."""
        left, self._left = self._left, None
        return [] if left is None else [self._told(ChangeKind.REMOVED, left)]

    def _told(self, kind: ChangeKind, change: Change, source: str | None = None) -> FileChange:
        return FileChange(kind=kind, path=self._path(change), source=source, directory=change.directory)

    def _path(self, change: Change) -> str:
        below = os.fsdecode(change.path)
        return f"{self._top.rstrip('/')}/{below}" if below else self._top


class Watch(Closing):
    """Changes of a file, or of what is in a directory: an asynchronous iterator, and a context.

    ::

        async with box.files.watch("/srv") as changes:
            async for change in changes:
                print(change.kind, change.path)

    What happens after it was entered is told. It ends when what is watched is gone. It is made by
    ``Files.watch``.
    """

    def __init__(
        self,
        top: str,
        begin: Callable[[], Awaitable[Stream]],
        explain: Callable[[AtollError], Awaitable[AtollError]],
    ) -> None:
        self._begin = begin
        self._explain = explain
        self._stream: Stream | None = None
        self._records = Records(Change)
        self._pairing = Pairing(top)
        self._known: deque[FileChange] = deque()
        self._ended = False

    async def next(self, timeout: float | None = None) -> FileChange | None:  # noqa: ASYNC109 - it is no error of the watch
        """Wait for the next change; None when there will be no more.

        Args:
            timeout: seconds.

        Raises:
            TimeoutError: nothing has happened for ``timeout`` seconds; it can be waited for again.
            FileError: what is watched cannot be.
            GuestError: ``guest.resource``: there are more directories than can be watched.
            ChannelError: the link broke, or was brought in step again: watch again.
            BootError: the VM died.
        """
        if not self._known:
            async with asyncio.timeout(timeout):
                await self.open()
                while not self._known and not self._ended:
                    await self._advance()
        return self._known.popleft() if self._known else None

    async def open(self) -> None:
        """Begin to watch; entering and iterating do it. Raises as ``next``."""
        if self._stream is None and not self._ended:
            self._adopt(await self._begin())

    async def close(self) -> None:
        """Watch no more: whoever waits gets the end. Closing twice is fine."""
        self._end()
        self._known.clear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FileChange:
        change = await self.next()
        if change is None:
            raise StopAsyncIteration
        return change

    def _adopt(self, stream: Stream) -> None:
        self._stream = stream
        if self._ended:  # closed by somebody else meanwhile
            self._end()

    def _end(self) -> None:
        self._ended = True
        if self._stream is not None:
            self._stream.finish()
            self._stream.cancel()

    async def _advance(self) -> None:
        """Wait for records and take them into account: at most those of a window, so they are bounded."""
        try:
            await self._receive()
            for change in self._records:
                self._known += self._pairing.take(change)
        except AtollError as error:
            self._end()
            raise await self._explain(error) from error

    async def _receive(self) -> None:
        assert self._stream is not None
        try:
            async with asyncio.timeout(_PAIRING if self._pairing.waiting else None):
                data = await self._stream.read()
        except TimeoutError:
            self._known += self._pairing.settle()
            return
        if data:
            self._records.feed(data)
        elif not self._ended:
            self._records.finish()
            self._known += self._pairing.settle()
            self._end()
