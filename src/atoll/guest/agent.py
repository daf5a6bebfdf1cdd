"""Requests to the agent in a guest."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TypeVar

from atoll.errors import ChannelError
from atoll.guest import messages
from atoll.guest.channel import Channel, Stream
from atoll.guest.execution import Execution, list_executions

__all__ = ["Agent"]

T = TypeVar("T")
#: Bytes under way in either direction of a connection, of which there may be hundreds.
_CONNECTION_WINDOW = 131_072


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

    def begin(self, request: messages.CloneBegin) -> Stream:
        """Tell a clone who it is, before anything else is asked of it; the stream replies ``Empty``."""
        return self._channel.open(request, end=True)

    async def introduce(self, request: messages.CloneBegin) -> None:
        """``begin`` for a guest that may be told more than once, until it has answered."""
        await self._channel.call_again(request, messages.Empty)

    async def poweroff(self, *, reboot: bool = False, grace: float = 2.0, orderly: bool = True) -> None:
        """End the guest.

        Args:
            reboot: it begins again.
            grace: seconds between SIGTERM and SIGKILL.
            orderly: if it has an init of its own, that stops its services in their order; else all processes
                get SIGTERM at once.
        """
        mode = "reboot" if reboot else "poweroff"
        request = messages.Poweroff(mode=mode, grace=round(grace * 1000), orderly=orderly)
        await self._channel.call(request, messages.Empty)

    async def stats(self) -> messages.Stats:
        """What the guest uses, and has used since its boot."""
        return await self._channel.call_again(messages.SystemStats(), messages.Stats)

    async def load_modules(self, paths: Sequence[str]) -> int:
        """Load kernel modules in the order given; how many were not loaded yet.

        Args:
            paths: of the modules' files, below ``/usr/lib/modules/RELEASE/``.
        """
        request = messages.ModuleLoad(paths=tuple(paths))
        return (await self._channel.call_again(request, messages.Loaded)).loaded

    async def configure_network(
        self,
        mac: str,
        address: str,
        *,
        gateway: str | None = None,
        resolvers: Sequence[str] = (),
        wait: float = 5.0,
    ) -> str:
        """Set up a network interface of the guest; its name.

        Args:
            mac: of the interface that is meant.
            address: with its prefix length; the only one that the interface has afterwards.
            gateway: where the default route leads.
            resolvers: addresses of name servers.
            wait: seconds for the interface to appear.
        """
        request = messages.NetConfigure(
            mac=mac, address=address, gateway=gateway, resolvers=tuple(resolvers), wait=round(wait * 1000)
        )
        return (await self._channel.call_again(request, messages.Configured)).interface

    async def mount(
        self, kind: str, source: str, target: str, *, options: str = "", read_only: bool = False
    ) -> None:
        """Mount a file system of type ``kind`` at ``target``, which is made where it is missing.

        It is not repeated after a loss of step (``LinkResetError``): a second mount would cover the first.
        """
        request = messages.FsMount(
            type=kind, source=source, target=target, options=options, read_only=read_only
        )
        await self._channel.call(request, messages.Empty)

    async def unmount(self, target: str, *, lazy: bool = False) -> None:
        """Unmount what is at ``target``, with ``lazy`` also while it is in use.

        It is not repeated after a loss of step (``LinkResetError``): it could meet what lay beneath.
        """
        await self._channel.call(messages.FsUnmount(target=target, lazy=lazy), messages.Empty)

    async def grow_data(self) -> messages.Grown:
        """Have the data disk's file system fill its disk, which has grown."""
        return await self._channel.call_again(messages.DataGrow(), messages.Grown)

    async def trim_data(self) -> int:
        """Give blocks that the data disk's file system does not use back to the host; bytes."""
        return (await self._channel.call_again(messages.DataTrim(), messages.Trimmed)).trimmed

    async def limit_data(self, size: int) -> None:
        """Have a root that lies in memory take no more than ``size`` bytes, at least 4,096."""
        await self._channel.call_again(messages.DataLimit(size=size), messages.Empty)

    async def freeze_data(self, limit: float) -> None:
        """Have the data disk's file system stand still, whole on its disk, for at most ``limit`` seconds."""
        await self._channel.call(messages.DataFreeze(limit=round(limit * 1000)), messages.Empty)

    async def thaw_data(self) -> bool:
        """Let it go on; whether it stood still until now."""
        return (await self._channel.call(messages.DataThaw(), messages.Thawed)).frozen

    async def bring_cpus_online(self) -> int:
        """Use vCPUs that were plugged in; how many are online now."""
        return (await self._channel.call_again(messages.CpuOnline(), messages.Online)).vcpus

    def read_tree(self, path: str | bytes) -> Stream:
        """Have the tree at ``path`` sent: a stream of ``atoll.guest.tree`` behind an ``Empty`` reply."""
        return self._channel.open(messages.TreeRead(path=os.fsencode(path)), end=True)

    def write_tree(self, path: str | bytes, name: str | bytes, *, user: str | None = None) -> Stream:
        """Send a tree to ``path``, or into it as ``name`` where it is a directory.

        The stream takes what ``atoll.guest.tree`` encodes behind an ``Empty`` reply, and tells of the end by
        a ``Written`` as data.
        """
        request = messages.TreeWrite(path=os.fsencode(path), name=os.fsencode(name), user=user)
        return self._channel.open(request)

    async def call(self, request: messages.Request, reply: type[T]) -> T:
        """Make a request that has no method of its own here, and no body."""
        return await self._channel.call(request, reply)

    async def call_again(self, request: messages.Request, reply: type[T]) -> T:
        """``call`` for a request that may be repeated: it is sent again after each loss of step."""
        return await self._channel.call_again(request, reply)

    def open(self, request: messages.Request, *, end: bool = False) -> Stream:
        """Make a request whose stream carries data; ``end`` if none will be sent from here."""
        return self._channel.open(request, end=end)

    def start(self, command: messages.ExecStart) -> Execution:
        """Start a command. All requests of its life leave at once; ``Execution.started`` tells of errors."""
        return Execution(self._channel, command)

    async def attach(
        self, found: messages.ExecutionState, stdout_offset: int | None, stderr_offset: int | None
    ) -> Execution:
        """Take up a command that was started before, with its outputs from these offsets on.

        What lies before an offset need not be held any more; None is the oldest byte that is.
        """
        execution = Execution(self._channel, found, (stdout_offset, stderr_offset))
        try:
            await execution.stdout.attached()
            await execution.stderr.attached()
        except BaseException:
            execution.close()
            raise
        return execution

    def connect(
        self, target: int | str, *, host: str | None = None, window: int = _CONNECTION_WINDOW
    ) -> Stream:
        """Connect to a server in the guest: a stream of bytes both ways, behind an ``Empty`` reply.

        Args:
            target: a TCP port, or the path of a unix socket.
            host: address of the port; the guest's own by default.
            window: bytes that may be under way in either direction, at most 1 MiB.
        """
        port, path = (target, None) if isinstance(target, int) else (None, target)
        request = messages.NetConnect(host=host, port=port, path=path, window=window)
        return self._channel.open(request, window=window)

    def datagrams(self, host: str, port: int) -> Stream:
        """Exchange datagrams with a UDP server; see ``atoll.guest.datagrams``."""
        return self._channel.open(messages.NetDatagrams(port=port, host=host))

    def listening(self) -> Stream:
        """Be told of TCP ports on which programs listen: ``Listening`` as records, behind an ``Empty`` reply.

        Nothing is under way because of it.
        """
        stream = self._channel.open(messages.NetListening(), end=True)
        self._channel.disregard(stream)
        return stream

    async def lost(self) -> ChannelError:
        """Wait until nothing reaches the agent any more; why."""
        return await self._channel.lost()

    async def executions(self) -> tuple[messages.ExecutionState, ...]:
        """The executions that the guest holds."""
        return await list_executions(self._channel)
