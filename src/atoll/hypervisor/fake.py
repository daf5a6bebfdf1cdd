"""A hypervisor without a virtual machine: the real guest agent as an ordinary process of the host.

It passes the same contract suite as the real backends and lets programs be tested where no VM can run.
Commands run on the host, with this user's rights: it isolates nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from atoll import process
from atoll.errors import BootError
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import Capture, ChannelEnd, Position, end, wait_for_exit
from atoll.paths import agent_path

__all__ = ["FakeHypervisor", "FakeVm"]

#: Seconds that the agent has to end its commands before it is killed.
_ORDERLY = 1.0


class FakeHypervisor:
    """Spawns the agent in hosted mode; the device model is not looked at but for its name."""

    name = "fake"

    def spawn(self, machine: Machine) -> FakeVm:
        """Start the agent. Raises ``BootError`` (stage ``spawn``) if it is not built."""
        agent = agent_path(os.uname().machine)
        if not agent.exists():
            hint = "run `make build`, which compiles it"
            raise BootError(f"{machine.name}: no guest agent for this host", stage="spawn", hint=hint)
        ours, theirs = socket.socketpair()
        console_read, console_write = os.pipe()
        try:
            child = process.spawn(
                [str(agent), "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], output=console_write
            )
        except BaseException:
            ours.close()
            os.close(console_read)
            raise
        finally:
            theirs.close()
            os.close(console_write)
        return FakeVm(child, ours, Capture(console_read))


class FakeVm:
    """The agent's process."""

    def __init__(self, child: process.Process, channel: socket.socket, console: Capture) -> None:
        self.process = child
        self.console = console
        self.diagnostics = console
        self._channel = ChannelEnd(channel)

    def take_channel(self) -> socket.socket:
        """The host's end of the channel, once."""
        return self._channel.take()

    async def wait(self) -> int:
        """Wait for the agent's end."""
        return await wait_for_exit(self.process)

    async def position(self) -> Position:
        """There are no vCPUs to look at."""
        return Position.UNKNOWN

    def discard(self) -> None:
        """Kill the agent; what it runs dies with it."""
        self.process.close()
        self._channel.close()
        self.console.close()

    async def close(self) -> None:
        """End the agent and the commands it runs."""
        self._channel.close()  # without it the agent ends its commands and itself
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ORDERLY):
                    await self.wait()
            await end(self.process)
        finally:
            self.discard()
