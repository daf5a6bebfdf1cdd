"""What one guest does with the network: counted as it passes, and written down when it begins and ends.

Bytes of connections are not counted one segment at a time: their sequence numbers tell them. These wrap at
4 GiB, so ``Ledger.count`` looks at them now and then.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from atoll.network.audit import Decided, Ended, FlowStatistics, Resolved, Trail
from atoll.network.tcp.flow import Flow
from atoll.network.tcp.flows import Ends
from atoll.network.udp.associations import Peer, Tally

if TYPE_CHECKING:
    from atoll.network.streams import Stream

__all__ = ["Connection", "Ledger", "text_of"]

_MASK: Final = (1 << 32) - 1


class Connection:
    """One connection of a guest's.

    Args:
        ends: whom it is between.
        name: that the guest said or was told for the other end; empty if none.
        inbound: the other end began it.
        is_free: it is no matter of policy.

    Attributes:
        ends: as given.
        name: as given.
        inbound: as given.
        is_free: as given.
        asked: its first bytes were looked at, and ``said`` is whom they want.
        said: None if they do not say.
        stream: the host's side of it, as long as there is one.
        since: seconds since the epoch.
        sent: bytes from the guest, when it was counted last.
        received: bytes that the guest had acknowledged then.
        is_denied: the policy has changed, and it must end.
    """

    __slots__ = (
        "_acknowledged",
        "_came",
        "_flow",
        "asked",
        "ends",
        "inbound",
        "is_denied",
        "is_free",
        "name",
        "received",
        "said",
        "sent",
        "since",
        "stream",
    )

    def __init__(self, ends: Ends, name: str = "", *, inbound: bool = False, is_free: bool = False) -> None:
        self.ends = ends
        self.name = name
        self.inbound = inbound
        self.is_free = is_free
        self.asked = self.is_denied = False
        self.said: str | None = None
        self.stream: Stream | None = None
        self.since = time.time()
        self.sent = self.received = 0
        self._came = self._acknowledged = 0
        self._flow: Flow | None = None

    def begin(self, flow: Flow) -> None:
        """It goes on in ``flow``."""
        self._flow = flow

    def count(self) -> None:
        """Bring ``sent`` and ``received`` up to date; at least once in 4 GiB."""
        if self._flow is not None:
            came, acknowledged = self._flow.passed
            self.sent += (came - self._came) & _MASK
            self.received += (acknowledged - self._acknowledged) & _MASK
            self._came, self._acknowledged = came, acknowledged

    def reset(self) -> None:
        """End it, and tell both ends."""
        if self._flow is not None:
            self._flow.reset()

    def end(self) -> None:
        """It is over: its flow may go."""
        self.count()
        self._flow = self.stream = None


class Ledger:
    """What is known of one guest's connections and datagrams.

    Args:
        guest: its name.
        trail: takes what is to be written down.
        tallies: its datagrams, by its own end and the other one.

    Attributes:
        connections: those that are open, the oldest first.
    """

    def __init__(
        self, guest: str, trail: Trail, tallies: Callable[[], list[tuple[Peer, Peer, Tally]]]
    ) -> None:
        self.connections: dict[Connection, None] = {}
        self._guest = guest
        self._trail = trail
        self._tallies = tallies

    def decided(self, protocol: str, address: bytes, port: int, name: str, verdict: str, rule: str) -> None:
        """Write a decision down."""
        at, where = time.time(), text_of(address)
        record = Decided(
            at=at,
            guest=self._guest,
            protocol=protocol,
            address=where,
            port=port,
            name=name,
            verdict=verdict,
            rule=rule,
        )
        self._trail.add(record, time.monotonic())

    def resolved(self, name: str, verdict: str) -> None:
        """Write down what became of a question about a name."""
        record = Resolved(at=time.time(), guest=self._guest, name=name, verdict=verdict)
        self._trail.add(record, time.monotonic())

    def begin(self, connection: Connection) -> None:
        """A connection is about to be there."""
        self.connections[connection] = None

    def end(self, connection: Connection, *, reset: bool) -> None:
        """A connection is over."""
        connection.end()
        self.connections.pop(connection, None)
        why = "denied" if connection.is_denied else "reset" if reset else "ended"
        self._write(self._of(connection), why)

    def forgotten(self, guest: Peer, peer: Peer, tally: Tally, why: str) -> None:
        """The datagrams between two ends are over."""
        self._write(self._sent(guest, peer, tally), why)

    def count(self) -> None:
        """See ``Connection.count``; for all of them."""
        for connection in self.connections:
            connection.count()

    @property
    def flows(self) -> list[FlowStatistics]:
        """What is open now."""
        self.count()
        return [
            *map(self._of, self.connections),
            *(self._sent(guest, peer, tally) for guest, peer, tally in self._tallies()),
        ]

    def close(self) -> None:
        """The guest is gone."""
        self._trail.forget(self._guest, time.time())

    def _write(self, flow: FlowStatistics, why: str) -> None:
        self._trail.add(Ended.of(flow, time.time(), why), time.monotonic())

    def _of(self, connection: Connection) -> FlowStatistics:
        ends = connection.ends
        return FlowStatistics(
            guest=self._guest,
            protocol="tcp",
            guest_port=ends.guest_port,
            address=text_of(ends.other),
            port=ends.other_port,
            name=connection.said or connection.name,
            since=connection.since,
            sent=connection.sent,
            received=connection.received,
            inbound=connection.inbound,
        )

    def _sent(self, guest: Peer, peer: Peer, tally: Tally) -> FlowStatistics:
        return FlowStatistics(
            guest=self._guest,
            protocol="udp",
            guest_port=guest.port,
            address=text_of(peer.address),
            port=peer.port,
            name=tally.name,
            since=tally.since,
            sent=tally.sent,
            received=tally.received,
        )


def text_of(address: bytes) -> str:
    """An address of 4 or 16 bytes as text."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
