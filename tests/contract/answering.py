"""Servers that do with each of their connections what a test says."""

from __future__ import annotations

import asyncio
import contextlib


@contextlib.asynccontextmanager
async def answering(serve, path=None):
    """A server at ``path``, or at a port of the loopback; it, and the tasks of the connections it has had."""
    seen = []

    async def accept(reader, writer):
        seen.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    if path is None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=600)
    else:
        server = await asyncio.start_unix_server(accept, path, backlog=600)
    try:
        yield server, seen
    finally:
        server.close()
        for task in seen:
            task.cancel()
        await asyncio.gather(*seen, return_exceptions=True)


async def echo(reader, writer):
    """Send back what comes."""
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


async def hold(reader, writer):
    """Do nothing, for ever."""
    await asyncio.Event().wait()
