"""Waiting for what cannot be cut off."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["in_thread", "to_its_end"]

T = TypeVar("T")


async def to_its_end(
    work: Awaitable[T],
    *,
    hurry: Callable[[], None] = lambda: None,
    unwanted: Callable[[T], None] = lambda _: None,
) -> T:
    """What ``work`` returns; whoever is cancelled meanwhile, once or several times, waits for its end first.

    For what cannot be cut off: a thread goes on whoever has ceased to wait for it.

    Args:
        work: what is waited for.
        hurry: called when the caller is cancelled, for it to end soon.
        unwanted: given what it returned to a caller who was cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hurry()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        # What went wrong is of no interest any more.
        if not task.cancelled() and task.exception() is None:
            unwanted(task.result())
        raise


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Work beside the event loop, to its end.

    Args:
        work: given what is set when nobody wants it any more.
    """
    ended = threading.Event()
    working = asyncio.get_running_loop().run_in_executor(None, work, ended)
    return await to_its_end(working, hurry=ended.set)
