"""What a guest with a policy may tell the other guests of its network; without any I/O.

Frames between guests pass as they are: there are no connections here to be decided about once. So what they
began with this guest is remembered, that it may answer, and what it began and may.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from atoll.network.policy import rules
from atoll.network.wire import ethernet, icmp, ip

if TYPE_CHECKING:
    from atoll.network.station import Neighbourhood, Station

__all__ = ["Gate"]

K = TypeVar("K")

#: Ends that are remembered: the oldest make room.
_MOST: Final = 4096

#: Seconds for which an answer may take without another packet: of TCP (RFC 5382, REQ-5), and of others.
_PATIENCE: Final = {ip.TCP: 7440.0}
_BRIEF: Final = 300.0

#: Types of ICMPv6 by which neighbours find one another (RFC 4861); a router's are no guest's.
_DISCOVERY: Final = frozenset({133, 135, 136})

_PROTOCOLS: Final = {ip.TCP: rules.Protocol.TCP, ip.UDP: rules.Protocol.UDP}


class _End(NamedTuple):
    """One end at a neighbour's, and the guest's port for it."""

    protocol: int
    address: bytes
    port: int
    own: int


class Decider(Protocol):
    """Says what the guest may send to neighbours."""

    def may_tell(self, protocol: rules.Protocol, address: bytes, port: int) -> bool:
        """Whether it may send to that address and port."""


class Gate:
    """See ``Neighbourhood``: the one of a guest with a policy.

    Args:
        neighbourhood: the other guests.
        decider: says what the guest may send them.
        clock: seconds, monotonic.
    """

    def __init__(self, neighbourhood: Neighbourhood, decider: Decider, clock: Callable[[], float]) -> None:
        self._neighbourhood = neighbourhood
        self._decider = decider
        self._clock = clock
        self._heard: OrderedDict[_End, float] = OrderedDict()
        self._allowed: OrderedDict[_End, float] = OrderedDict()
        self._partners: OrderedDict[bytes, float] = OrderedDict()

    def forward(self, station: Station, destination: bytes, frame: bytes) -> None:
        """Pass a frame on if the guest may; what it may not is refused as what leads nowhere is."""
        packet = _packet(frame)
        if packet is None or self._may(packet):
            self._neighbourhood.forward(station, destination, frame)
        elif not destination[0] & 1:
            station.refuse(packet)

    def hear(self, frame: bytes) -> None:
        """A neighbour sends the guest a frame, which it may answer."""
        packet = _packet(frame)
        if packet is None or (packet.fragment is not None and packet.fragment.offset):
            return
        now = self._clock()
        if packet.protocol in _PROTOCOLS:
            if len(packet.payload) >= 4:
                ports = int.from_bytes(packet.payload[:2]), int.from_bytes(packet.payload[2:4])
                _note(self._heard, _End(packet.protocol, packet.source, *ports), now)
                _note(self._partners, packet.source, now)
        elif icmp.is_echo(packet):
            _note(self._partners, packet.source, now)

    def decide_again(self) -> None:
        """The guest has another policy."""
        self._allowed.clear()
        self._partners.clear()

    def _may(self, packet: ip.Packet) -> bool:
        protocol, payload, now = packet.protocol, packet.payload, self._clock()
        if packet.fragment is not None and packet.fragment.offset:
            return self._is_partner(packet.destination, now)
        if protocol in _PROTOCOLS:
            port, own = int.from_bytes(payload[2:4]), int.from_bytes(payload[:2])
            return len(payload) >= 4 and self._may_reach(_End(protocol, packet.destination, port, own), now)
        if protocol not in {ip.ICMP, ip.ICMP6} or not payload:
            return False
        if icmp.is_echo(packet):
            return self._may_reach(_End(protocol, packet.destination, 0, 0), now)
        is_discovery = protocol == ip.ICMP6 and payload[0] in _DISCOVERY
        return is_discovery or self._is_partner(packet.destination, now)

    def _may_reach(self, end: _End, now: float) -> bool:
        for known in (self._heard, self._allowed):
            if end in known and now - known[end] < _PATIENCE.get(end.protocol, _BRIEF):
                known[end] = now
                known.move_to_end(end)
                return True
        protocol = _PROTOCOLS.get(end.protocol, rules.Protocol.ICMP)
        if not self._decider.may_tell(protocol, end.address, end.port):
            return False
        _note(self._allowed, end, now)
        _note(self._partners, end.address, now)
        return True

    def _is_partner(self, address: bytes, now: float) -> bool:
        """Whether the guest has something to do there: then it may send what says no port."""
        return now - self._partners.get(address, -_BRIEF) < _BRIEF


def _note(known: OrderedDict[K, float], key: K, now: float) -> None:
    known[key] = now
    known.move_to_end(key)
    if len(known) > _MOST:
        known.popitem(last=False)


def _packet(frame: bytes) -> ip.Packet | None:
    """The packet of a frame; None if it has none, as a question about an address."""
    kind = int.from_bytes(frame[12:14])
    return ip.parse(memoryview(frame)[ethernet.HEADER :]) if kind in {ethernet.IPV4, ethernet.IPV6} else None
