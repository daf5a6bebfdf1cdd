"""An engine for tests of the Docker socket: the agent as a process of this host, and a server behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from atoll import process
from atoll.errors import ChannelError
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.hypervisor.port import end
from atoll.image.kernel import agent_path, host_architecture
from atoll.vm.state import StateError


class Engine:
    """What the listener needs; the server at ``path`` is the test's, or echoes.

    Attributes:
        starts: how often it was started; ``suspends`` likewise.
        gate: starts and suspends wait for it.
        failure: what a start ends with.
        working: something runs in it.
    """

    def __init__(self, path):
        self.path = str(path)
        self.starts = self.suspends = self.dials = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure = None
        self.working = False
        self.channel = self.child = None

    async def ensure_ready(self, timeout):  # noqa: ASYNC109
        if self.channel is not None and not self.channel.broken:
            return
        await self._end()
        self.starts += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [str(agent_path(host_architecture())), "--fd", str(theirs.fileno())]
            self.child = process.spawn(argv, pass_fds=[theirs.fileno()])
        self.channel = Channel(ours)
        async with asyncio.timeout(timeout):
            await self.channel.ready()

    async def dial(self, window):
        self.dials += 1
        if self.channel is None:
            raise StateError("it does not run", code="not_running")
        return Agent(self.channel).connect(self.path, window=window)

    async def busy(self):
        return self.working

    async def suspend(self):
        self.suspends += 1
        await self.gate.wait()
        await self._end()

    async def close(self):
        await self._end()

    async def _end(self):
        channel, child, self.channel, self.child = self.channel, self.child, None, None
        if channel is not None:
            channel.close()
        if child is not None:
            await end(child)


class EchoingEngine(Engine):
    """For a listener's own process: its server sends back what comes, and ends when its client does."""

    def __init__(self, config, _):
        super().__init__(Path(config.data_dir) / "engine.sock")
        self.server = None

    async def ensure_ready(self, timeout):  # noqa: ASYNC109
        if self.server is None:
            self.server = await asyncio.start_unix_server(echo, self.path)
        await super().ensure_ready(timeout)

    async def close(self):
        await super().close()
        if self.server is not None:
            self.server.close()
            self.server = None
            os.unlink(self.path)


class BrokenEngine(Engine):
    """For a listener's own process: it does not start."""

    def __init__(self, config, _):
        super().__init__(Path(config.data_dir) / "engine.sock")
        self.failure = ChannelError("dockerd is missing", hint="build it")


async def echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    writer.close()
