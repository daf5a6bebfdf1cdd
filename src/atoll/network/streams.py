"""Sockets of connections that are written down, and held to a rate where there is one.

A rate may come and go while a connection is open. Most guests have none, and theirs must not cost a test for
each byte: so a connection's socket changes its class, as it would have another one from the start.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol

from atoll.network.connection import TcpSocket
from atoll.network.ledger import Connection, Ledger
from atoll.network.link import Link
from atoll.network.pacing import Lane, Pacer
from atoll.network.tcp.flow import Flow
from atoll.network.udp.associations import Association, Exit, Peer

__all__ = ["Later", "Stream", "pace", "pace_datagrams"]

#: Bytes read at once.
_MOST: Final = 1 << 18


class Owner(Protocol):
    """Whose connections they are.

    Attributes:
        ledger: where they are written down.
        pacer: holds them to a rate; None without one.
    """

    ledger: Ledger
    pacer: Pacer | None


class Stream(TcpSocket):
    """The host's side of one connection that is written down.

    Args:
        sock: see ``TcpSocket``.
        link: see ``TcpSocket``.
        connection: whose it is.
        owner: the guest.
        allows: see ``TcpSocket``.
    """

    __slots__ = ("_among", "_connection", "_owner")

    def __init__(
        self,
        sock: socket.socket,
        link: Link,
        connection: Connection,
        owner: Owner,
        allows: Callable[[str | None], bool] | None = None,
    ) -> None:
        super().__init__(sock, link, allows)
        self._connection = connection
        self._owner = owner
        self._among: set[Stream] | None = None
        connection.stream = self
        owner.ledger.begin(connection)

    def dial(self, flow: Flow) -> None:
        """See ``Dialling``."""
        self._connection.begin(flow)
        super().dial(flow)

    def attach(self, flow: Flow) -> None:
        """See ``TcpSocket``."""
        self._connection.begin(flow)
        super().attach(flow)

    def join(self, others: set[Stream]) -> None:
        """Be among ``others`` until it is closed."""
        self._among = others
        others.add(self)

    def break_off(self) -> None:
        """Reset the connection."""
        self._broken()

    def closed(self, *, reset: bool) -> None:
        """See ``Host``."""
        super().closed(reset=reset)
        if self._among is not None:
            self._among.discard(self)
        self._owner.ledger.end(self._connection, reset=reset)

    def read_anew(self) -> None:
        """Its class has changed: have that one's method called."""
        if self._is_reading:
            self._loop.add_reader(self._fd, self._readable)


class _PacedStream(Stream):
    """One that is held to its guest's rate, by reading and taking no more than that."""

    __slots__ = ()

    @property
    def _lanes(self) -> tuple[Lane, Lane]:
        pacer = self._owner.pacer
        assert pacer is not None
        return pacer.up, pacer.down

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """See ``Sink``."""
        up, _ = self._lanes
        granted = up.grant(len(data))
        taken = super().write(memoryview(data)[:granted]) if granted else 0
        up.spend(taken)
        return taken

    def want_drain(self) -> None:
        """See ``Sink``: it takes data again in its turn, or when its socket does."""
        up, _ = self._lanes
        if self._drains or up.grant(1):
            super().want_drain()
        else:
            self._drains = True
            up.wait(self._drain_on)

    def _drain_on(self) -> None:
        if self._flow is not None:
            self._writable()

    def _readable(self) -> None:
        flow = self._flow
        assert flow is not None
        room = min(self._room(flow), _MOST)
        if not room:
            return
        _, down = self._lanes
        granted = down.grant(room)
        if granted:
            down.spend(self._receive(flow, granted))
        else:
            self._pause()
            down.wait(self._read_on)

    def _read_on(self) -> None:
        if self._flow is not None:
            self.resume()
            self._readable()


def pace(stream: Stream, *, paced: bool) -> None:
    """Hold a connection to its guest's rate from now on, or no more."""
    stream.__class__ = _PacedStream if paced else Stream
    stream.read_anew()


class _PacedExit:
    """A socket for datagrams that drops those which are too many, as networks do."""

    def __init__(self, exit_: Exit, owner: Owner) -> None:
        self.exit = exit_
        self.owner = owner

    def send(self, peer: Peer, payload: memoryview) -> None:
        """See ``Exit``."""
        if self.owner.pacer is None or self.owner.pacer.up.take(len(payload)):
            self.exit.send(peer, payload)

    def close(self) -> None:
        """See ``Exit``."""
        self.exit.close()


class _PacedAssociation(Association):
    __slots__ = ()

    def received(self, peer: Peer, payload: bytes, now: float) -> None:
        """Give the guest a datagram, unless they are too many."""
        assert isinstance(self.exit, _PacedExit)
        pacer = self.exit.owner.pacer
        if pacer is None or pacer.down.take(len(payload)):
            super().received(peer, payload, now)


def pace_datagrams(association: Association, owner: Owner, *, paced: bool) -> None:
    """As ``pace``."""
    exit_ = association.exit
    if exit_ is None or isinstance(exit_, _PacedExit) == paced:
        return
    association.exit = exit_.exit if isinstance(exit_, _PacedExit) else _PacedExit(exit_, owner)
    association.__class__ = _PacedAssociation if paced else Association


class Later:
    """The host's side of a connection that comes too soon after others: the guest asks for it again.

    Its SYN is dropped, as on a line that is full, and sent again a second later (RFC 6298, section 2.1).
    """

    def dial(self, flow: Flow) -> None:
        """See ``Dialling``."""
        asyncio.get_running_loop().call_soon(flow.abandon)

    def write(self, data: bytes | bytearray | memoryview) -> int:  # noqa: ARG002
        """See ``Sink``."""
        return 0

    def want_drain(self) -> None:
        """See ``Sink``."""

    def end(self) -> None:
        """See ``Host``."""

    def resume(self) -> None:
        """See ``Host``."""

    def closed(self, *, reset: bool) -> None:
        """See ``Host``."""
