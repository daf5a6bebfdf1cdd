"""A guest on a network, from the network's end, without any I/O.

What a guest sends is looked at here first. It may only send from the addresses that are its own; and what it
sends to the outside goes no further than the translation into sockets of this host: no packet is passed on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, Protocol

from atoll.network.gateway import Gateway
from atoll.network.leases import Lease
from atoll.network.reassembly import Reassembly
from atoll.network.tcp.flow import Flow
from atoll.network.tcp.flows import Flows
from atoll.network.udp.associations import Associations, Peer
from atoll.network.wire import ethernet, icmp, ip, udp

__all__ = ["Neighbourhood", "Station"]

#: From the EtherType on: it, version and header length, total length, fragment, protocol.
_IP4: Final = struct.Struct(">HBxHxxHxB")
#: From the EtherType on: it, the first bytes, payload length, next header.
_IP6: Final = struct.Struct(">HIHB")
#: From the sequence number on: it, the acknowledged one, header length and flags, window.
_TCP: Final = struct.Struct(">IIHH")

#: Bytes of the shortest frames with a TCP segment, and where its sequence number and the addresses are.
_LEAST_4: Final = ethernet.HEADER + 20 + 20
_LEAST_6: Final = ethernet.HEADER + 40 + 20

_ANY_4, _ANY_6 = bytes(4), bytes(16)

#: Ports of DHCP and DHCPv6, of servers and of clients, as they lie in a datagram: the gateway alone lends.
_LENDING: Final = frozenset(port.to_bytes(2) for port in (67, 68, 546, 547))

_DHCP_SERVER: Final = (67).to_bytes(2)

#: The last type of ICMPv6 that one without an address has nothing to do with (RFC 4443, section 4).
_ECHO_REPLY: Final = b"\x81"

#: Types of ICMPv6 (RFC 4861): who advertises a router or redirects is no guest, whose address is where is.
_ROUTERS: Final = frozenset({134, 137})
_NEIGHBOUR_ADVERTISEMENT: Final = 136


class Neighbourhood(Protocol):
    """The other guests of the network."""

    def forward(self, station: Station, destination: bytes, frame: bytes) -> None:
        """Pass a frame on to the guest with that hardware address, or to all if it is a group's."""


class Pings(Protocol):
    """Sends echo requests to the outside."""

    def ping(self, packet: ip.Packet) -> None:
        """Send the request in ``packet`` on, if this host may."""


class Station:
    """One guest.

    Args:
        lease: its addresses.
        gateway: of the network.
        flows: its connections.
        associations: its datagrams.
        neighbourhood: other guests, None on a network where they do not see one another.
        pings: for echo requests.
        transmit: sends it frames.
        clock: seconds, monotonic.

    Attributes:
        mac: its hardware address.
        neighbourhood: as given; another one from when it is put in its place.
        transmit: sends it frames.
        refused: frames that were dropped, as they came from addresses that are not its own.
    """

    def __init__(
        self,
        lease: Lease,
        gateway: Gateway,
        flows: Flows,
        associations: Associations,
        *,
        neighbourhood: Neighbourhood | None,
        pings: Pings,
        transmit: Callable[[list[bytes | memoryview]], None],
        clock: Callable[[], float],
    ) -> None:
        assert lease.ipv4 is not None
        self.mac = lease.mac
        self.address = lease.ipv4.packed
        self.refused = 0
        self._gateway = gateway
        self._flows = flows
        self._table = flows.table
        self._associations = associations
        self.neighbourhood = neighbourhood
        self._pings = pings
        self.transmit = transmit
        self._clock = clock
        self._reassembly = Reassembly()

    def send(self, kind: int, packet: bytes, mac: bytes | None = None) -> None:
        """See ``Asker``."""
        head = ethernet.LENGTH.pack(ethernet.HEADER + len(packet)) + (mac or self.mac) + self._gateway.mac
        self.transmit([head + kind.to_bytes(2), packet])

    def frame(self, buffer: memoryview, start: int, end: int) -> None:
        """See ``Card``: first of all whether it is a segment of a connection that is known."""
        if end - start >= _LEAST_4:
            kind, version, total, fragment, protocol = _IP4.unpack_from(buffer, start + 12)
            if kind == ethernet.IPV4:
                if protocol == ip.TCP and version == 0x45 and not fragment & 0x3FFF:
                    flow = self._table.get(bytes(buffer[start + 26 : start + 38]))
                    if flow is not None:
                        self._segment(flow, buffer, start + 38, min(end, start + ethernet.HEADER + total))
                        return
            elif kind == ethernet.IPV6 and end - start >= _LEAST_6 and buffer[start + 20] == ip.TCP:
                flow = self._table.get(bytes(buffer[start + 22 : start + 58]))
                if flow is not None:
                    size = int.from_bytes(buffer[start + 18 : start + 20])
                    self._segment(flow, buffer, start + 58, min(end, start + ethernet.HEADER + 40 + size))
                    return
        self._other(buffer[start:end])

    def _segment(self, flow: Flow, buffer: memoryview, start: int, end: int) -> None:
        """Give a flow its segment, whose sequence number is at ``start``."""
        sequence, acknowledged, flags, window = _TCP.unpack_from(buffer, start)
        payload = start - 4 + (flags >> 10 & 0x3C)
        if start + 16 <= payload <= end:
            now = self._clock()
            options = buffer[start + 16 : payload]
            flow.segment(sequence, acknowledged, flags, window, options, buffer[payload:end], now)

    # What is of no known connection

    def _other(self, frame: memoryview) -> None:
        if len(frame) < ethernet.HEADER:
            return
        destination, source, kind = bytes(frame[:6]), frame[6:12], int.from_bytes(frame[12:14])
        packet = ip.parse(frame[14:]) if kind in {ethernet.IPV4, ethernet.IPV6} else None
        if source != self.mac or not (self._is_own(packet) if packet else kind == ethernet.ARP):
            self.refused += 1
            return
        is_group = bool(destination[0] & 1)
        if destination == self._gateway.mac or is_group:
            if packet is not None:
                self._packet(packet, is_group=is_group)
            else:
                self._gateway.resolve_address(self, frame[14:], self.address)
        if (
            destination != self._gateway.mac
            and self.neighbourhood is not None
            and self._may_tell(frame, packet)
        ):
            self.neighbourhood.forward(self, destination, bytes(frame))

    def _is_own(self, packet: ip.Packet) -> bool:
        """Whether the guest may send from the address that ``packet`` is from."""
        source = packet.source
        if len(source) == 4:
            return source == self.address or (source == _ANY_4 and _is_asking(packet))
        if source == _ANY_6:
            return packet.protocol == ip.ICMP6 and bytes(packet.payload[:1]) > _ECHO_REPLY
        return self._gateway.neighbours.learn(source, self.mac, self, self._clock())

    def _may_tell(self, frame: memoryview, packet: ip.Packet | None) -> bool:
        """Whether a frame for others says nothing of addresses that are not the guest's own."""
        if packet is None:
            return bytes(frame[28:32]) in {self.address, _ANY_4} and bytes(frame[22:28]) == self.mac
        part, payload = packet.fragment, packet.payload
        if part is not None and part.offset:
            return True  # without its beginning, which is judged, nobody makes anything of it
        if packet.protocol == ip.UDP:
            return bytes(payload[2:4]) not in _LENDING
        if packet.protocol != ip.ICMP6 or not payload:
            return packet.protocol not in ip.PASSED_OVER  # in a fragment, who knows what is behind it
        if payload[0] != _NEIGHBOUR_ADVERTISEMENT:
            return payload[0] not in _ROUTERS
        target = bytes(payload[8:24])
        return len(target) == 16 and self._gateway.neighbours.learn(target, self.mac, self, self._clock())

    def refuse(self, packet: ip.Packet) -> None:
        """Answer a packet for a neighbour that the guest may not send it, as one that leads nowhere."""
        self._packet(packet, is_group=False)

    def _packet(self, packet: ip.Packet, *, is_group: bool) -> None:
        now = self._clock()
        if packet.fragment is not None:
            whole = self._reassembly.add(packet, now)
            if whole is None:
                return
            packet = whole
        is_ours = self._gateway.is_for_it(packet)
        if is_group or (is_ours and packet.destination not in self._gateway.addresses):
            if is_ours and packet.protocol != ip.TCP:  # nobody is told of what groups did not take
                self._gateway.take(self, packet, now)
        elif packet.protocol == ip.TCP:
            self._first_segment(packet)
        elif is_ours:
            if not self._gateway.take(self, packet, now):
                self._datagram(packet, now, icmp.Reason.NO_PORT)
        elif packet.protocol == ip.UDP:
            self._datagram(packet, now, icmp.Reason.PROHIBITED)
        elif packet.protocol in {ip.ICMP, ip.ICMP6}:
            self._pings.ping(packet)
        else:
            self.tell(packet, icmp.Reason.NO_PROTOCOL)

    def _first_segment(self, packet: ip.Packet) -> None:
        """A segment of no known flow, or one that came in fragments."""
        payload, ends = packet.payload, packet.source + packet.destination
        if len(payload) < 20:
            return
        key = ends + bytes(payload[:4])
        flow = self._table.get(key)
        if flow is not None:
            self._segment(flow, payload, 4, len(payload))
            return
        sequence, acknowledged, flags, window = _TCP.unpack_from(payload, 4)
        size = flags >> 10 & 0x3C
        if 20 <= size <= len(payload):
            rest = len(payload) - size
            self._flows.first(key, sequence, acknowledged, flags & 0x3F, window, payload[20:size], rest)

    def _datagram(self, packet: ip.Packet, now: float, refusal: icmp.Reason) -> None:
        datagram = udp.parse(packet.payload)
        if datagram is None:
            return
        guest = Peer(packet.source, datagram.source_port)
        peer = Peer(packet.destination, datagram.destination_port)
        if not self._associations.send(guest, peer, datagram.payload, now):
            self.tell(packet, refusal)

    def tell(self, packet: ip.Packet, reason: icmp.Reason) -> None:
        """Tell the guest that ``packet`` of its did not arrive."""
        reporter = self._gateway.reporter(packet.source)
        message = icmp.error(reporter, packet, reason)
        is_6 = len(reporter) == 16
        head = ip.header(reporter, packet.source, ip.ICMP6 if is_6 else ip.ICMP, len(message))
        self.send(ethernet.IPV6 if is_6 else ethernet.IPV4, head + message)


def _is_asking(packet: ip.Packet) -> bool:
    """Whether a packet is for a server of DHCP: its sender may have no address yet (RFC 2131, 4.1)."""
    is_whole = packet.protocol == ip.UDP and packet.fragment is None
    return is_whole and bytes(packet.payload[2:4]) == _DHCP_SERVER
