"""What one guest may do: asked of the network's judge, carried out, and written down."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import Final

from atoll.network.audit import Trail
from atoll.network.ledger import Connection, Ledger
from atoll.network.link import Link
from atoll.network.pacing import Pacer
from atoll.network.policy.buckets import TokenBucket
from atoll.network.policy.judge import Judge
from atoll.network.policy.rules import Judgement, Policy, Protocol, Verdict
from atoll.network.streams import Later, Stream, pace, pace_datagrams
from atoll.network.tcp.flows import Dialling, Ends
from atoll.network.udp.associations import Association, Associations, Exit, Peer, Tally

__all__ = ["Guard"]

#: What is written in the place of a rule where no policy is asked.
_OPENED, _CLOSED, _DEFAULT = "opened", "closed", "default"

#: Whether what the guest sends to an address and port is no matter of policy.
Freedom = Callable[[bytes, int], bool]

_TEXTS: Final = {Judgement.ALLOW: "allow", Judgement.DENY: "deny"}


class Guard:
    """See above; for one guest, on the running event loop.

    Args:
        guest: its hardware address, by which the judge knows it.
        name: for what is written down.
        judge: of the network.
        trail: of the network.

    Attributes:
        ledger: what it does.
        pacer: holds it to a rate; None without one.
    """

    def __init__(self, guest: bytes, name: str, judge: Judge, trail: Trail) -> None:
        self.ledger = Ledger(name, trail, lambda: self._datagrams().tallies)
        self.pacer: Pacer | None = None
        self._guest = guest
        self._judge = judge
        self._associations: Associations | None = None
        self._arriving: TokenBucket | None = None
        self._rate = 0

    def watch(self, associations: Associations) -> None:
        """These are the guest's datagrams."""
        self._associations = associations

    # Connections

    def admit(self, ends: Ends, *, is_free: bool) -> tuple[Connection, Judgement] | Dialling | None:
        """Decide about a connection that the guest asks for.

        ``is_free`` if it is no matter of policy. None if it is to be refused; or what has it asked again.
        """
        now = time.monotonic()
        name = self._name(ends.other, now)
        if is_free:
            self._write(Protocol.TCP, ends.other, ends.other_port, name, Judgement.ALLOW, _OPENED)
            return Connection(ends, name, is_free=True), Judgement.ALLOW
        verdict = self._judge.decide(self._guest, Protocol.TCP, ends.other, ends.other_port, now)
        allowed = verdict.judgement is not Judgement.DENY
        if allowed and self._arriving is not None and not self._arriving.take(1, now):
            return Later()
        if verdict.judgement is not Judgement.ASK:
            self._decided(Protocol.TCP, ends.other, ends.other_port, name, verdict)
        return (Connection(ends, name), verdict.judgement) if allowed else None

    def stream(
        self, sock: socket.socket, link: Link, connection: Connection, judgement: Judgement
    ) -> Dialling:
        """The host's side of a connection that was admitted."""
        allows = functools.partial(self._said, connection) if judgement is Judgement.ASK else None
        return self._paced(Stream(sock, link, connection, self, allows))

    def accepted(self, sock: socket.socket, link: Link, ends: Ends) -> Stream:
        """The host's side of a connection that came by a port which leads to the guest."""
        return self._paced(Stream(sock, link, Connection(ends, inbound=True, is_free=True), self))

    def _paced(self, stream: Stream) -> Stream:
        if self.pacer is not None:
            pace(stream, paced=True)
        return stream

    def _said(self, connection: Connection, said: str | None) -> bool:
        """Whether a connection may go on whose first bytes want ``said``."""
        connection.asked, connection.said = True, said
        verdict = self._again(connection)
        ends = connection.ends
        self._decided(Protocol.TCP, ends.other, ends.other_port, said or connection.name, verdict)
        connection.is_denied = verdict.judgement is Judgement.DENY
        return not connection.is_denied

    def _again(self, connection: Connection) -> Verdict:
        """What the policy says of a connection now, by the name that was said; none if it was not asked."""
        ends = connection.ends
        now = time.monotonic()
        verdict = self._judge.decide(self._guest, Protocol.TCP, ends.other, ends.other_port, now)
        if verdict.judgement is not Judgement.ASK:
            return verdict
        end = (Protocol.TCP, ends.other, ends.other_port)
        return self._judge.decide_named(self._guest, *end, connection.said, now)

    # Datagrams, echo requests, names

    def may_send(self, peer: Peer, *, is_free: bool) -> bool:
        """Whether the guest may send datagrams to ``peer``; asked at the first one."""
        return self._may(Protocol.UDP, peer.address, peer.port, is_free=is_free)

    def may_ping(self, address: bytes, *, is_free: bool) -> bool:
        """Whether the guest may send echo requests to an address; asked at the first one."""
        return self._may(Protocol.ICMP, address, 0, is_free=is_free)

    def may_tell(self, protocol: Protocol, address: bytes, port: int) -> bool:
        """Whether the guest may send to a neighbour; asked at the first packet.

        No first bytes are asked for there: what a name of the network has for an address, no other has.
        """
        verdict = self._beside(protocol, address, port)
        if verdict.judgement is Judgement.ALLOW:
            self._decided(protocol, address, port, self._name(address, time.monotonic()), verdict)
        return verdict.judgement is Judgement.ALLOW

    def closed(self, protocol: Protocol, address: bytes, port: int) -> None:
        """Write down that the guest asked for what leads nowhere, whatever its policy is."""
        verdict = self._beside(protocol, address, port)
        name = self._name(address, time.monotonic())
        if verdict.judgement is Judgement.DENY:
            self._decided(protocol, address, port, name, verdict)
        else:
            self._write(protocol, address, port, name, Judgement.DENY, _CLOSED)

    def _beside(self, protocol: Protocol, address: bytes, port: int) -> Verdict:
        verdict = self._judge.decide(self._guest, protocol, address, port, time.monotonic())
        if verdict.judgement is not Judgement.ASK:
            return verdict
        return Verdict(
            Judgement.DENY if verdict.rule is None else Judgement(verdict.rule.action), verdict.rule
        )

    def _may(self, protocol: Protocol, address: bytes, port: int, *, is_free: bool) -> bool:
        now = time.monotonic()
        name = self._name(address, now)
        if is_free:
            self._write(protocol, address, port, name, Judgement.ALLOW, _OPENED)
            return True
        verdict = self._judge.decide(self._guest, protocol, address, port, now)
        self._decided(protocol, address, port, name, verdict)
        return verdict.judgement is Judgement.ALLOW

    def forgotten(self, guest: Peer, peer: Peer, tally: Tally, why: str) -> None:
        """Datagrams between two ends are over."""
        tally.name = tally.name or self._name(peer.address, time.monotonic())
        self.ledger.forgotten(guest, peer, tally, why)

    # What changes

    def follow(self, policy: Policy | None, is_free: Freedom) -> None:
        """From now on the guest has this policy, or none; what is open and may not be any more ends.

        Args:
            policy: the new one.
            is_free: whether an address and port are no matter of policy.
        """
        self._judge.follow(self._guest, policy)
        rate = policy.limits.rate if policy is not None else 0
        each = policy.limits.connections if policy is not None else 0
        self._arriving = TokenBucket(each, each, time.monotonic()) if each else None
        self._pace(rate)
        for connection in list(self.ledger.connections):
            if not self._may_go_on(connection, is_free):
                connection.is_denied = True
                connection.reset()
        datagrams = self._datagrams()
        for association in datagrams.open:
            for peer in list(association.peers):
                if not is_free(peer.address, peer.port) and not self._may_hear(peer):
                    datagrams.forget(association, peer)

    def _may_go_on(self, connection: Connection, is_free: Freedom) -> bool:
        """Whether a connection that is open may stay so. One whose first bytes are awaited is asked then."""
        ends = connection.ends
        if connection.is_free:
            return connection.inbound or is_free(ends.other, ends.other_port)
        now = time.monotonic()
        verdict = self._judge.decide(self._guest, Protocol.TCP, ends.other, ends.other_port, now)
        stream = connection.stream
        if verdict.judgement is Judgement.ASK and stream is not None and stream.is_asking:
            return True
        return self._again(connection).judgement is Judgement.ALLOW

    def _may_hear(self, peer: Peer) -> bool:
        verdict = self._judge.decide(self._guest, Protocol.UDP, *peer, time.monotonic())
        return verdict.judgement is Judgement.ALLOW

    def _pace(self, rate: int) -> None:
        if rate == self._rate:
            return
        former, self._rate = self.pacer, rate
        self.pacer = Pacer(rate) if rate else None
        for connection in self.ledger.connections:
            if connection.stream is not None:
                pace(connection.stream, paced=bool(rate))
        for association in self._datagrams().open:
            pace_datagrams(association, self, paced=bool(rate))
        if former is not None:
            former.close()

    def paced_exit(self, association: Association, exit_: Exit) -> Exit:
        """The socket of a new association, as far as its guest's rate goes."""
        if self.pacer is None:
            return exit_
        association.exit = exit_
        pace_datagrams(association, self, paced=True)
        return association.exit

    def close(self) -> None:
        """The guest is gone."""
        self._judge.forget(self._guest)
        if self.pacer is not None:
            self.pacer.close()
        self.ledger.close()

    # What is written down

    def _datagrams(self) -> Associations:
        assert self._associations is not None
        return self._associations

    def _name(self, address: bytes, now: float) -> str:
        names = self._judge.names(self._guest, address, now)
        return names[-1] if names else ""

    def _decided(self, protocol: Protocol, address: bytes, port: int, name: str, verdict: Verdict) -> None:
        rule = _DEFAULT if verdict.rule is None else str(verdict.rule)
        self._write(protocol, address, port, name, verdict.judgement, rule)

    def _write(
        self, protocol: Protocol, address: bytes, port: int, name: str, judgement: Judgement, rule: str
    ) -> None:
        self.ledger.decided(protocol.value, address, port, name, _TEXTS[judgement], rule)
