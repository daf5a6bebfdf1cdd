"""A DHCPv6 server as a function from datagram to datagram (RFC 8415, DNS options of RFC 3646), free of I/O.

A client is known by the hardware address that its frames come from, not by its identifier, which is the same
in all clones of a machine. Each has one address; temporary addresses and prefixes are not given.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable, Iterator
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

import msgspec

from atoll.network.dns.labels import wire
from atoll.network.leases import Lease, Lender

__all__ = ["CLIENT_PORT", "SERVER_PORT", "Server", "Settings"]

SERVER_PORT = 547
CLIENT_PORT = 546

#: Bytes of the longest datagram that is looked at.
_LONGEST = 4096
#: Associations in one message that are answered.
_ASSOCIATIONS = 8
#: Bytes of a client's identifier (RFC 8415, section 11.1).
_DUID = range(3, 131)

_HEAD = struct.Struct(">HH")
_TIMES = struct.Struct(">II")
_ADDRESS = struct.Struct(">16sII")


class _Kind(IntEnum):
    """Types of messages (section 7.3)."""

    SOLICIT = 1
    ADVERTISE = 2
    REQUEST = 3
    CONFIRM = 4
    RENEW = 5
    REBIND = 6
    REPLY = 7
    RELEASE = 8
    DECLINE = 9
    INFORMATION_REQUEST = 11


class _Option(IntEnum):
    """Codes of options (section 21)."""

    CLIENT = 1
    SERVER = 2
    IA_NA = 3
    IA_TA = 4
    ADDRESS = 5
    WANTED = 6
    PREFERENCE = 7
    STATUS = 13
    RAPID = 14
    DNS = 23
    SEARCH = 24
    IA_PD = 25
    REFRESH = 32


class _Status(IntEnum):
    """Codes of the status option (section 21.13)."""

    SUCCESS = 0
    NO_ADDRESS = 2
    NO_BINDING = 3
    NOT_ON_LINK = 4
    NO_PREFIX = 6


#: Messages that must name this server, and those that must not name any (section 16).
_NAMED = {_Kind.REQUEST, _Kind.RENEW, _Kind.RELEASE, _Kind.DECLINE}
_UNNAMED = {_Kind.SOLICIT, _Kind.CONFIRM, _Kind.REBIND}
_KNOWN = _NAMED | _UNNAMED | {_Kind.INFORMATION_REQUEST}
_ASSOCIATED = {_Option.IA_NA, _Option.IA_TA, _Option.IA_PD}


class Settings(msgspec.Struct, frozen=True):
    """What a network's clients are told.

    Attributes:
        network: its addresses.
        mac: the gateway's hardware address, which identifies the server.
        dns: name servers.
        search: domains in which clients look for names.
        seconds: for which an address is lent.
        pool: lowest and highest address that is lent to unknown clients; None lends none.
    """

    network: IPv6Network
    mac: bytes
    dns: tuple[IPv6Address, ...] = ()
    search: tuple[str, ...] = ()
    seconds: int = 86_400
    pool: tuple[IPv6Address, IPv6Address] | None = None


class _Request(NamedTuple):
    """A client's message, and where it came from."""

    kind: int
    transaction: bytes
    options: list[tuple[int, bytes]]
    mac: bytes
    link: Hashable
    now: float

    def first(self, code: int) -> bytes | None:
        """The first option with a code."""
        return next((value for found, value in self.options if found == code), None)

    @property
    def associations(self) -> list[tuple[int, bytes]]:
        """The first of the associations that are asked for."""
        return [option for option in self.options if option[0] in _ASSOCIATED][:_ASSOCIATIONS]


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
        reserved = {int(settings.network[0])} | {int(address) for address in settings.dns}
        super().__init__(lambda lease: lease.ipv6, reserved, settings.pool, leases)
        self._settings = settings
        self._identifier = b"\0\3\0\1" + settings.mac  # DUID-LL (section 11.4)
        self._facts = [(_Option.DNS, b"".join(server.packed for server in settings.dns))]
        self._facts.append((_Option.SEARCH, b"".join(wire(domain) for domain in settings.search)))
        self._facts.append((_Option.REFRESH, settings.seconds.to_bytes(4)))

    def reply(
        self, request: bytes | memoryview, mac: bytes, now: float, link: Hashable = None
    ) -> bytes | None:
        """The answer to a datagram for port 547, for port 546 of its source; None where there is none.

        Args:
            request: payload of the datagram.
            mac: hardware address that its frame came from.
            now: seconds of a monotonic clock.
            link: where it came from; limits what one machine can be lent.
        """
        if not 4 <= len(request) <= _LONGEST:
            return None
        data = bytes(request)
        options = _options(data[4:])
        if options is None or data[0] not in _KNOWN:
            return None
        parsed = _Request(data[0], data[1:4], options, mac, link, now)
        if not self._valid(parsed):
            return None
        return self._answer(parsed)

    def _valid(self, request: _Request) -> bool:
        """Whether identifiers are as they have to be (section 16)."""
        client, server = request.first(_Option.CLIENT), request.first(_Option.SERVER)
        if client is not None and len(client) not in _DUID:
            return False
        if request.kind == _Kind.INFORMATION_REQUEST:
            return server in {None, self._identifier} and not request.associations
        if client is None:
            return False
        return server == self._identifier if request.kind in _NAMED else server is None

    def _answer(self, request: _Request) -> bytes | None:
        match request.kind:
            case _Kind.SOLICIT:
                return self._solicit(request)
            case _Kind.REQUEST | _Kind.RENEW | _Kind.REBIND:
                return self._tell(_Kind.REPLY, request, self._assign(request, settle=True))
            case _Kind.CONFIRM:
                return self._confirm(request)
            case _Kind.RELEASE | _Kind.DECLINE:
                return self._give_back(request)
        return self._tell(_Kind.REPLY, request, [])

    def _solicit(self, request: _Request) -> bytes:
        """An offer, or the lease at once for a client that takes it (section 18.3.1)."""
        if request.first(_Option.RAPID) is None:
            preference = (_Option.PREFERENCE, b"\xff")  # there is no other server to wait for
            return self._tell(_Kind.ADVERTISE, request, [preference, *self._assign(request, settle=False)])
        assigned = self._assign(request, settle=True)
        return self._tell(_Kind.REPLY, request, [(_Option.RAPID, b""), *assigned])

    def _assign(self, request: _Request, *, settle: bool) -> list[tuple[int, bytes]]:
        """An answer to each association; the first one for addresses has the client's."""
        answers: list[tuple[int, bytes]] = []
        had = False
        for code, value in request.associations:
            if code == _Option.IA_NA and len(value) >= 12 and not had:
                answers.append((code, self._association(request, value, settle=settle)))
                had = True
            elif code == _Option.IA_PD and len(value) >= 12:
                answers.append((code, value[:4] + bytes(8) + _status(_Status.NO_PREFIX)))
            elif code == _Option.IA_NA and len(value) >= 12:
                answers.append((code, value[:4] + bytes(8) + _status(_Status.NO_ADDRESS)))
            elif code == _Option.IA_TA and len(value) >= 4:
                answers.append((code, value[:4] + _status(_Status.NO_ADDRESS)))
        return answers

    def _association(self, request: _Request, value: bytes, *, settle: bool) -> bytes:
        """The content of one association for addresses, with what it has that is not the client's."""
        asked = list(_addresses(value[12:]))
        foreign = [address for address in asked if IPv6Address(address) not in self._settings.network]
        if foreign and request.kind == _Kind.REQUEST:
            return value[:4] + bytes(8) + _status(_Status.NOT_ON_LINK)
        address = self._address(request, asked, settle=settle)
        if address is None and not (asked and request.kind in {_Kind.RENEW, _Kind.REBIND}):
            return value[:4] + bytes(8) + _status(_Status.NO_ADDRESS)
        content = b""
        seconds = self._settings.seconds
        if address is not None:
            content = _option(_Option.ADDRESS, _ADDRESS.pack(address, seconds, seconds))
        if request.kind in {_Kind.RENEW, _Kind.REBIND}:
            for other in asked:
                if other != address:
                    content += _option(_Option.ADDRESS, _ADDRESS.pack(other, 0, 0))
        return value[:4] + _TIMES.pack(seconds // 2, seconds * 4 // 5) + content

    def _address(self, request: _Request, asked: list[bytes], *, settle: bool) -> bytes | None:
        given = self._given.get(request.mac)
        if given is not None and given.ipv6 is not None:
            return given.ipv6.packed
        if self.pool is None:
            return None
        wanted = int.from_bytes(asked[0]) if asked else 0
        address = self.pool.offer(request.mac, request.link, request.now, wanted)
        if address is None:
            return None
        if settle:
            self.pool.lend(request.mac, request.link, request.now, self._settings.seconds, address)
        return address.to_bytes(16)

    def _confirm(self, request: _Request) -> bytes | None:
        """Whether the client is still where its addresses are (section 18.3.3)."""
        asked = [
            address
            for code, value in request.associations
            if code == _Option.IA_NA
            for address in _addresses(value[12:])
        ]
        if not asked:
            return None
        here = all(IPv6Address(address) in self._settings.network for address in asked)
        status = (_Option.STATUS, _Status.SUCCESS if here else _Status.NOT_ON_LINK)
        return self._tell(_Kind.REPLY, request, [(status[0], status[1].to_bytes(2))])

    def _give_back(self, request: _Request) -> bytes:
        """Take addresses back (sections 18.3.7 and 18.3.8); what is given for good stays given."""
        answers = [(int(_Option.STATUS), _Status.SUCCESS.to_bytes(2))]
        for code, value in request.associations:
            if code != _Option.IA_NA or len(value) < 12:
                continue
            known = [self._returned(request, address) for address in _addresses(value[12:])]
            if not any(known):
                answers.append((code, value[:4] + bytes(8) + _status(_Status.NO_BINDING)))
        return self._tell(_Kind.REPLY, request, answers)

    def _returned(self, request: _Request, address: bytes) -> bool:
        """Take one address back; whether the client had it."""
        given = self._given.get(request.mac)
        if given is not None and given.ipv6 is not None:
            return given.ipv6.packed == address
        if self.pool is None:
            return False
        take = self.pool.release if request.kind == _Kind.RELEASE else self.pool.decline
        return take(request.mac, request.link, int.from_bytes(address), request.now)

    def _tell(self, kind: _Kind, request: _Request, content: list[tuple[int, bytes]]) -> bytes:
        options: list[tuple[int, bytes]] = [(_Option.SERVER, self._identifier)]
        if (client := request.first(_Option.CLIENT)) is not None:
            options.append((_Option.CLIENT, client))
        options += content
        wanted = request.first(_Option.WANTED)
        codes = (
            None
            if wanted is None
            else {code for (code,) in struct.iter_unpack(">H", wanted[: len(wanted) & ~1])}
        )
        for code, value in self._facts:
            told = code != _Option.REFRESH or request.kind == _Kind.INFORMATION_REQUEST
            if value and told and (codes is None or code in codes):
                options.append((code, value))
        encoded = b"".join(_option(code, value) for code, value in options)
        return bytes((kind,)) + request.transaction + encoded


def _option(code: int, value: bytes) -> bytes:
    return _HEAD.pack(code, len(value)) + value


def _status(status: _Status) -> bytes:
    return _option(_Option.STATUS, status.to_bytes(2))


def _options(data: bytes) -> list[tuple[int, bytes]] | None:
    """The options of a message or of another option; None if one reaches over the end."""
    options = []
    at = 0
    while at < len(data):
        if len(data) - at < _HEAD.size:
            return None
        code, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if length > len(data) - at:
            return None
        options.append((code, data[at : at + length]))
        at += length
    return options


def _addresses(data: bytes) -> Iterator[bytes]:
    """The first addresses in an association's options."""
    for code, value in (_options(data) or [])[:_ASSOCIATIONS]:
        if code == _Option.ADDRESS and len(value) >= _ADDRESS.size:
            yield value[:16]
