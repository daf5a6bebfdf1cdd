"""Which sockets of this host a guest's datagrams leave by, and whose answers it gets (RFC 4787).

Each address and port of the guest has one socket, whoever it sends to: a mapping that does not depend on the
other end (RFC 4787, REQ-1). Answers come in from those addresses alone that it has sent to (REQ-8).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from atoll.network.wire import ethernet, ip, udp

__all__ = ["Association", "Associations", "Exit", "Peer", "Tally"]

#: Sockets that one guest may have, and addresses that one of them may have sent to.
MOST: Final = 1024
MOST_PEERS: Final = 256

#: Ports that guests see of clients who have none that can be shown (RFC 6335, section 6).
_FIRST_PORT: Final = 49152
_PORTS: Final = 65536 - _FIRST_PORT

#: Seconds without a datagram in either direction after which a socket is closed (RFC 4787, REQ-5).
IDLE: Final = 120.0


class Peer(NamedTuple):
    """An address of 4 or 16 bytes, and a port."""

    address: bytes
    port: int


class Exit(Protocol):
    """A socket of this host, by which the datagrams of one address and port of a guest leave."""

    def send(self, peer: Peer, payload: memoryview) -> None:
        """Send, or drop it, as networks do."""

    def close(self) -> None:
        """Let go of the socket."""


class Opener(Protocol):
    """Opens sockets, and says who may be sent to."""

    def open_exit(self, association: Association) -> Exit | None:
        """A socket for ``association``, to which it gives what comes; None if there cannot be one."""

    def allows(self, guest: Peer, peer: Peer) -> bool:
        """Whether the guest may send to ``peer``."""


class Tally:
    """What passed between two ends.

    Attributes:
        name: that the guest was told for the other end; empty if none.
        since: seconds since the epoch.
        sent: bytes from the guest.
        received: bytes to the guest.
    """

    __slots__ = ("name", "received", "sent", "since")

    def __init__(self) -> None:
        self.name = ""
        self.since = time.time()
        self.sent = self.received = 0


#: Told of the guest's end, the other one, what passed, and why that is over: ``idle``, ``ended``, ``denied``.
Forgotten = Callable[[Peer, Peer, Tally, str], None]


def _nobody(_guest: Peer, _peer: Peer, _tally: Tally, _why: str) -> None:
    """Is told of what is over where nothing is written down."""


class Association:
    """One address and port of a guest, and its socket.

    Args:
        guest: the guest's end.
        deliver: sends the guest a datagram.

    Attributes:
        guest: as given.
        used: when a datagram passed last, in seconds.
        exit: its socket; None if there could not be one.
        peers: whom the guest has sent to, and not to too many others since.
    """

    __slots__ = ("_deliver", "exit", "guest", "peers", "used")

    def __init__(self, guest: Peer, deliver: Callable[[Peer, Peer, bytes], None], now: float) -> None:
        self.guest = guest
        self.used = now
        self.exit: Exit | None = None
        self.peers: OrderedDict[Peer, Tally] = OrderedDict()
        self._deliver = deliver

    def received(self, peer: Peer, payload: bytes, now: float) -> None:
        """The socket got a datagram."""
        tally = self.peers.get(peer)
        if tally is not None:
            self.used = now
            tally.received += len(payload)
            self._deliver(self.guest, peer, payload)


class Associations:
    """The sockets of one guest.

    Args:
        transmit: sends frames to the guest.
        opener: opens them.
        macs: of the guest and of the network's end, as frames to the guest begin with.
        mtu: bytes of the largest packet.
        forgotten: told of what is over.

    Attributes:
        transmit: see above.
    """

    def __init__(
        self,
        transmit: Callable[[list[bytes | memoryview]], None],
        opener: Opener,
        macs: bytes,
        *,
        mtu: int,
        forgotten: Forgotten = _nobody,
    ) -> None:
        self._forgotten = forgotten
        self.transmit = transmit
        self._opener = opener
        self._macs = macs
        self._mtu = mtu
        self._table: OrderedDict[Peer, Association] = OrderedDict()
        self._clients: dict[tuple[Peer, Peer], Exit] = {}
        self._identification = self._port = 0

    def __len__(self) -> int:
        return len(self._table)

    @property
    def tallies(self) -> list[tuple[Peer, Peer, Tally]]:
        """What passed between which ends: the guest's, and the other one."""
        return [(each.guest, peer, tally) for each in self.open for peer, tally in each.peers.items()]

    def send(self, guest: Peer, peer: Peer, payload: memoryview, now: float) -> bool:
        """A datagram of the guest's; False if it is not allowed."""
        client = self._clients.get((guest, peer))
        if client is not None:
            client.send(peer, payload)
            return True
        association = self._table.get(guest)
        tally = None if association is None else association.peers.get(peer)
        if association is None or tally is None:
            if not self._opener.allows(guest, peer):
                return False
            association = association or self._open(guest, now)
            tally = self._learn(association, peer)
        tally.sent += len(payload)
        association.used = now
        self._table.move_to_end(guest)
        if association.exit is not None:
            association.exit.send(peer, payload)
        return True

    def admit(self, guest: Peer, client: Peer, answers: Exit) -> Peer | None:
        """What the guest shall see of a client who sends to it first; None if it has too many.

        Args:
            guest: whom it sends to.
            client: who it is; with port 0 any port is taken.
            answers: takes what the guest sends back.
        """
        if len(self._clients) >= MOST:
            return None
        while not client.port or (guest, client) in self._clients:
            self._port = (self._port + 1) % _PORTS
            client = client._replace(port=_FIRST_PORT + self._port)
        self._clients[guest, client] = answers
        return client

    def dismiss(self, guest: Peer, client: Peer) -> None:
        """What the guest sends to a client who was admitted is its own again."""
        self._clients.pop((guest, client), None)

    def deliver(self, guest: Peer, peer: Peer, payload: bytes) -> None:
        """Send the guest a datagram that comes from ``peer``."""
        head = udp.header(peer.address, guest.address, peer.port, guest.port, payload)
        frames: list[bytes | memoryview] = []
        for packet_head, parts in self._packets(guest, peer, head, payload):
            size = len(packet_head) + sum(map(len, parts))
            kind = ethernet.IPV6 if len(guest.address) == 16 else ethernet.IPV4
            frames += (ethernet.LENGTH.pack(14 + size) + self._macs + kind.to_bytes(2) + packet_head, *parts)
        self.transmit(frames)

    @property
    def open(self) -> list[Association]:
        """Those that are open."""
        return list(self._table.values())

    def forget(self, association: Association, peer: Peer) -> None:
        """The guest may not send to ``peer`` any more, nor hear from it."""
        self._forgotten(association.guest, peer, association.peers.pop(peer), "denied")
        if not association.peers:
            self._drop(association.guest)

    def tick(self, now: float) -> None:
        """Close what is idle."""
        for guest, association in tuple(self._table.items()):
            if now - association.used > IDLE:
                self._drop(guest)

    def close(self) -> None:
        """Close all sockets."""
        for guest in tuple(self._table):
            self._drop(guest, "ended")

    def _open(self, guest: Peer, now: float) -> Association:
        if len(self._table) >= MOST:
            self._drop(next(iter(self._table)))
        association = self._table[guest] = Association(guest, self.deliver, now)
        association.exit = self._opener.open_exit(association)
        return association

    def _learn(self, association: Association, peer: Peer) -> Tally:
        """The guest sends to ``peer`` for the first time, or again after many others."""
        tally = association.peers[peer] = Tally()
        if len(association.peers) > MOST_PEERS:
            self._forgotten(association.guest, *association.peers.popitem(last=False), "idle")
        return tally

    def _drop(self, guest: Peer, why: str = "idle") -> None:
        association = self._table.pop(guest)
        for peer, tally in association.peers.items():
            self._forgotten(guest, peer, tally, why)
        if association.exit is not None:
            association.exit.close()

    def _packets(
        self, guest: Peer, peer: Peer, head: bytes, payload: bytes
    ) -> Iterator[tuple[bytes, tuple[bytes | memoryview, ...]]]:
        """The packets of one datagram: one, or as many fragments as the link's MTU makes of it."""
        size = len(head) + len(payload)
        room = self._mtu - (48 if len(guest.address) == 16 else 20)
        if size <= self._mtu - (40 if len(guest.address) == 16 else 20):
            yield ip.header(peer.address, guest.address, ip.UDP, size), (head, payload)
            return
        self._identification = (self._identification + 1) & 0xFFFF
        whole = memoryview(head + payload)
        room &= ~7
        for offset in range(0, size, room):
            piece = whole[offset : offset + room]
            fragment = ip.Fragment(self._identification, offset, more=offset + room < size)
            yield ip.header(peer.address, guest.address, ip.UDP, len(piece), fragment=fragment), (piece,)
