"""Writing down what guests do, beside the event loop: the disk may be slow, or full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from atoll.network.audit import AuditLog, Trail

__all__ = ["written_down"]

#: Seconds between two looks at what waits.
_EVERY = 0.25


@asynccontextmanager
async def written_down(trail: Trail, path: Path) -> AsyncIterator[None]:
    """Have what is on ``trail`` written to the log at ``path``, and at the end the rest of it."""
    log = AuditLog(path)
    writing = asyncio.create_task(_write(trail, log))
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        if lines := trail.take():
            log.append(lines)


async def _write(trail: Trail, log: AuditLog) -> None:
    while True:
        await asyncio.sleep(_EVERY)
        if lines := trail.take():
            await asyncio.to_thread(log.append, lines)
