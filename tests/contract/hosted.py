"""The agent as a process of this host: its guest is this host, too."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

from atoll import process
from atoll.events import ignore
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.guest.commands import Commands
from atoll.hypervisor.port import end
from atoll.image.kernel import agent_path, host_architecture


class Box(Commands):
    """Commands in the guest behind ``channel``, as a sandbox and a machine have them."""

    def __init__(self, channel, emit=ignore):
        super().__init__(emit)
        self.name = "box"
        self.channel = channel
        self._agent = Agent(channel)

    def _reached(self):
        return self._agent

    async def _explain(self, error):
        return error


@asynccontextmanager
async def hosted_box(emit=ignore):
    async with hosted_agent() as agent:
        yield Box(agent._channel, emit)


@asynccontextmanager
async def hosted_agent():
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [str(agent_path(host_architecture())), "--fd", str(theirs.fileno())]
        child = process.spawn(argv, pass_fds=[theirs.fileno()])
    channel = Channel(ours)
    try:
        async with asyncio.timeout(60):
            await channel.ready()
            yield Agent(channel)
    finally:
        channel.close()
        await end(child)
