"""Waiting for what cannot be cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["to_its_end"]

T = TypeVar("T")


async def to_its_end(work: Awaitable[T]) -> T:
    """What ``work`` returns; whoever is cancelled meanwhile waits for its end first.

    For what cannot be cut off: a thread goes on whoever has ceased to wait for it.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.cancelled() or task.exception()  # what went wrong is of no interest any more
        raise
