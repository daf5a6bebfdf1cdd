"""A server of the guest on a port of the host, through the guest's channel: each client is spliced to it."""

from __future__ import annotations

import asyncio
import socket

from atoll.errors import AtollError, UsageError
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.guest.messages import Empty
from atoll.guest.opening import Listening
from atoll.guest.splicing import Acceptor, Hangups, Splice, abort

__all__ = ["Exposed", "check", "listen"]

#: Clients that may wait to be accepted.
_BACKLOG = 512


class Exposed(Listening):
    """A server of the guest that this host's programs reach at ``host`` and ``port``; made by ``expose``."""

    def __init__(self, listener: socket.socket, relay: Relay) -> None:
        super().__init__(listener, relay.lost)
        self._relay = relay
        self._acceptor = Acceptor(listener, relay.accept)

    @property
    def url(self) -> str:
        """Where a browser finds it, if it is a web server."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def _end(self) -> None:
        self._acceptor.close()
        await self._relay.close()


class Relay:
    """Connections of clients to ``target`` in the guest."""

    def __init__(self, agent: Agent, target: int | str, inside: str | None = None) -> None:
        self._agent = agent
        self._target = target
        self._inside = inside
        self._hangups = Hangups()
        self._dialling: dict[asyncio.Task[None], socket.socket] = {}
        self._connections: set[Splice] = set()

    def accept(self, client: socket.socket) -> None:
        """Connect a client."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(self._connect(client))
        self._dialling[task] = client
        task.add_done_callback(self._dialling.pop)

    async def lost(self) -> None:
        """Wait until the guest cannot be reached any more."""
        await self._agent.lost()

    async def close(self) -> None:
        """End all connections."""
        dialling = dict(self._dialling)
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        for splice in tuple(self._connections):
            splice.close()
        for client in dialling.values():
            client.close()  # of a task that had not begun
        self._hangups.close()

    async def _connect(self, client: socket.socket) -> None:
        stream: Stream | None = None
        try:
            stream = self._agent.connect(self._target, host=self._inside)
            await stream.reply(Empty)
        except BaseException as error:
            abort(client)
            if stream is not None:
                stream.cancel()
            if not isinstance(error, AtollError):
                raise
            return
        splice: Splice

        def over(_: object) -> None:
            self._connections.discard(splice)

        splice = Splice(client, stream, self._hangups, over)
        self._connections.add(splice)


async def listen(
    agent: Agent, target: int | str, *, inside: str | None = None, host: str, port: int
) -> Exposed:
    """Listen on ``host`` and ``port`` and connect each client to ``target``.

    Args:
        agent: of the guest.
        target: TCP port, or path of a unix socket, there.
        inside: address of the port, as the guest reaches it; its own by default.
        host: address of this host.
        port: of this host; 0 for any that is free.

    Raises:
        UsageError: ``usage.expose``: there is no such port, or this host's is taken or forbidden.
    """
    check(target, port)
    listener = await _bind(host, port)
    relay = Relay(agent, target, inside)
    return Exposed(listener, relay)


def check(target: int | str, port: int) -> None:
    """See that there can be such ports, of the guest and of this host. Raises ``UsageError``."""
    for number, least in ((port, 0), (target, 1)):
        if isinstance(number, int) and not least <= number < 1 << 16:
            hint = "a port is a number from 1 to 65535"
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
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        message = f"cannot listen on {host} port {port}: {error.strerror}"
        hint = "choose another port, or 0 for any that is free"
        raise UsageError(message, code="expose", hint=hint) from error
    return sock
