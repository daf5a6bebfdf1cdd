"""The gateway of a network: what guests send to the network itself, and its answers; without any I/O."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

from atoll.network import dhcp, dhcpv6, router
from atoll.network.addressing import Addressing
from atoll.network.leases import Lease
from atoll.network.wire import arp, ethernet, icmp, ip, udp

__all__ = ["Gateway", "Resolve"]

_DNS, _DHCP_SERVER, _DHCP_CLIENT, _DHCP6_SERVER, _DHCP6_CLIENT = 53, 67, 68, 547, 546

#: Where DHCPv6 clients look for servers (RFC 9915, section 7.1).
_DHCP6_GROUP = bytes.fromhex("ff020000000000000000000000010002")

_BROADCAST_4 = b"\xff" * 4


class Asker(Protocol):
    """A guest, as the gateway sees it.

    Attributes:
        mac: its hardware address.
    """

    mac: bytes

    def __hash__(self) -> int: ...

    def send(self, kind: int, packet: bytes, mac: bytes | None = None) -> None:
        """Send it a packet of that EtherType; ``mac`` if not to its own hardware address."""


#: Answers a question of DNS that came in a datagram, now or later, by calling what it is given.
Resolve = Callable[[Asker, bytes, Callable[[bytes], None]], None]


class Gateway:
    """Answers what guests ask of one network.

    Args:
        addressing: the network's addresses.
        mtu: bytes of its largest packet.
        outside: whether it leads anywhere.
        domain: of the network's names.
        resolve: answers questions of DNS that came in datagrams.
        now: seconds of a monotonic clock.

    Attributes:
        addresses: that are the gateway's own.
        neighbours: who has which address of IPv6.
    """

    def __init__(
        self,
        addressing: Addressing,
        *,
        mtu: int,
        outside: bool,
        domain: str,
        resolve: Resolve,
        now: float,
    ) -> None:
        self.mac = addressing.mac
        own_4, own_6 = (addressing.gateway, addressing.resolver), (addressing.gateway6, addressing.resolver6)
        self._resolvers = addressing.resolvers
        self._leases = dhcp.Server(
            dhcp.Settings(
                network=addressing.ipv4,
                server=addressing.gateway,
                router=addressing.gateway if outside else None,
                dns=(addressing.resolver,),
                domain=domain,
                search=(domain,),
                mtu=mtu,
            )
        )
        settings_6 = dhcpv6.Settings(
            network=addressing.ipv6, mac=self.mac, dns=(addressing.resolver6,), search=(domain,)
        )
        self._leases_6 = dhcpv6.Server(settings_6)
        self.neighbours = router.Router(
            router.Settings(
                mac=self.mac,
                network=addressing.ipv6,
                addresses=own_6,
                router=outside,
                autonomous=True,
                mtu=mtu,
                dns=(addressing.resolver6,),
                search=(domain,),
            ),
            now,
        )
        self._link_local = router.link_local(self.mac)
        self.addresses = frozenset(address.packed for address in own_4 + own_6) | {self._link_local}
        self._broadcast = addressing.ipv4.broadcast_address.packed
        self._server, self._server_6 = addressing.gateway.packed, addressing.gateway6.packed
        self._resolve = resolve

    def add(self, lease: Lease, asker: Asker) -> None:
        """A guest comes."""
        self._leases.add(lease)
        self._leases_6.add(lease)
        if lease.ipv6 is not None:
            self.neighbours.pin(lease.ipv6.packed, lease.mac, asker)

    def remove(self, asker: Asker) -> None:
        """A guest goes."""
        self._leases.remove(asker.mac)
        self._leases_6.remove(asker.mac)
        self._leases.forget(asker)
        self._leases_6.forget(asker)
        self.neighbours.forget(asker)

    def reporter(self, guest: bytes) -> bytes:
        """The address from which a guest's address is told what did not arrive."""
        return self._server if len(guest) == 4 else self._server_6

    def resolve_address(self, asker: Asker, payload: memoryview, own: bytes) -> None:
        """Answer an ARP request for the gateway; ``own`` is the address that the asker has, or will."""
        question = arp.parse_question(payload)
        if question is not None and question.target in self.addresses and question.sender in {own, bytes(4)}:
            asker.send(ethernet.ARP, arp.answer(question, self.mac))

    def is_for_it(self, packet: ip.Packet) -> bool:
        """Whether a packet is for the gateway itself, or for whoever is there."""
        destination = packet.destination
        return (
            destination in self.addresses
            or destination in {_BROADCAST_4, self._broadcast}
            or (destination[0] == 0xFF if len(destination) == 16 else 224 <= destination[0] < 240)
        )

    def take(self, asker: Asker, packet: ip.Packet, now: float) -> bool:
        """Answer a packet for the gateway, but of TCP; False for a datagram to a port without a service."""
        if packet.protocol == ip.UDP:
            return self._datagram(asker, packet, now)
        if packet.protocol == ip.ICMP6 and self._discover(asker, packet, now):
            return True
        is_own = packet.destination in self.addresses
        if is_own and packet.protocol in {ip.ICMP, ip.ICMP6} and icmp.is_echo(packet):
            message = icmp.echo_reply(packet)
            _send(asker, packet.destination, packet.source, packet.protocol, message)
        return True

    def tick(self, now: float) -> router.Packet | None:
        """The advertisement to all guests, when its time has come."""
        return self.neighbours.tick(now)

    def _discover(self, asker: Asker, packet: ip.Packet, now: float) -> bool:
        if not packet.payload or not 133 <= packet.payload[0] <= 137:
            return False
        ends = (packet.source, packet.destination)
        answer = self.neighbours.receive(packet.payload, *ends, packet.hops, asker.mac, asker, now)
        if answer is not None:
            send_discovery(asker, answer)
        return True

    def _datagram(self, asker: Asker, packet: ip.Packet, now: float) -> bool:
        datagram = udp.parse(packet.payload)
        if datagram is None:
            return True
        port, is_own = datagram.destination_port, packet.destination in self.addresses
        if port == _DHCP_SERVER and len(packet.source) == 4:
            self._lend(asker, datagram, now)
        elif port == _DHCP6_SERVER and (is_own or packet.destination == _DHCP6_GROUP):
            self._lend_6(asker, packet, datagram, now)
        elif port == _DNS and packet.destination in self._resolvers:
            ends = (packet.destination, packet.source, _DNS, datagram.source_port)
            answer = functools.partial(_send_datagram, asker, *ends)
            self._resolve(asker, bytes(datagram.payload), answer)
        else:
            return not is_own
        return True

    def _lend(self, asker: Asker, datagram: udp.Datagram, now: float) -> None:
        reply = self._leases.reply(datagram.payload, now, asker)
        if reply is not None and (reply.broadcast or reply.mac == asker.mac):
            ends = (self._server, reply.address, _DHCP_SERVER, _DHCP_CLIENT)
            _send_datagram(asker, *ends, reply.payload, ethernet.BROADCAST if reply.broadcast else None)

    def _lend_6(self, asker: Asker, packet: ip.Packet, datagram: udp.Datagram, now: float) -> None:
        reply = self._leases_6.reply(datagram.payload, asker.mac, now, asker)
        if reply is not None:
            _send_datagram(asker, self._link_local, packet.source, _DHCP6_SERVER, _DHCP6_CLIENT, reply)


def send_discovery(asker: Asker, packet: router.Packet) -> None:
    """Send a guest a message of the router's, which only counts with all its hops left (RFC 4861, 6.1.2)."""
    message = icmp.message(packet.source, packet.destination, packet.message[0], 0, packet.message[4:])
    head = ip.header(packet.source, packet.destination, ip.ICMP6, len(message), hops=255)
    asker.send(ethernet.IPV6, head + message, packet.mac)


def _send(
    asker: Asker, source: bytes, destination: bytes, protocol: int, payload: bytes, mac: bytes | None = None
) -> None:
    kind = ethernet.IPV6 if len(source) == 16 else ethernet.IPV4
    asker.send(kind, ip.header(source, destination, protocol, len(payload)) + payload, mac)


def _send_datagram(
    asker: Asker,
    source: bytes,
    destination: bytes,
    source_port: int,
    destination_port: int,
    payload: bytes,
    mac: bytes | None = None,
) -> None:
    head = udp.header(source, destination, source_port, destination_port, payload)
    _send(asker, source, destination, ip.UDP, head + payload, mac)
