"""A DHCP server as a function from datagram to datagram (RFC 2131, options of RFC 2132), free of I/O.

It is the only server of its network, so it says no where others would have to keep silent. Clients are
known by their hardware address: identifiers (option 61) are the same in all clones of a machine.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

import msgspec

from atoll.network.dns.labels import wire
from atoll.network.leases import Lease, Lender

__all__ = ["CLIENT_PORT", "SERVER_PORT", "Reply", "Server", "Settings"]

SERVER_PORT = 67
CLIENT_PORT = 68

#: Bytes of the longest datagram that is looked at; none is longer in earnest.
_LONGEST = 4096
#: Bytes of IP and UDP headers, which a client's limit of a message's size includes.
_HEADERS = 28
#: Bytes that every client takes (RFC 2131, section 2), and that are sent to one that takes more.
_SMALLEST, _LARGEST = 576, 1500
#: Bytes of the smallest message of BOOTP (RFC 1542, section 2.1), below which some clients hear nothing.
_PADDED = 300

_FIXED = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = bytes((99, 130, 83, 99))
_REQUEST, _REPLY = 1, 2
_ETHERNET = 1
_BROADCAST = 0x8000
_ZERO = bytes(4)
_EVERYBODY = b"\xff" * 4


class _Kind(IntEnum):
    """Types of messages (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class _Option(IntEnum):
    """Codes of options."""

    PAD = 0
    MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    MTU = 26
    BROADCAST = 28
    ADDRESS = 50
    SECONDS = 51
    OVERLOAD = 52
    KIND = 53
    SERVER = 54
    WANTED = 55
    MESSAGE = 56
    SIZE = 57
    RENEW = 58
    REBIND = 59
    CLIENT = 61
    RAPID = 80  # RFC 4039
    SEARCH = 119  # RFC 3397
    ROUTES = 121  # RFC 3442
    END = 255


class Settings(msgspec.Struct, frozen=True):
    """What a network's clients are told.

    Attributes:
        network: its addresses.
        server: the gateway's address, which identifies the server.
        router: where packets for the outside go; None on a network without an outside.
        dns: name servers.
        domain: of the clients' own names.
        search: domains in which they look for names.
        mtu: bytes of the largest packet; 0 leaves it to the client.
        routes: further networks and the routers to them.
        seconds: for which an address is lent.
        pool: lowest and highest address that is lent to unknown clients; None lends none.
    """

    network: IPv4Network
    server: IPv4Address
    router: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    mtu: int = 0
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()
    seconds: int = 86_400
    pool: tuple[IPv4Address, IPv4Address] | None = None


class Reply(NamedTuple):
    """A datagram for a client's port: payload and where it goes, addresses as 4 and 6 bytes."""

    payload: bytes
    broadcast: bool
    address: bytes
    mac: bytes


class _Request(NamedTuple):
    """What was understood of a client's datagram."""

    kind: int
    transaction: int
    flags: int
    client: bytes
    mac: bytes
    options: dict[int, bytes]

    def address(self, code: int) -> bytes:
        """The address that an option has; empty if there is none."""
        value = self.options.get(code, b"")
        return value if len(value) == 4 else b""


class Server(Lender):
    """Answers the clients of one network.

    Args:
        settings: what they are told.
        leases: addresses that are given; others can be added and removed.

    ``pool`` is what it lends from; None if it lends nothing.

    Raises:
        ValueError: a name in ``settings`` is no domain name, or the pool is empty or too large.
    """

    def __init__(self, settings: Settings, leases: Iterable[Lease] = ()) -> None:
        reserved = {int(address) for address in (settings.server, settings.router) if address}
        reserved |= {int(address) for address in settings.dns}
        reserved |= {int(settings.network[0]), int(settings.network[-1])}
        super().__init__(lambda lease: lease.ipv4, reserved, settings.pool, leases)
        self._settings = settings
        self._server = settings.server.packed
        self._times = _times(settings.seconds)
        self._facts = _facts(settings)

    def reply(self, request: bytes | memoryview, now: float, link: Hashable = None) -> Reply | None:
        """The answer to a datagram for port 67; None where there is none, or it is malformed.

        Args:
            request: payload of the datagram.
            now: seconds of a monotonic clock.
            link: where it came from; limits what one machine can be lent.
        """
        parsed = _parse(request)
        if parsed is None:
            return None
        match parsed.kind:
            case _Kind.DISCOVER:
                return self._discover(parsed, now, link)
            case _Kind.REQUEST:
                return self._request(parsed, now, link)
            case _Kind.INFORM:
                return self._inform(parsed)
            case _Kind.RELEASE if self.pool is not None:
                self.pool.release(parsed.mac, link, int.from_bytes(parsed.client), now)
            case _Kind.DECLINE if self.pool is not None:
                declined = int.from_bytes(parsed.address(_Option.ADDRESS))
                self.pool.decline(parsed.mac, link, declined, now)
        return None

    def _discover(self, request: _Request, now: float, link: Hashable) -> Reply | None:
        given = self._given.get(request.mac)
        if given is not None and given.ipv4 is not None:
            address = given.ipv4.packed
        elif self.pool is not None:
            wanted = int.from_bytes(request.address(_Option.ADDRESS))
            offered = self.pool.offer(request.mac, link, now, wanted)
            if offered is None:
                return None
            address = offered.to_bytes(4)
        else:
            return None
        if _Option.RAPID in request.options and self._settle(request, address, now, link):
            return self._tell(_Kind.ACK, request, address)
        return self._tell(_Kind.OFFER, request, address)

    def _request(self, request: _Request, now: float, link: Hashable) -> Reply | None:
        """Which state a client is in shows in what it sends (RFC 2131, section 4.3.2)."""
        server = request.options.get(_Option.SERVER)
        if server is not None and server != self._server:
            return None
        if self.pool is None and request.mac not in self._given:
            return None
        address = request.address(_Option.ADDRESS)
        if not address and server is None and request.client != _ZERO:
            address = request.client
        if not address:
            return None
        kind = _Kind.ACK if self._settle(request, address, now, link) else _Kind.NAK
        return self._tell(kind, request, address)

    def _settle(self, request: _Request, address: bytes, now: float, link: Hashable) -> bool:
        """Whether this address is the client's from now on."""
        given = self._given.get(request.mac)
        if given is not None and given.ipv4 is not None:
            return given.ipv4.packed == address
        seconds = self._settings.seconds
        wanted = int.from_bytes(address)
        return self.pool is not None and self.pool.lend(request.mac, link, now, seconds, wanted)

    def _inform(self, request: _Request) -> Reply | None:
        if request.client == _ZERO or IPv4Address(request.client) not in self._settings.network:
            return None
        return self._tell(_Kind.ACK, request, _ZERO)

    def _tell(self, kind: _Kind, request: _Request, address: bytes) -> Reply:
        """Make the answer, and find its way (RFC 2131, section 4.1)."""
        refused = kind is _Kind.NAK
        options = [(_Option.KIND, bytes((kind,))), (_Option.SERVER, self._server)]
        if refused:
            options.append((_Option.MESSAGE, b"this address is not for this client"))
            address = _ZERO
        else:
            options += self._told(kind, request, leased=address != _ZERO)
        if identifier := request.options.get(_Option.CLIENT):
            options.insert(2, (_Option.CLIENT, identifier))  # RFC 6842
        client = request.client if kind is _Kind.ACK else _ZERO
        flags = request.flags & _BROADCAST | (_BROADCAST if refused else 0)
        head = _FIXED.pack(
            _REPLY, _ETHERNET, 6, 0, request.transaction, 0, flags,
            client, address, _ZERO, _ZERO, request.mac, b"", b"", _COOKIE,
        )  # fmt: skip
        payload = _fill(head, options, _room(request.options.get(_Option.SIZE, b"")))
        if client != _ZERO:
            return Reply(payload, broadcast=False, address=client, mac=request.mac)
        if flags:
            return Reply(payload, broadcast=True, address=_EVERYBODY, mac=b"\xff" * 6)
        return Reply(payload, broadcast=False, address=address, mac=request.mac)

    def _told(self, kind: _Kind, request: _Request, *, leased: bool) -> list[tuple[_Option, bytes]]:
        """The options with a lease or, without one, for a client that has an address."""
        options = list(self._times) if leased else []
        if kind is _Kind.ACK and request.kind == _Kind.DISCOVER:
            options.append((_Option.RAPID, b""))
        facts = self._facts
        given = self._given.get(request.mac)
        if given is not None and given.hostname:
            facts = [*facts, (_Option.HOSTNAME, given.hostname.encode()[:255])]
        wanted = request.options.get(_Option.WANTED)
        return options + [
            fact for fact in facts if wanted is None or fact[0] in wanted or fact[0] == _Option.MASK
        ]


def _times(seconds: int) -> list[tuple[_Option, bytes]]:
    return [
        (_Option.SECONDS, seconds.to_bytes(4)),
        (_Option.RENEW, (seconds // 2).to_bytes(4)),
        (_Option.REBIND, (seconds * 7 // 8).to_bytes(4)),
    ]


def _facts(settings: Settings) -> list[tuple[_Option, bytes]]:
    """Options that are the same for all, the most needed first."""
    network = settings.network
    facts = [(_Option.MASK, network.netmask.packed)]
    if settings.routes:
        facts.append((_Option.ROUTES, _routes(settings)))  # before the router (RFC 3442)
    if settings.router is not None:
        facts.append((_Option.ROUTER, settings.router.packed))
    if settings.dns:
        facts.append((_Option.DNS, b"".join(server.packed for server in settings.dns)))
    if settings.domain:
        wire(settings.domain)
        facts.append((_Option.DOMAIN, settings.domain.encode()))
    if settings.search:
        facts.append((_Option.SEARCH, b"".join(wire(domain) for domain in settings.search)))
    if settings.mtu:
        facts.append((_Option.MTU, settings.mtu.to_bytes(2)))
    facts.append((_Option.BROADCAST, network.broadcast_address.packed))
    return facts


def _routes(settings: Settings) -> bytes:
    """Classless routes; a client that reads them reads no router, so the default is among them."""
    routes = list(settings.routes)
    if settings.router is not None:
        routes.append((IPv4Network("0.0.0.0/0"), settings.router))
    return b"".join(
        bytes((to.prefixlen,)) + to.network_address.packed[: (to.prefixlen + 7) // 8] + router.packed
        for to, router in routes
    )


def _room(limit: bytes) -> int:
    """Bytes that a client takes as payload."""
    size = int.from_bytes(limit) if len(limit) == 2 else 0
    return min(max(size, _SMALLEST), _LARGEST) - _HEADERS


def _fill(head: bytes, options: Iterable[tuple[_Option, bytes]], room: int) -> bytes:
    """A message with the options that fit; long ones in parts (RFC 3396)."""
    message = bytearray(head)
    for code, value in options:
        parts = [value[at : at + 255] for at in range(0, len(value), 255)] or [b""]
        encoded = b"".join(bytes((code, len(part))) + part for part in parts)
        if len(message) + len(encoded) < room:
            message += encoded
    message.append(_Option.END)
    return bytes(message.ljust(_PADDED, b"\0"))


def _parse(data: bytes | memoryview) -> _Request | None:
    """Read a client's message; None if it is none, or came through a relay."""
    if not _FIXED.size <= len(data) <= _LONGEST:
        return None
    fixed = _FIXED.unpack_from(data)
    operation, hardware, length, _, transaction, _, flags, client, _, _, relay, mac, sname, file, cookie = (
        fixed
    )
    wrong = (operation, hardware, length, relay, cookie) != (_REQUEST, _ETHERNET, 6, _ZERO, _COOKIE)
    if wrong or mac[0] & 1 or not any(mac[:6]):
        return None
    options: dict[int, bytes] = {}
    if not _read(bytes(data[_FIXED.size :]), options):
        return None
    overload = options.get(_Option.OVERLOAD, b"\0")[:1]
    for bit, field in ((1, file), (2, sname)):
        if overload and overload[0] & bit and not _read(field, options):
            return None
    kind = options.get(_Option.KIND, b"")
    if len(kind) != 1:
        return None
    return _Request(kind[0], transaction, flags, client, mac[:6], options)


def _read(data: bytes, options: dict[int, bytes]) -> bool:
    """Add a field's options to those there are, parts of one together; whether they are well-formed."""
    at = 0
    while at < len(data):
        code = data[at]
        at += 1
        if code == _Option.PAD:
            continue
        if code == _Option.END:
            break
        if at >= len(data) or at + 1 + data[at] > len(data):
            return False
        end = at + 1 + data[at]
        options[code] = options.get(code, b"") + data[at + 1 : end]
        at = end
    return True
