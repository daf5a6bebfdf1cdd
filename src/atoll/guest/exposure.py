"""A server of the guest on a port of the host, through the guest's channel.

The way of a byte from a client: asyncio reads it from the client's socket, ``_upload`` hands it to a
``Stream``, the agent to the server; back by ``_download``. Neither reads on before the other side has taken
what was read: what is under way is bounded for each connection, and a slow reader holds up the writer at the
other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from atoll.errors import AtollError, UsageError
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.guest.messages import Empty
from atoll.guest.opening import Closing

__all__ = ["Exposed", "listen"]

#: Clients that may wait to be accepted.
_BACKLOG = 512
#: Bytes read from a client at once.
_CHUNK = 65_536
#: Payload of SO_LINGER (socket(7)): closing tells the peer of an error.
_AT_ONCE = struct.pack("ii", 1, 0)


class Exposed(Closing):
    """A server of the guest that this host's programs reach at ``host`` and ``port``; made by ``expose``."""

    def __init__(self, server: asyncio.Server, relay: Relay) -> None:
        self._server = server
        self._relay = relay
        self._host: str
        self._port: int
        self._host, self._port = server.sockets[0].getsockname()[:2]
        self._watching = asyncio.create_task(self._watch())

    @property
    def host(self) -> str:
        """The address of this host that it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port of this host that it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Where a browser finds it, if it is a web server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def close(self) -> None:
        """Listen no more, and end all connections. Closing twice is fine."""
        self._watching.cancel()
        self._server.close()
        await self._relay.close()

    async def _watch(self) -> None:
        await self._relay.lost()
        self._server.close()
        await self._relay.close()


class Relay:
    """Connections of clients to ``target`` in the guest, each of them a task."""

    def __init__(self, agent: Agent, target: int | str) -> None:
        self._agent = agent
        self._target = target
        self._connections: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client."""
        task = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def lost(self) -> None:
        """Wait until the guest cannot be reached any more."""
        await self._agent.lost()

    async def close(self) -> None:
        """End all connections."""
        connections = tuple(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end; an error at either side is one at the other."""
        stream: Stream | None = None
        writer.transport.set_write_buffer_limits(high=0)
        try:
            stream = self._agent.connect(self._target)
            await stream.reply(Empty)
            await _copy(reader, writer, stream)
            writer.close()
        except (AtollError, OSError):
            _abort(writer)
        except asyncio.CancelledError:
            _abort(writer)
            raise
        finally:
            if stream is not None:
                stream.cancel()


async def listen(agent: Agent, target: int | str, *, host: str, port: int) -> Exposed:
    """Listen on ``host`` and ``port`` and connect each client to ``target``.

    Raises:
        UsageError: ``usage.expose``: there is no such port, or this host's is taken or forbidden.
    """
    _check(target, port)
    relay = Relay(agent, target)
    server = await asyncio.start_server(relay.accept, sock=await _bind(host, port), backlog=_BACKLOG)
    return Exposed(server, relay)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: Stream) -> None:
    """Both directions until both have ended; what the server sent before an error comes before that."""
    uploading = asyncio.create_task(_upload(reader, stream))
    failing = asyncio.create_task(stream.failure())
    try:
        await _download(stream, writer)
        await asyncio.wait([uploading, failing], return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            raise failing.result()
        await uploading
    finally:
        failing.cancel()
        uploading.cancel()
        await asyncio.gather(uploading, failing, return_exceptions=True)


async def _upload(reader: asyncio.StreamReader, stream: Stream) -> None:
    try:
        while data := await reader.read(_CHUNK):
            await stream.write(data)
        await stream.write(b"", end=True)
    except OSError:
        stream.cancel()  # the client is gone


async def _download(stream: Stream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.fetch():
        writer.write(data)
        await writer.drain()
        stream.consumed(len(data))
    writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


def _check(target: int | str, port: int) -> None:
    for number, least in ((port, 0), (target, 1)):
        if isinstance(number, int) and not least <= number < 1 << 16:
            hint = "a TCP port is a number from 1 to 65535"
            raise UsageError(f"{number} is no port", code="expose", hint=hint)
    if isinstance(target, str) and not target.startswith("/"):
        hint = "name a TCP port of the guest by its number, or a unix socket by its path from /"
        raise UsageError(f"{target!r} is neither a port nor a path", code="expose", hint=hint)


async def _bind(host: str, port: int) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        message = f"cannot listen on {host} port {port}: {error.strerror}"
        hint = "choose another port, or 0 for any that is free"
        raise UsageError(message, code="expose", hint=hint) from error
    return sock
