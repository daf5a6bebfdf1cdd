"""What the process of a network is asked, and who answers.

The frames are those of a supervisor's control socket (docs/reference/control-protocol.md, sections 1 and 2).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import msgspec

from atoll.guest.channel import Channel, Stream
from atoll.guest.messages import Request
from atoll.hypervisor.model import Forward
from atoll.vm.control import ControlServer, Method
from atoll.vm.network.attachment import Reverse
from atoll.vm.streams import LocalStream

T = TypeVar("T")

__all__ = ["Card", "NetworkControl", "Plug", "Plugged", "Status", "StatusRead", "control_server"]


class Plug(Request, frozen=True, tag="network.plug"):
    """Have a VM's card plugged in. The stream stays as long as that lasts.

    Attributes:
        socket: at which the VM's hypervisor listens.
        owner: whose the card is; what is plugged in of the same is pulled out first if this is ``fresh``.
        mac: the card's address.
        hostname: what others on the network call the VM; empty for nothing.
        keep: its address stays the owner's when the card is pulled.
        wanted: address that it would like, as text; empty for any.
        forwards: ports of the host that lead to it.
        host_ports: ports of the host's loopback that it may use.
        reverse: other ports of the gateway that lead it to the host.
        found: ports that its programs listen on, each with the port of the host that it would have; None for
            what is known of that.
        fresh: the VM has just been started: else its card may be plugged in, and stays so.
        there: it must be plugged in already.
        strict: a port that cannot be had is an error.
        egress: lines of the policy that its guest is held to (``network.policy.parsing``).
        aliases: what others on the network call the VM, too.
        trusted: it may use all ports of this host, at any of its addresses.
        proxy_ports: ports of the host's loopback that it may use while it is held to no policy.
    """

    socket: str
    owner: str
    mac: str
    hostname: str = ""
    keep: bool = False
    wanted: str = ""
    forwards: tuple[Forward, ...] = ()
    host_ports: tuple[int, ...] = ()
    reverse: tuple[Reverse, ...] = ()
    found: tuple[Forward, ...] | None = None
    fresh: bool = True
    there: bool = False
    strict: bool = True
    egress: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    trusted: bool = False
    proxy_ports: tuple[int, ...] = ()


class Plugged(msgspec.Struct, frozen=True):
    """A card is plugged in.

    Attributes:
        address: of the VM, with the length of its prefix.
        address6: the one that it makes itself of the prefix that it is told of, likewise.
        gateway: where the default route leads; empty where there is no outside.
        resolver: name server.
        mtu: bytes of the largest packet.
        known: the VM had this address before.
        refused: ports that could not be had, each with the reason.
    """

    address: str
    address6: str
    gateway: str
    resolver: str
    mtu: int
    known: bool
    refused: tuple[str, ...] = ()


class StatusRead(Request, frozen=True, tag="network.status"):
    """Ask what the network's process does."""


class Card(msgspec.Struct, frozen=True):
    """A card that is plugged in: whose, called what, and its addresses."""

    owner: str
    hostname: str
    mac: str
    address: str
    address6: str


class Status(msgspec.Struct, frozen=True):
    """What the network's process does: its id, and the cards that are plugged in."""

    pid: int
    cards: tuple[Card, ...]


class Held(Protocol):
    """A card that is plugged in.

    Attributes:
        plugged: what its VM is told.
        gone: it was pulled.
    """

    plugged: Plugged
    gone: asyncio.Event


def control_server(
    plug: Callable[[Plug], Held], status: Callable[[], Status], more: Mapping[str, Method]
) -> ControlServer:
    """What answers at a network's control socket, on the running event loop.

    Args:
        plug: plugs a card in; raises ``NetworkError``.
        status: what there is.
        more: what answers other requests, by their tags.
    """

    async def answer_plug(payload: bytes, stream: LocalStream) -> None:
        card = plug(msgspec.msgpack.decode(payload, type=Plug))
        stream.reply(card.plugged, end=False)
        await card.gone.wait()
        await stream.write(b"", end=True)

    async def answer_status(_: bytes, stream: LocalStream) -> None:
        stream.reply(status())

    return ControlServer({"network.plug": answer_plug, "network.status": answer_status, **more})


class NetworkControl:
    """A connection to a network's process. Belongs to one event loop.

    All methods raise what the process answers, and ``ChannelError`` if it goes away.

    Args:
        sock: connected; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock)

    async def plug(self, order: Plug) -> tuple[Plugged, Stream]:
        """Have a card plugged in; the stream ends when it is pulled."""
        stream = self._channel.open(order, end=True)
        try:
            return await stream.reply(Plugged), stream
        except BaseException:
            stream.cancel()
            raise

    async def status(self) -> Status:
        """What the process does."""
        return await self._channel.call(StatusRead(), Status)

    async def call(self, request: Request, reply: type[T]) -> T:
        """Make a request that has no method of its own here."""
        return await self._channel.call(request, reply)

    def open(self, request: Request, *, end: bool = False) -> Stream:
        """Begin a request whose stream goes on; ``end`` if nothing more is said in it from here."""
        return self._channel.open(request, end=end)

    def close(self) -> None:
        """Close the connection; what is plugged in stays so. Closing twice is fine."""
        self._channel.close()
