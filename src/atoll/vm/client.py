"""The other end of a supervisor's control socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from atoll.events import Event
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel, Stream
from atoll.guest.messages import Empty, Request
from atoll.vm import messages
from atoll.vm.bootplan import Share
from atoll.vm.eventlog import decode
from atoll.vm.state import Phase

__all__ = ["Control"]

T = TypeVar("T")


class Control:
    """A connection to a supervisor. Belongs to one event loop.

    All methods raise what the supervisor answers, and ``ChannelError`` if it goes away.

    Args:
        sock: connected; owned from here on.

    Attributes:
        agent: the guest's agent, behind the supervisor.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock)
        self.agent = Agent(self._channel)

    async def status(self) -> messages.Status:
        """What the machine does."""
        return await self._call(messages.StatusRead(), messages.Status)

    async def start(self, files: messages.Files | None = None) -> messages.Status:
        """Bring the guest up; with ``files`` where it was written down."""
        return await self._call(messages.Start(files), messages.Status)

    async def set_egress(self, egress: tuple[str, ...]) -> None:
        """Hold the guest to a policy from now on."""
        await self._call(messages.EgressSet(egress), Empty)

    async def branch(self) -> messages.Branched:
        """Have the disk branched; what it held."""
        return await self._call(messages.Branch(), messages.Branched)

    @asynccontextmanager
    async def capture(
        self, *, hold: bool = False, flush: bool = False, live: bool = False
    ) -> AsyncIterator[messages.Captured]:
        """Have the VM written down, as ``Capture`` says; what was written is there until the block ends."""
        stream = self._channel.open(messages.Capture(hold=hold, flush=flush, live=live))
        try:
            yield await stream.reply(messages.Captured)
        finally:
            stream.cancel()

    async def stop(
        self,
        *,
        force: bool = False,
        timeout: float = 30.0,  # noqa: ASYNC109
        suspended: bool = False,
    ) -> messages.Stopped:
        """End the guest, in order within ``timeout`` seconds, else by force; ``suspended`` as in ``Stop``."""
        request = messages.Stop(force=force, timeout=timeout, suspended=suspended)
        return await self._call(request, messages.Stopped)

    async def pause(self) -> None:
        """Stop the vCPUs."""
        await self._call(messages.Pause(), Empty)

    async def resume(self) -> None:
        """Let the vCPUs go on."""
        await self._call(messages.Resume(), Empty)

    async def wait_for(self, *phases: Phase) -> messages.Status:
        """Wait until the machine is in one of ``phases``."""
        return await self._call(messages.WaitFor(phases=phases), messages.Status)

    async def stats(self) -> messages.Stats:
        """What the VM uses."""
        return await self._call(messages.StatsRead(), messages.Stats)

    async def memory(self, target: int | None = None) -> messages.MemoryState:
        """The guest's memory; with ``target``, bytes, the balloon is set first."""
        return await self._call(messages.MemoryTarget(target=target), messages.MemoryState)

    async def add_share(self, share: Share) -> None:
        """Have a directory of the host mounted in the guest."""
        await self._call(messages.ShareAdd(share), Empty)

    async def remove_share(self, guest: str) -> None:
        """Take the share at ``guest`` away."""
        await self._call(messages.ShareRemove(guest), Empty)

    async def shares(self) -> tuple[Share, ...]:
        """Which directories are shared."""
        return (await self._call(messages.ShareList(), messages.Shared)).shares

    async def join(self, network: str) -> None:
        """Have the VM be on the network of that name."""
        await self._call(messages.NetworkJoin(network), Empty)

    async def resize(self, *, cpus: int = 0, memory: int = 0, disk: int = 0) -> dict[str, bool]:
        """Have the guest use more; for each of what was asked for whether it does now."""
        request = messages.Resize(cpus=cpus, memory=memory, disk=disk)
        return (await self._call(request, messages.Resized)).now

    async def call(self, request: Request, reply: type[T]) -> T:
        """Any other request."""
        return await self._call(request, reply)

    async def events(self, begun: asyncio.Event) -> AsyncIterator[Event]:
        """What happens once ``begun`` is set, until the supervisor goes away."""
        stream = self._channel.open(messages.EventsFollow(), end=True)
        try:
            await stream.reply(Empty)
            begun.set()
            rest = b""
            while data := await stream.read():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    event = decode(line)
                    if event is not None:
                        yield event
        finally:
            stream.cancel()

    def console(self) -> Stream:
        """The guest's console: a stream of bytes in both directions, behind an ``Empty`` reply."""
        return self._channel.open(messages.ConsoleAttach())

    @property
    def broken(self) -> bool:
        """Whether the connection is no more."""
        return self._channel.broken

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    async def _call(self, request: Request, reply: type[T]) -> T:
        return await self._channel.call(request, reply)
