"""What guests asked of the network and what became of it: one line of JSON for each decision and each end.

A guest that asks for much must not push out of a bounded log what else is in it: beyond a rate, decisions
about it are counted only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from atoll.linelog import LineLog
from atoll.network.policy.buckets import TokenBucket

__all__ = ["AuditLog", "Decided", "Ended", "FlowStatistics", "Record", "Resolved", "Suppressed", "Trail"]

#: Bytes after which the log begins anew; as many are kept from before.
_LIMIT: Final = 16 << 20

#: Records of one guest in a second, and at once after a rest.
_RATE, _BURST = 100.0, 2000

#: Records that wait at most: a disk that stands still loses them.
_MOST_WAITING: Final = 50_000


class FlowStatistics(msgspec.Struct):
    """A connection, or the datagrams to one address, as it is now; bytes are of payload.

    Attributes:
        guest: name of the machine.
        protocol: tcp, udp or icmp.
        guest_port: at the guest's end; 0 for icmp.
        address: of the other end, as text.
        port: of the other end; 0 for icmp.
        name: that the guest said or was told for the address; empty if none.
        since: seconds since the epoch.
        sent: bytes from the guest.
        received: bytes to the guest; of a connection as far as it has acknowledged them.
        inbound: the other end began it, by a port that leads to the guest.
    """

    guest: str
    protocol: str
    guest_port: int
    address: str
    port: int
    name: str
    since: float
    sent: int = 0
    received: int = 0
    inbound: bool = False


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="record"):
    """Base of all records.

    Attributes:
        at: seconds since the epoch.
        guest: name of the machine.
    """

    at: float
    guest: str


class Resolved(Record, frozen=True, tag="name"):
    """A question about a name that was not answered as others would be.

    Attributes:
        name: which.
        verdict: ``deny`` if policy has it; ``strip`` if addresses were left out that are not the outside's to
            give (RFC 1918 and the like: DNS rebinding).
    """

    name: str
    verdict: str


class Decided(Record, frozen=True, tag="decision"):
    """A connection or the first datagram to a destination, and whether it may be.

    Attributes:
        protocol: tcp, udp or icmp.
        address: of the other end, as text.
        port: of the other end; 0 for icmp.
        name: that the guest said or was told for the address; empty if none.
        verdict: allow or deny.
        rule: that decided, as it is written; ``default`` if none matched; ``opened`` for ports of the host
            that were opened, ``closed`` for what nobody may reach.
    """

    protocol: str
    address: str
    port: int
    name: str
    verdict: str
    rule: str


class Ended(Record, frozen=True, tag="flow"):
    """A connection or association is over; bytes as in ``FlowStatistics``.

    Attributes:
        why: ``ended`` by both ends, ``reset``, ``idle``, or ``denied`` when the policy changed.
        seconds: for which there was one.
        inbound: as in ``FlowStatistics``.
    """

    protocol: str
    guest_port: int
    address: str
    port: int
    name: str
    sent: int
    received: int
    seconds: float
    why: str
    inbound: bool = False

    @classmethod
    def of(cls, flow: FlowStatistics, at: float, why: str) -> Ended:
        """The record of a flow that is over."""
        return cls(
            at=at,
            guest=flow.guest,
            protocol=flow.protocol,
            guest_port=flow.guest_port,
            address=flow.address,
            port=flow.port,
            name=flow.name,
            sent=flow.sent,
            received=flow.received,
            seconds=max(0.0, at - flow.since),
            why=why,
            inbound=flow.inbound,
        )


class Suppressed(Record, frozen=True, tag="suppressed"):
    """Records of a guest's that were counted only."""

    count: int


AnyRecord = Resolved | Decided | Ended | Suppressed


class _Share:
    """What one guest may have written down."""

    __slots__ = ("bucket", "suppressed")

    def __init__(self, now: float) -> None:
        self.bucket = TokenBucket(_RATE, _BURST, now)
        self.suppressed = 0


class Trail:
    """Records that wait to be written, bounded; without any I/O."""

    def __init__(self) -> None:
        self._waiting: list[Record] = []
        self._shares: dict[str, _Share] = {}

    def add(self, record: Record, now: float) -> None:
        """Keep a record, or count it; ``now`` in seconds of a monotonic clock."""
        share = self._shares.get(record.guest)
        if share is None:
            share = self._shares[record.guest] = _Share(now)
        if len(self._waiting) >= _MOST_WAITING or not share.bucket.take(1, now):
            share.suppressed += 1
            return
        if share.suppressed:
            self._waiting.append(Suppressed(at=record.at, guest=record.guest, count=share.suppressed))
            share.suppressed = 0
        self._waiting.append(record)

    def take(self) -> bytes:
        """What waits, as lines; it waits no more. Called some times in a second."""
        waiting, self._waiting = self._waiting, []
        return b"".join(msgspec.json.encode(record) + b"\n" for record in waiting)

    def forget(self, guest: str, at: float) -> None:
        """A guest is gone."""
        share = self._shares.pop(guest, None)
        if share is not None and share.suppressed:
            self._waiting.append(Suppressed(at=at, guest=guest, count=share.suppressed))


class AuditLog(LineLog):
    """The log of one network at ``path``, on disk."""

    def __init__(self, path: Path, *, limit: int = _LIMIT) -> None:
        super().__init__(path, limit=limit)

    def records(self) -> Iterable[AnyRecord]:
        """All that is kept, oldest first; what cannot be read is passed over."""
        for line in self.lines():
            record = decode(line)
            if record is not None:
                yield record


def decode(line: bytes) -> AnyRecord | None:
    """A record from its line; None if it is none that is known here."""
    try:
        record: AnyRecord = msgspec.json.decode(line, type=AnyRecord)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return record
