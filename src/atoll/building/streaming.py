"""Streams between threads, which block, and the event loop, which must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from atoll.errors import BuildError
from atoll.image.oci.source import Stream
from atoll.patience import to_its_end

__all__ = ["Pulled", "chunks"]

#: Bytes that are handed over at once.
_ENOUGH = 1 << 18


async def chunks(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """What an iterator gives that may block, each piece made in a thread; small ones are given together."""

    def gather() -> bytes:
        parts: list[bytes] = []
        size = 0
        for piece in pieces:
            parts.append(piece)
            size += len(piece)
            if size >= _ENOUGH:
                break
        return b"".join(parts)

    while data := await to_its_end(asyncio.to_thread(gather)):
        yield data


class Pulled:
    """Opens what the event loop can give in pieces, as a stream for another thread.

    Args:
        start: begins to give it.
        loop: the event loop.
    """

    def __init__(
        self, start: Callable[[], AsyncGenerator[bytes, None]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._start = start
        self._loop = loop
        self._over = False

    def end(self) -> None:
        """Have streams that are read fail."""
        self._over = True

    @contextmanager
    def __call__(self) -> Iterator[Stream]:
        """The stream, from its beginning."""
        pieces = self._start()
        try:
            yield _Reading(lambda: self._ask(pieces))
        finally:
            asyncio.run_coroutine_threadsafe(_close(pieces), self._loop).result()

    def _ask(self, pieces: AsyncGenerator[bytes, None]) -> bytes:
        if self._over:
            raise BuildError("nobody wants the image any more", code="builder")
        return asyncio.run_coroutine_threadsafe(_next(pieces), self._loop).result()


class _Reading:
    """Pieces as a stream."""

    def __init__(self, ask: Callable[[], bytes]) -> None:
        self._ask = ask
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        data = self._rest or self._ask()
        self._rest = data[size:]
        return data[:size]


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces, b"")


async def _close(pieces: AsyncGenerator[bytes, None]) -> None:
    await pieces.aclose()
