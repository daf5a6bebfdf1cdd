"""The gateway as router and neighbour of its machines (RFC 4861, RFC 8106), free of I/O.

Messages are those of ICMPv6, from type to last option. Their checksum is the caller's: it has been verified
in what comes in, and is zero in what goes out.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network
from random import Random
from typing import NamedTuple

import msgspec

from atoll.network.dns.labels import wire

__all__ = [
    "ALL_NODES",
    "ALL_ROUTERS",
    "HOPS",
    "Neighbour",
    "Packet",
    "Router",
    "Settings",
    "link_local",
    "solicited",
]

#: Where all nodes, and all routers, of a link listen.
ALL_NODES = IPv6Address("ff02::1").packed
ALL_ROUTERS = IPv6Address("ff02::2").packed
#: The hop limit of every message here, in and out: proof that it did not come through a router.
HOPS = 255

#: Seconds between advertisements to all: a random time in between (section 6.2.1).
_INTERVAL = (200.0, 600.0)
#: Seconds for which a router is one after it was heard; at least three of the longest intervals.
_LIFETIME = 1800
#: Seconds in which an address cannot be claimed by another link than the one that used it.
_OWNED = 30.0
#: Neighbours that are known on one link, and seconds between two questions for the same unknown one.
_PER_LINK, _ASK_AGAIN = 64, 1.0
#: Unknown neighbours whose last question is remembered.
_ASKED = 256

_SOURCE_MAC, _TARGET_MAC, _PREFIX, _MTU, _RDNSS, _DNSSL = 1, 2, 3, 5, 25, 31
_IS_ROUTER, _SOLICITED, _OVERRIDE = 0x80, 0x40, 0x20
_ANY = bytes(16)
_GROUP = IPv6Address("ff02::1:ff00:0").packed[:13]
_LINK_LOCAL = IPv6Network("fe80::/10")


class _Type(IntEnum):
    """Types of messages."""

    ROUTER_SOLICITATION = 133
    ROUTER_ADVERTISEMENT = 134
    NEIGHBOUR_SOLICITATION = 135
    NEIGHBOUR_ADVERTISEMENT = 136


class Settings(msgspec.Struct, frozen=True):
    """What the machines of a network are told.

    Attributes:
        mac: the gateway's hardware address, 6 bytes.
        network: whose addresses are on the link; of 64 bits where machines make their own.
        addresses: of the gateway, for which it answers beside its link-local one.
        router: whether it leads to the outside.
        managed: addresses come from DHCPv6 (flag M).
        other: other facts come from DHCPv6 (flag O).
        autonomous: machines make addresses themselves (flag A of the prefix).
        mtu: bytes of the largest packet; 0 leaves it to the machine.
        dns: name servers.
        search: domains in which machines look for names.
        seconds: for which the prefix is valid.
    """

    mac: bytes
    network: IPv6Network
    addresses: tuple[IPv6Address, ...] = ()
    router: bool = True
    managed: bool = True
    other: bool = True
    autonomous: bool = False
    mtu: int = 0
    dns: tuple[IPv6Address, ...] = ()
    search: tuple[str, ...] = ()
    seconds: int = 86_400


class Packet(NamedTuple):
    """A message to send with a hop limit of 255; addresses as 16 and 6 bytes. ``link`` None is all links."""

    message: bytes
    source: bytes
    destination: bytes
    mac: bytes
    link: Hashable


class Neighbour(NamedTuple):
    """Where a machine's address is."""

    mac: bytes
    link: Hashable


class _Known:
    """A neighbour, and when it was last heard."""

    __slots__ = ("heard", "neighbour")

    def __init__(self, neighbour: Neighbour, heard: float) -> None:
        self.neighbour = neighbour
        self.heard = heard


def link_local(mac: bytes) -> bytes:
    """The link-local address that belongs to a hardware address (RFC 4291, appendix A)."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def solicited(address: bytes) -> bytes:
    """The multicast group in which an address is asked for (RFC 4291, section 2.7.1)."""
    return _GROUP + address[13:]


class Router:
    """Router and neighbour discovery for the gateway of one network.

    Args:
        settings: what machines are told.
        now: seconds of a monotonic clock; all are told at the first ``tick`` from then on.
        random: source of the times between advertisements.

    Raises:
        ValueError: a name in ``settings`` is no domain name.
    """

    def __init__(self, settings: Settings, now: float, random: Random | None = None) -> None:
        self._settings = settings
        self._random = random or Random()
        self._own = link_local(settings.mac)
        self._addresses = {self._own} | {address.packed for address in settings.addresses}
        self._advertisement = _advertisement(settings)
        self._pinned: dict[bytes, Neighbour] = {}
        self._known: dict[bytes, _Known] = {}
        self._links: dict[Hashable, OrderedDict[bytes, None]] = {}
        self._asked: OrderedDict[bytes, float] = OrderedDict()
        #: When ``tick`` has something to send.
        self.next = now

    @property
    def address(self) -> bytes:
        """The gateway's link-local address."""
        return self._own

    def receive(
        self,
        message: bytes | memoryview,
        source: bytes,
        destination: bytes,
        hops: int,
        mac: bytes,
        link: Hashable,
        now: float,
    ) -> Packet | None:
        """Take a message from a machine, and learn its address; the answer, None if there is none.

        Args:
            message: ICMPv6, checksum verified.
            source: address of its sender.
            destination: where it was sent.
            hops: hop limit with which it arrived.
            mac: hardware address of the sender of the frame.
            link: where the frame came from.
            now: seconds.
        """
        if hops != HOPS or len(message) < 8 or message[1] != 0 or mac[0] & 1:
            return None
        match message[0]:
            case _Type.ROUTER_SOLICITATION:
                return self._router_wanted(bytes(message), source, mac, link, now)
            case _Type.NEIGHBOUR_SOLICITATION if len(message) >= 24:
                return self._neighbour_wanted(bytes(message), source, destination, mac, link, now)
            case _Type.NEIGHBOUR_ADVERTISEMENT if len(message) >= 24:
                self._neighbour_told(bytes(message), destination, mac, link, now)
        return None

    def tick(self, now: float) -> Packet | None:
        """The advertisement to all, whenever its time has come (``next``)."""
        if now < self.next:
            return None
        self.next = now + self._random.uniform(*_INTERVAL)
        return Packet(self._advertisement, self._own, ALL_NODES, b"\x33\x33\0\0\0\1", None)

    def neighbour(self, address: bytes) -> Neighbour | None:
        """Where an address was last heard."""
        if (pinned := self._pinned.get(address)) is not None:
            return pinned
        known = self._known.get(address)
        return known.neighbour if known is not None else None

    def pin(self, address: bytes, mac: bytes, link: Hashable) -> None:
        """Say where an address is until its link is forgotten, whatever machines claim."""
        if (known := self._known.get(address)) is not None:
            self._drop(address, known.neighbour.link)
        self._pinned[address] = Neighbour(mac, link)

    def ask(self, address: bytes, now: float) -> Packet | None:
        """A question to all links for an unknown address; None if it was asked less than a second ago."""
        if self._asked.get(address, -_ASK_AGAIN) + _ASK_AGAIN > now or not self._on_link(address):
            return None
        self._asked.pop(address, None)
        self._asked[address] = now
        if len(self._asked) > _ASKED:
            self._asked.popitem(last=False)
        message = struct.pack(
            ">BBHI16sBB6s", _Type.NEIGHBOUR_SOLICITATION, 0, 0, 0, address, _SOURCE_MAC, 1, self._settings.mac
        )
        group = solicited(address)
        return Packet(message, self._own, group, b"\x33\x33" + group[12:], None)

    def learn(self, address: bytes, mac: bytes, link: Hashable, now: float) -> bool:
        """Remember where a machine's address is; False if it cannot be a machine's, or is another link's."""
        if address in self._addresses or not self._on_link(address):
            return False
        if (pinned := self._pinned.get(address)) is not None:
            return pinned == (mac, link)
        known = self._known.get(address)
        if known is not None and known.neighbour.link != link:
            if now - known.heard < _OWNED:
                return False
            self._drop(address, known.neighbour.link)
        of_link = self._links.setdefault(link, OrderedDict())
        of_link[address] = None
        of_link.move_to_end(address)
        self._known[address] = _Known(Neighbour(mac, link), now)
        if len(of_link) > _PER_LINK:
            oldest, _ = of_link.popitem(last=False)
            del self._known[oldest]
        return True

    def forget(self, link: Hashable) -> None:
        """A link is gone, and with it all its neighbours."""
        for address in self._links.pop(link, ()):
            del self._known[address]
        self._pinned = {address: pinned for address, pinned in self._pinned.items() if pinned.link != link}

    def _drop(self, address: bytes, link: Hashable) -> None:
        del self._known[address]
        del self._links[link][address]
        if not self._links[link]:
            del self._links[link]

    def _on_link(self, address: bytes) -> bool:
        found = IPv6Address(address)
        return found in self._settings.network or found in _LINK_LOCAL

    def _router_wanted(
        self, message: bytes, source: bytes, mac: bytes, link: Hashable, now: float
    ) -> Packet | None:
        """Advertise to one that asks, at once: it hears nobody else's answer (sections 6.1.1 and 6.2.6)."""
        options = _options(message[8:])
        if options is None or (source == _ANY and _SOURCE_MAC in options):
            return None
        if options.get(_SOURCE_MAC) == mac:
            self.learn(source, mac, link, now)
        destination = ALL_NODES if source == _ANY else source
        return Packet(self._advertisement, self._own, destination, mac, link)

    def _neighbour_wanted(
        self, message: bytes, source: bytes, destination: bytes, mac: bytes, link: Hashable, now: float
    ) -> Packet | None:
        """Answer for the gateway's addresses, also who wants one of them himself (sections 7.1.1, 7.2.4)."""
        target = message[8:24]
        options = _options(message[24:])
        if options is None or target[0] == 0xFF:
            return None
        if source == _ANY and (_SOURCE_MAC in options or destination != solicited(target)):
            return None
        if options.get(_SOURCE_MAC) == mac:
            self.learn(source, mac, link, now)
        if target not in self._addresses:
            return None
        flags = _IS_ROUTER if self._settings.router else 0
        flags |= _OVERRIDE if source == _ANY else _OVERRIDE | _SOLICITED
        answer = struct.pack(
            ">BBHB3x16sBB6s",
            _Type.NEIGHBOUR_ADVERTISEMENT,
            0,
            0,
            flags,
            target,
            _TARGET_MAC,
            1,
            self._settings.mac,
        )
        return Packet(answer, target, ALL_NODES if source == _ANY else source, mac, link)

    def _neighbour_told(
        self, message: bytes, destination: bytes, mac: bytes, link: Hashable, now: float
    ) -> None:
        """Learn from an advertisement (section 7.1.2)."""
        options = _options(message[24:])
        if options is None or (destination[0] == 0xFF and message[4] & _SOLICITED):
            return
        if options.get(_TARGET_MAC, mac) == mac:
            self.learn(message[8:24], mac, link, now)


def _options(data: bytes) -> dict[int, bytes] | None:
    """The first option of each type; None if one is empty or reaches over the end (section 4.6)."""
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        end = at + data[at + 1] * 8 if at + 1 < len(data) else at
        if not at < end <= len(data):
            return None
        options.setdefault(data[at], data[at + 2 : end])
        at = end
    return options


def _advertisement(settings: Settings) -> bytes:
    """What machines are told (section 4.2), the same each time."""
    flags = 0x80 * settings.managed | 0x40 * settings.other
    lifetime = _LIFETIME if settings.router else 0
    head = struct.pack(">BBHBBHII", _Type.ROUTER_ADVERTISEMENT, 0, 0, 64, flags, lifetime, 0, 0)
    return head + b"".join(_facts(settings))


def _facts(settings: Settings) -> Iterator[bytes]:
    yield struct.pack(">BB6s", _SOURCE_MAC, 1, settings.mac)
    if settings.mtu:
        yield struct.pack(">BBHI", _MTU, 1, 0, settings.mtu)
    flags = 0x80 | 0x40 * settings.autonomous
    network, seconds = settings.network, settings.seconds
    prefix = network.network_address.packed
    yield struct.pack(">BBBBIII16s", _PREFIX, 4, network.prefixlen, flags, seconds, seconds, 0, prefix)
    if settings.dns:
        servers = b"".join(server.packed for server in settings.dns)
        yield struct.pack(">BBHI", _RDNSS, 1 + len(servers) // 8, 0, _LIFETIME) + servers
    if settings.search:
        domains = b"".join(wire(domain) for domain in settings.search)
        domains += bytes(-len(domains) % 8)
        yield struct.pack(">BBHI", _DNSSL, 1 + len(domains) // 8, 0, _LIFETIME) + domains
