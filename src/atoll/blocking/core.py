"""What the blocking faces have in common: an event loop in a thread of its own, and waiting for it."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from atoll.errors import UsageError

__all__ = [
    "Closing",
    "Face",
    "at_hand",
    "blocking",
    "check_owner",
    "connecting",
    "in_turn",
    "loop",
    "made_from",
    "opening",
    "wait_for",
    "waiting",
]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="Face")

#: Seconds that an interrupted call has to clean up.
_CLEANUP = 5.0


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_making = threading.Lock()


def loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process; a forked child has none of its parent's threads: the key is the pid."""
    with _making:
        found = _loops.get(os.getpid())
        if found is None:
            found = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=found.run_forever, name="atoll-loop", daemon=True).start()
        return found


def wait_for(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run ``coroutine`` on the loop's thread; an interrupt cancels it there and waits for its cleaning up.

    Raises:
        UsageError: this is the loop's own thread, as in an event's listener: it would wait for itself.
    """
    running = loop()
    if asyncio._get_running_loop() is running:  # noqa: SLF001 - the public function raises where there is none
        coroutine.close()
        hint = "hand the work to another thread, or use atoll.aio"
        raise UsageError("a listener cannot wait for its own sandbox", code="listener", hint=hint)
    ended = threading.Event()

    async def watched() -> R:
        try:
            return await coroutine
        finally:
            ended.set()

    future = asyncio.run_coroutine_threadsafe(watched(), running)
    try:
        return future.result()
    except BaseException:
        if not future.done():
            future.cancel()
            ended.wait(_CLEANUP)
        raise


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """A method that waits for what ``method`` of the asynchronous object returns."""

    @functools.wraps(method)
    def wait(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        check_owner(self._owner)
        return wait_for(method(self._async, *args, **kwargs))

    return wait


def connecting(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, socket.socket]],
) -> Callable[Concatenate[Any, P], socket.socket]:
    """A method that waits for the socket that ``method`` returns, which blocks then."""
    connect = blocking(method)

    @functools.wraps(method)
    def wait(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> socket.socket:
        sock = connect(self, *args, **kwargs)
        sock.setblocking(True)
        return sock

    return wait


def waiting(function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """A function that waits for what ``function`` returns."""

    @functools.wraps(function)
    def wait(*args: P.args, **kwargs: P.kwargs) -> R:
        return wait_for(function(*args, **kwargs))

    return wait


def check_owner(owner: int) -> None:
    """Refuse what a parent process opened. Raises ``UsageError``."""
    if owner != os.getpid():
        hint = "a forked child must open its own"
        raise UsageError("this belongs to the parent process", code="forked", hint=hint)


def made_from(kind: Callable[P, Any]) -> Callable[Concatenate[Any, P], None]:
    """A constructor that takes what ``kind`` takes."""

    def init(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._async = kind(*args, **kwargs)
        self._owner = os.getpid()

    return init


def opening(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, Any]], face: Callable[[Any], F]
) -> Callable[Concatenate[Any, P], F]:
    """A method that waits for the object that ``method`` opens, and returns its blocking ``face``."""
    wait = blocking(method)

    @functools.wraps(method)
    def open_face(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> F:
        return face(wait(self, *args, **kwargs))

    return open_face


def in_turn(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """A method that waits like others, and is called by one thread at a time."""
    wait = blocking(method)

    @functools.wraps(method)
    def wait_in_turn(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turn:
            return wait(self, *args, **kwargs)

    return wait_in_turn


def at_hand(
    at_hand: Callable[[Any], R | None], method: Callable[[Any], Coroutine[Any, Any, R | None]]
) -> Callable[[Any], R | None]:
    """As ``in_turn``, for a method that need not wait for what is ``at_hand``."""
    wait = blocking(method)

    @functools.wraps(method)
    def take_in_turn(self: Any, /) -> R | None:
        with self._turn:
            found = at_hand(self._async)
            return found if found is not None else wait(self)

    return take_in_turn


class Face:
    """Base of the blocking faces of asynchronous objects; a forked child must not use its parent's."""

    def __init__(self, original: Any) -> None:
        self._async = original
        self._owner = os.getpid()

    @classmethod
    def _of(cls, original: Any) -> Self:
        """The face of an object that is there already."""
        face = cls.__new__(cls)
        Face.__init__(face, original)
        return face


class Closing(Face):
    """Base of those that are closed at the end of a block."""

    def close(self) -> None:
        """End it. Closing twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner == os.getpid():  # a forked child leaves what is its parent's alone
            self.close()
