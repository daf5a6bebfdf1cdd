"""One network of guests: its gateway, its name server, and the cards that are plugged into it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final

from atoll.network import gateway, router
from atoll.network.addressing import Addressing
from atoll.network.audit import FlowStatistics, Trail
from atoll.network.destinations import Destinations
from atoll.network.dns.forwarder import Learned, Stripped
from atoll.network.gateway import Asker, Gateway
from atoll.network.guard import Guard
from atoll.network.leases import Lease
from atoll.network.line import Line, Receive, Transmit
from atoll.network.link import Link
from atoll.network.neighbours import Gate
from atoll.network.outside import Outside
from atoll.network.pings import PingSockets
from atoll.network.policy.judge import Judge
from atoll.network.policy.rules import Policy
from atoll.network.resolving import Resolver
from atoll.network.station import Station
from atoll.network.tcp.flows import Flows
from atoll.network.udp.associations import Associations, Peer
from atoll.network.wire import ethernet, icmp, ip, udp

__all__ = ["Guest", "Lan"]

#: Seconds between two looks at timers, and those that an acknowledgement may wait for others.
_TICK: Final = 0.25
_LAZY: Final = 0.002

#: Ticks after which bytes of connections are counted: less than 4 GiB pass meanwhile.
_COUNT: Final = 4


class Guest:
    """A guest's card, plugged in.

    Args:
        lan: the network.
        lease: its addresses.
        sock: the card's other end, connected; owned from here on.
        on_gone: called when it was pulled out at the other end.
    """

    def __init__(self, lan: Lan, lease: Lease, sock: socket.socket, on_gone: Callable[[], None]) -> None:
        self._lan = lan
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._lazy: asyncio.TimerHandle | None = None
        self.lease = lease
        self.link = link = Link(sock, self)
        macs = lease.mac + lan.addressing.mac
        self.guard = Guard(lease.mac, lease.hostname or str(lease.ipv4), lan.judge, lan.trail)
        self.outside = outside = Outside(link, lan.destinations, self.guard, self._ask, self._unreachable)
        self.flows = Flows(link.transmit, outside, macs, mtu=lan.mtu, clock=time.monotonic, secret=lan.secret)
        self.associations = Associations(
            link.transmit, outside, macs, mtu=lan.mtu, forgotten=self.guard.forgotten
        )
        self.guard.watch(self.associations)
        self._pings = PingSockets(outside.translate, self._ponged)
        self.station = Station(
            lease,
            lan.gateway,
            self.flows,
            self.associations,
            neighbourhood=lan if lan.is_shared else None,
            pings=self._pings,
            transmit=link.transmit,
            clock=time.monotonic,
        )
        self.frame: Receive = self.station.frame  # every frame passes here
        self.transmit: Transmit = link.transmit
        self.line = Line(link, self.station.frame, self.seen, self._lead)
        self.hear: Callable[[bytes], None] = self._hear
        self._gate: Gate | None = None

    def follow(self, policy: Policy | None) -> None:
        """Hold the guest to a policy from now on, or to none; what is open and may not be any more ends."""
        self.guard.follow(policy, self.outside.is_free)
        self._pings.close()
        if policy is None or not self._lan.is_shared:
            self._gate, self.hear = None, self._hear
            self.station.neighbourhood = self._lan if self._lan.is_shared else None
            return
        if self._gate is None:
            self._gate = Gate(self._lan, self.guard, time.monotonic)
            self.station.neighbourhood = self._gate
            self.hear = partial(self._hear_at, self._gate)
        self._gate.decide_again()

    def _hear(self, frame: bytes) -> None:
        """Get a frame of a neighbour's."""
        if not self.link.is_full:
            self.transmit([ethernet.LENGTH.pack(len(frame)), frame])

    def _hear_at(self, gate: Gate, frame: bytes) -> None:
        gate.hear(frame)
        self._hear(frame)

    def seen(self) -> None:
        """See ``Card``."""
        self.flows.acknowledge()
        if self.flows.lazy and self._lazy is None:
            self._lazy = self._loop.call_later(_LAZY, self._acknowledge)

    def gone(self) -> None:
        """See ``Card``."""
        self.close()
        self._on_gone()

    def tick(self, now: float) -> None:
        """Look at all timers."""
        if not self.link.is_stuck:
            self.flows.delay = self.line.delay
            self.flows.most_early = self.line.most_early
            self.flows.tick(now)
        self.associations.tick(now)
        self._pings.tick(now)

    def close(self) -> None:
        """End its connections and pull it out. Closing twice is fine."""
        self.link.close()
        self.line.close()
        self.flows.abandon()
        self.associations.close()
        self._pings.close()
        self.guard.close()
        if self._lazy is not None:
            self._lazy.cancel()
        self._lan.unplug(self)

    def _lead(self, receive: Receive, transmit: Transmit) -> None:
        """Have frames from the card given to ``receive``, and those to it to ``transmit``."""
        self.frame = receive
        self.transmit = self.flows.transmit = transmit
        self.associations.transmit = self.station.transmit = transmit

    def _acknowledge(self) -> None:
        self._lazy = None
        self.flows.acknowledge_all()

    def _ask(self, query: bytes, reply: Callable[[bytes], None]) -> None:
        self._lan.resolver.ask(self.station, query, reply, tcp=True)

    def _unreachable(self, guest: Peer, peer: Peer, reason: icmp.Reason) -> None:
        """Tell the guest of a datagram that did not arrive, by its headers: what it held is gone."""
        head = udp.header(guest.address, peer.address, guest.port, peer.port, b"")
        whole = ip.header(guest.address, peer.address, ip.UDP, len(head)) + head
        packet = ip.parse(memoryview(whole))
        assert packet is not None
        self.station.tell(packet, reason)

    def _ponged(self, source: bytes, destination: bytes, protocol: int, message: bytes) -> None:
        kind = ethernet.IPV6 if len(source) == 16 else ethernet.IPV4
        self.station.send(kind, ip.header(source, destination, protocol, len(message)) + message)


class Lan:
    """A network, on the running event loop.

    Args:
        addressing: its addresses.
        destinations: where its guests may go.
        mtu: bytes of its largest packet.
        is_shared: its guests see one another.
        domain: of its names.

    Attributes:
        judge: what its guests may reach.
        trail: what is to be written down.
    """

    def __init__(
        self, addressing: Addressing, destinations: Destinations, *, mtu: int, is_shared: bool, domain: str
    ) -> None:
        self.addressing = addressing
        self.destinations = destinations
        self.mtu = mtu
        self.is_shared = is_shared
        self.secret = os.urandom(16)
        self.judge = Judge()
        self.trail = Trail()
        self.resolver = Resolver(domain, addressing, self, outside=destinations.outside)
        self.gateway = Gateway(
            addressing,
            mtu=mtu,
            outside=destinations.outside,
            domain=domain,
            resolve=self._resolve,
            now=time.monotonic(),
        )
        self._loop = asyncio.get_running_loop()
        self._guests: dict[bytes, Guest] = {}
        self._ticking = self._loop.call_later(_TICK, self._tick)
        self._ticks = 0

    def plug(
        self,
        lease: Lease,
        sock: socket.socket,
        on_gone: Callable[[], None],
        policy: Policy | None = None,
    ) -> Guest:
        """Plug in a guest's card; one that was plugged in with the same hardware address is pulled out."""
        former = self._guests.get(lease.mac)
        if former is not None:
            former.close()
        guest = self._guests[lease.mac] = Guest(self, lease, sock, on_gone)
        if policy is not None:
            guest.follow(policy)
        self.gateway.add(lease, guest.station)
        return guest

    def unplug(self, guest: Guest) -> None:
        """A card has been pulled out."""
        if self._guests.get(guest.lease.mac) is guest:
            del self._guests[guest.lease.mac]
            self.gateway.remove(guest.station)
            self.resolver.leave(guest.station)

    def forward(self, station: Station, destination: bytes, frame: bytes) -> None:
        """See ``Neighbourhood``."""
        if destination[0] & 1:
            for guest in self._guests.values():
                if guest.station is not station:
                    guest.hear(frame)
        elif (found := self._guests.get(destination)) is not None:
            found.hear(frame)

    @property
    def flows(self) -> list[FlowStatistics]:
        """What is open now."""
        return [flow for guest in self._guests.values() for flow in guest.guard.ledger.flows]

    # See ``resolving.Listener``; who asks is a guest's station.

    def verdict(self, machine: Hashable, name: str) -> int | None:
        """Whether a guest may be told of a name of the outside."""
        guest = self._asking(machine)
        if guest is None:
            return None
        rcode = self.judge.resolve(guest.lease.mac, name)
        if rcode is not None:
            guest.guard.ledger.resolved(name, "deny")
        return rcode

    def learned(self, learned: Learned) -> None:
        """A guest is about to be told where a name is: that is how its policy knows it again."""
        guest = self._asking(learned.machine)
        if guest is not None:
            self.judge.learn(learned._replace(machine=guest.lease.mac), time.monotonic())

    def stripped(self, stripped: Stripped) -> None:
        """A guest is not told addresses that are not the outside's to give."""
        guest = self._asking(stripped.machine)
        if guest is not None:
            guest.guard.ledger.resolved(stripped.name, "strip")

    def _asking(self, machine: Hashable) -> Guest | None:
        if not isinstance(machine, Station):
            return None  # who asks is no guest
        guest = self._guests.get(machine.mac)
        return guest if guest is not None and guest.station is machine else None

    def close(self) -> None:
        """Pull out all cards."""
        self._ticking.cancel()
        for guest in tuple(self._guests.values()):
            guest.close()
        self.resolver.close()

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(_TICK, self._tick)
        now = time.monotonic()
        self._ticks += 1
        for guest in tuple(self._guests.values()):
            guest.tick(now)
            if not self._ticks % _COUNT:
                guest.guard.ledger.count()
        advertisement = self.gateway.tick(now)
        if advertisement is not None:
            self._advertise(advertisement)

    def _advertise(self, packet: router.Packet) -> None:
        for guest in self._guests.values():
            gateway.send_discovery(guest.station, packet)

    def _resolve(self, asker: Asker, query: bytes, reply: Callable[[bytes], None]) -> None:
        self.resolver.ask(asker, query, reply, tcp=False)
