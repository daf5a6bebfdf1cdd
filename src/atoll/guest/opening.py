"""What is awaited for an object, or entered for one that is closed at the end of the block."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

__all__ = ["Closing", "Listening", "Opening", "opening"]


class Closing:
    """Base of what is closed at the end of a block."""

    async def close(self) -> None:
        """End it. Closing twice is fine."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Listening(Closing):
    """Base of what leads from a port of this host into a guest, until that cannot be reached any more.

    Args:
        sock: bound to the port.
        lost: returns when the guest cannot be reached.
    """

    def __init__(self, sock: socket.socket, lost: Callable[[], Awaitable[object]]) -> None:
        self._host: str
        self._port: int
        self._host, self._port = sock.getsockname()[:2]
        self._lost = lost
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Give the port back, and end all connections. Closing twice is fine."""
        self._watching.cancel()
        await self._end()

    async def _watch(self) -> None:
        await self._lost()
        await self._end()

    async def _end(self) -> None:
        """Give the port back; this may be done twice."""
        raise NotImplementedError

    @property
    def host(self) -> str:
        """The address of this host that it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port of this host that it listens on."""
        return self._port


P = ParamSpec("P")
C = TypeVar("C", bound=Closing)


class Opening(Coroutine[Any, Any, C]):
    """A coroutine that may stand behind ``await`` as well as behind ``async with``.

    Args:
        coroutine: opens the object.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, C]) -> None:
        self._coroutine = coroutine
        self._opened: C | None = None

    def __await__(self) -> Generator[Any, Any, C]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """As coroutines have it; ``throw`` and ``close`` likewise."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """As coroutines have it."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """As coroutines have it."""
        self._coroutine.close()

    async def __aenter__(self) -> C:
        self._opened = await self._coroutine
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.close()


def opening(method: Callable[P, Coroutine[Any, Any, C]]) -> Callable[P, Opening[C]]:
    """Make a method whose object may be awaited or entered."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> Opening[C]:
        return Opening(method(*args, **kwargs))

    return call
