"""The agent as a process of this host: its guest is this host, too."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

from atoll import process
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.hypervisor.port import end
from atoll.image.kernel import agent_path, host_architecture


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
