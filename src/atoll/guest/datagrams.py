"""A UDP server of the guest on a port of the host, through the guest's channel (agent protocol, section 10).

Each client of the host's port gets a socket of its own in the guest, so that answers find their way back.
Like a network, the way loses datagrams where one side does not keep up: nothing piles up, nothing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from atoll.errors import AtollError, UsageError
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.guest.exposure import check
from atoll.guest.messages import Empty
from atoll.guest.opening import Listening

__all__ = ["LONGEST", "Forwarded", "Unframer", "forward", "frame"]

#: Bytes of the longest datagram over IPv4.
LONGEST = 65_507

#: Seconds after which a client is forgotten that was silent and was sent nothing (RFC 4787, REQ-5).
_IDLE = 120.0

#: Clients at once; a new one takes the place of the one that was silent for longest.
_CLIENTS = 256

#: Datagrams of one client that wait for the guest.
_WAITING = 64


def frame(data: bytes) -> bytes:
    """A datagram as it is in a stream."""
    return len(data).to_bytes(2, "little") + data


class Unframer:
    """Takes datagrams out of a stream, however that is cut into pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The datagrams that are whole with this piece."""
        self._buffer += data
        while len(self._buffer) >= 2:
            end = 2 + int.from_bytes(self._buffer[:2], "little")
            if len(self._buffer) < end:
                return
            packet = bytes(self._buffer[2:end])
            del self._buffer[:end]
            yield packet


class Forwarded(Listening):
    """A UDP server of the guest that programs reach at ``host`` and ``port``; made by ``forward``."""

    def __init__(self, sock: socket.socket, relay: _Relay) -> None:
        super().__init__(sock, relay.lost)
        self._relay = relay

    async def _end(self) -> None:
        await self._relay.close()


async def forward(agent: Agent, target: tuple[str, int], *, host: str, port: int) -> Forwarded:
    """Bind ``host`` and ``port`` and pass datagrams on to ``target`` in the guest, and its answers back.

    Args:
        agent: of the guest.
        target: address and port there.
        host: address of this host.
        port: of this host; 0 for any that is free.

    Raises:
        UsageError: ``usage.expose``: there is no such port, or this host's is taken or forbidden.
    """
    check(target[1], port)
    try:
        sock = _bind(host, port)
    except OSError as error:
        message = f"cannot bind {host} port {port}/udp: {error.strerror}"
        hint = "choose another port, or 0 for any that is free"
        raise UsageError(message, code="expose", hint=hint) from error
    relay = _Relay(agent, target, sock)
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: relay, sock=sock)
    return Forwarded(sock, relay)


def _bind(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if sock.family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class _Relay(asyncio.DatagramProtocol):
    """Clients of one port, by their addresses."""

    def __init__(self, agent: Agent, target: tuple[str, int], sock: socket.socket) -> None:
        self._agent = agent
        self._target = target
        self._socket = sock
        self._clients: dict[Any, _Client] = {}
        self._transport: asyncio.DatagramTransport
        self._unbound = asyncio.Event()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """The port is bound."""
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """The port is given back."""
        self._unbound.set()

    def datagram_received(self, data: bytes, address: Any) -> None:
        """Pass a datagram on to the guest."""
        if len(data) > LONGEST:
            return
        client = self._clients.pop(address, None)
        if client is None or client.over:
            if len(self._clients) >= _CLIENTS:
                self._clients.pop(next(iter(self._clients))).cancel()
            client = _Client(self._agent, self._target, partial(self._answer, address))
            client.task.add_done_callback(lambda _: self._forget(address, client))
        self._clients[address] = client  # the last one now
        client.offer(data)

    def _answer(self, address: Any, data: bytes) -> None:
        """Send now or never: a transport keeps what the socket does not take, and drops what is empty."""
        with contextlib.suppress(OSError):
            self._socket.sendto(data, address)

    def _forget(self, address: Any, client: _Client) -> None:
        if self._clients.get(address) is client:
            del self._clients[address]

    async def lost(self) -> None:
        """Wait until the guest cannot be reached any more."""
        await self._agent.lost()

    async def close(self) -> None:
        """Give the port back, and forget all clients."""
        self._transport.close()
        await self._unbound.wait()
        tasks = [client.task for client in self._clients.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Client:
    """One client of the port, and its socket in the guest."""

    def __init__(self, agent: Agent, target: tuple[str, int], answer: Callable[[bytes], None]) -> None:
        self._agent = agent
        self._target = target
        self._answer = answer
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)
        self._used = asyncio.get_running_loop().time()
        self.task = asyncio.create_task(self._run())

    @property
    def over(self) -> bool:
        """Nothing is passed on any more."""
        return self.task.done()

    def offer(self, data: bytes) -> None:
        """Pass it on, unless too many wait."""
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait(data)

    def cancel(self) -> None:
        """Forget it."""
        self.task.cancel()

    async def _run(self) -> None:
        stream: Stream | None = None
        try:
            stream = self._agent.datagrams(*self._target)
            await stream.reply(Empty)
            async with asyncio.TaskGroup() as both:
                passing = [both.create_task(self._up(stream)), both.create_task(self._down(stream))]
                await self._grow_old()
                for task in passing:
                    task.cancel()
        except* (AtollError, OSError):
            pass  # the guest does not want it, or is gone: a network says no more
        finally:
            if stream is not None:
                stream.cancel()

    async def _grow_old(self) -> None:
        """Wait until nothing was passed on for long."""
        loop = asyncio.get_running_loop()
        while (left := self._used + _IDLE - loop.time()) > 0:  # noqa: ASYNC110 - it gets later meanwhile
            await asyncio.sleep(left)

    async def _up(self, stream: Stream) -> None:
        while True:
            data = await self._waiting.get()
            await stream.write(frame(data))
            self._used = asyncio.get_running_loop().time()

    async def _down(self, stream: Stream) -> None:
        unframer = Unframer()
        while data := await stream.fetch():
            for packet in unframer.feed(data):
                self._answer(packet)
            stream.consumed(len(data))
            self._used = asyncio.get_running_loop().time()
