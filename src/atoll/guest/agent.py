"""Requests to the agent in a guest."""

from __future__ import annotations

import time

from atoll.guest import messages
from atoll.guest.channel import Channel
from atoll.guest.execution import Execution, list_executions

__all__ = ["Agent"]


class Agent:
    """The agent at the other end of ``channel``.

    All methods raise ``GuestError`` if the agent refuses and ``ChannelError`` if the link breaks.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def ready(self) -> int:
        """Wait until the agent answers; the protocol version spoken."""
        return await self._channel.ready()

    async def booted(self) -> messages.Booted:
        """Wait until the root is mounted; ``guest.boot`` if it cannot be."""
        return await self._channel.call_again(messages.BootWait(), messages.Booted)

    async def ping(self, data: bytes = b"") -> float:
        """Have ``data`` echoed; the round trip in seconds."""
        began = time.perf_counter()
        await self._channel.call(messages.Ping(data=data), messages.Pong)
        return time.perf_counter() - began

    async def info(self) -> messages.Info:
        """What the guest is and how far it has booted."""
        return await self._channel.call_again(messages.SystemInfo(), messages.Info)

    async def step_clock(self, realtime: int) -> int:
        """Set the guest's clock, ns since 1970; what it showed before."""
        return (await self._channel.call(messages.ClockStep(realtime=realtime), messages.Stepped)).before

    async def reseed(self, seed: bytes) -> None:
        """Credit 32 to 512 random bytes to the guest's entropy pool and reseed its generator."""
        await self._channel.call_again(messages.EntropyReseed(seed=seed), messages.Empty)

    async def poweroff(self, *, reboot: bool = False, grace: float = 2.0) -> None:
        """End the guest in order; ``grace`` is the time in seconds between SIGTERM and SIGKILL."""
        request = messages.Poweroff(mode="reboot" if reboot else "poweroff", grace=round(grace * 1000))
        await self._channel.call(request, messages.Empty)

    def start(self, command: messages.ExecStart) -> Execution:
        """Start a command. All requests of its life leave at once; ``Execution.started`` tells of errors."""
        return Execution(self._channel, command)

    async def executions(self) -> tuple[messages.ExecutionState, ...]:
        """The executions that the guest holds."""
        return await list_executions(self._channel)
