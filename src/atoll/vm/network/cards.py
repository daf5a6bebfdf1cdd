"""The cards that are plugged into a network, with what belongs to each of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from msgspec.structs import replace

from atoll.errors import NetworkError, UsageError
from atoll.hypervisor.model import Forward
from atoll.hypervisor.port import at_directory
from atoll.network.forwards import DatagramForward, StreamForward
from atoll.network.lan import Guest, Lan
from atoll.network.leases import Lease
from atoll.network.wire.ethernet import parse_mac
from atoll.vm.network import requests
from atoll.vm.network.attachment import PortState
from atoll.vm.network.chosen import Chosen
from atoll.vm.network.forwarding import Forwards
from atoll.vm.network.policing import policy_of
from atoll.vm.network.porting import PortsSet, Wanted
from atoll.vm.network.records import Numbers, autoconfigured
from atoll.vm.network.requests import Plug, Plugged

__all__ = ["HOST", "Cards"]

#: What the network's own host is called.
HOST = "host"


class _Card:
    """See ``Held``."""

    def __init__(self, order: Plug, lease: Lease, cards: Cards) -> None:
        self.order = order
        self.lease = lease
        self.gone = asyncio.Event()
        self.guest: Guest | None = None
        self.forwards = Forwards(
            order.hostname or order.owner, order.owner if order.keep else "", cards.chosen
        )
        self.plugged = cards.told(lease)

    @property
    def called(self) -> frozenset[str]:
        """All that it is called, in the network's domain."""
        return frozenset({self.order.hostname, *self.order.aliases})

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The guest's addresses."""
        assert self.lease.ipv4 is not None
        assert self.lease.ipv6 is not None
        return self.lease.ipv4, self.lease.ipv6

    def address(self, size: int) -> bytes:
        """The guest's address of 4 or 16 bytes."""
        address: IPv4Address | IPv6Address | None = self.lease.ipv4 if size == 4 else self.lease.ipv6
        assert address is not None
        return address.packed

    @property
    def port_states(self) -> tuple[PortState, ...]:
        """See ``Ported``."""
        return self.forwards.states

    def change_ports(self, change: PortsSet) -> None:
        """See ``Ported``."""
        asked = change.asked if change.asked is not None else Wanted(self.order.forwards, self.order.reverse)
        self.forwards.ask(asked.forwards, change.found, strict=change.strict, all_of_it=change.close)
        self.order = replace(self.order, forwards=asked.forwards, reverse=asked.reverse)
        self.plugged = replace(self.plugged, refused=self.forwards.refused)
        self.open_host()

    def open_host(self) -> None:
        """From here on the guest reaches the host's ports that are its."""
        assert self.guest is not None
        order = self.order
        proxies = order.proxy_ports if not order.egress else ()  # they would be a way around the policy
        ports = range(1, 65_536) if order.trusted else frozenset((*order.host_ports, *proxies))
        self.guest.outside.destinations = replace(
            self.guest.outside.destinations,
            host_ports=ports,
            reverse={one.port: one.path or one.host_port for one in order.reverse},
            trusted=order.trusted,
        )


class Cards:
    """Plugs cards into a network, on the running event loop.

    Args:
        lan: the network.
        numbers: who has which address.
        chosen: ports that were chosen for machines.
        keep: called when that has changed.
        pulled: told of the sockets of cards that are pulled.
        log: told in words what happens.
    """

    def __init__(
        self,
        lan: Lan,
        numbers: Numbers,
        chosen: Chosen,
        *,
        keep: Callable[[Numbers], None],
        pulled: Callable[[Path], None],
        log: Callable[[str], None],
    ) -> None:
        self._lan = lan
        self._numbers = numbers
        self._keep = keep
        self._pulled = pulled
        self._log = log
        self._cards: dict[str, _Card] = {}
        self.chosen = chosen
        addressing = lan.addressing
        lan.resolver.names.add(self, HOST, (addressing.gateway, addressing.gateway6))

    def __len__(self) -> int:
        return len(self._cards)

    @property
    def listed(self) -> tuple[requests.Card, ...]:
        """What is plugged in."""
        return tuple(
            requests.Card(
                owner=owner,
                hostname=card.order.hostname,
                mac=card.order.mac,
                address=str(card.lease.ipv4),
                address6=str(card.lease.ipv6),
            )
            for owner, card in self._cards.items()
        )

    def held(self, owner: str) -> _Card:
        """The card of an owner. Raises ``NetworkError``: ``network.card``: it is not plugged in."""
        card = self._cards.get(owner)
        if card is None or card.guest is None:
            raise NetworkError("its card is not plugged in", code="card")
        return card

    def find(self, owner: str) -> _Card | None:
        """The card that is plugged in of that owner."""
        return self._cards.get(owner)

    def __iter__(self) -> Iterator[_Card]:
        yield from self._cards.values()

    def plug(self, order: Plug) -> _Card:
        """Plug a card in.

        Raises:
            NetworkError: ``network.port``: a port cannot be had; ``network.card``: nobody listens at the
                card's socket; ``network.full``: there is no address left.
            UsageError: ``usage.rule``: its policy is none.
        """
        there = self._cards.get(order.owner)
        if there is not None and not order.fresh and there.order.socket == order.socket:
            self.follow(order.owner, order.egress)
            asked = Wanted(order.forwards, order.reverse)
            there.change_ports(PortsSet(order.owner, asked, order.found, strict=False))
            return there
        if order.there:
            raise NetworkError(f"{order.hostname or order.owner}: its card is not plugged in", code="card")
        if there is not None:
            self._pull(there)
        for other in [card for card in self._cards.values() if card.order.mac == order.mac]:
            self._pull(other)
        card = self._entered(order)
        try:
            policy = policy_of(order.egress)
            card.forwards.ask(order.forwards, order.found, strict=order.strict)
            card.guest = self._lan.plug(card.lease, _connected(order), lambda: self._pull(card), policy)
        except BaseException:
            card.forwards.close()
            self._forget(card)
            raise
        self._open(card, card.guest)
        self._log(f"{order.hostname or order.owner}: plugged in, {card.plugged.address}, {order.mac}")
        return card

    def pull(self, socket: str) -> None:
        """Pull the card out that is plugged in at that socket, if one is."""
        for card in [card for card in self._cards.values() if card.order.socket == socket]:
            self._pull(card)

    def forget(self, owner: str) -> None:
        """A machine is gone for good: its address is another's."""
        if self._numbers.forget(owner):
            self._keep(self._numbers)

    def follow(self, owner: str, egress: tuple[str, ...]) -> None:
        """Hold an owner's guest to a policy from now on.

        Raises:
            NetworkError: ``network.card``: its card is not plugged in.
            UsageError: ``usage.rule``: it is none; the former one stays.
        """
        card = self._cards.get(owner)
        if card is None or card.guest is None:
            raise NetworkError(f"{owner}: its card is not plugged in", code="card")
        if card.order.egress != egress:
            policy = policy_of(egress)
            card.order = replace(card.order, egress=egress)
            card.open_host()
            card.guest.follow(policy)
            self._log(f"{card.order.hostname or owner}: egress: {'; '.join(egress) or 'anything'}")

    def close(self) -> None:
        """Pull all out."""
        for card in tuple(self._cards.values()):
            self._pull(card)

    def told(self, lease: Lease) -> Plugged:
        """What a VM is told of its addresses."""
        addressing = self._lan.addressing
        return Plugged(
            address=f"{lease.ipv4}/{addressing.ipv4.prefixlen}",
            address6=f"{lease.ipv6}/{addressing.ipv6.prefixlen}",
            gateway=str(addressing.gateway) if self._lan.destinations.outside else "",
            resolver=str(addressing.resolver),
            mtu=self._lan.mtu,
            known=False,
        )

    def _entered(self, order: Plug) -> _Card:
        """A card with addresses of its own."""
        mac = parse_mac(order.mac)
        addressing = self._lan.addressing
        taken = self._numbers.take(order.owner, keep=order.keep, wanted=self._number(order.wanted))
        if taken is None:
            raise NetworkError(f"{addressing.ipv4} has no address left", code="full", hint="stop a machine")
        number, known = taken
        ipv4, _ = addressing.machine(number)
        lease = Lease(mac, ipv4, autoconfigured(addressing.ipv6, mac), order.hostname)
        card = self._cards[order.owner] = _Card(order, lease, self)
        card.plugged = replace(card.plugged, known=known)
        if order.keep and not known:
            self._keep(self._numbers)
        return card

    def _number(self, wanted: str) -> int:
        """Which number has an address; -1 if none has."""
        if not wanted:
            return -1
        first, _ = self._lan.addressing.machine(0)
        return int(ip_address(wanted.partition("/")[0])) - int(first)

    def _open(self, card: _Card, guest: Guest) -> None:
        """From here on the guest can be reached, and reaches the host's ports that are its."""
        addressing = self._lan.addressing

        def lead(sock: socket.socket, forward: Forward) -> StreamForward | DatagramForward:
            kind = StreamForward if forward.protocol == "tcp" else DatagramForward
            return kind(sock, guest, card.address, forward.guest_port, addressing)

        card.plugged = replace(card.plugged, refused=card.forwards.refused)
        card.forwards.begin(lead)
        card.open_host()
        if self._lan.is_shared and card.order.hostname != HOST:
            self._name(card, (card.order.hostname, *card.order.aliases))

    def rename(self, owner: str, aliases: tuple[str, ...]) -> None:
        """Have a machine be called so, too, in the place of what it was until now; nothing if it is away."""
        card = self._cards.get(owner)
        if card is None or not self._lan.is_shared:
            return
        for alias in card.order.aliases:
            if alias != card.order.hostname:
                self._lan.resolver.names.remove(card, alias)
        card.order = replace(card.order, aliases=aliases)
        self._name(card, aliases)

    def _name(self, card: _Card, names: Iterable[str]) -> None:
        for name in filter(None, names):
            try:
                self._lan.resolver.names.add(card, name, card.addresses)
            except UsageError as error:
                self._log(f"{name}: {error.message}")

    def _pull(self, card: _Card) -> None:
        """Pull a card out."""
        card.forwards.close()
        guest, card.guest = card.guest, None
        if guest is not None:
            guest.close()
            self._log(f"{card.order.hostname or card.order.owner}: pulled out")
            self._pulled(Path(card.order.socket))
        self._forget(card)

    def _forget(self, card: _Card) -> None:
        self._lan.resolver.names.remove(card)
        if self._cards.get(card.order.owner) is card:
            del self._cards[card.order.owner]
            self._numbers.release(card.order.owner)
        card.gone.set()


def _connected(order: Plug) -> socket.socket:
    """A connection to a card. Raises ``NetworkError``: ``network.card``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)  # one whose queue is full must not hold up the others
    try:
        at_directory(Path(order.socket), sock.connect)
    except OSError as error:
        sock.close()
        message = f"{order.hostname or order.owner}: its card cannot be plugged in: {error.strerror}"
        raise NetworkError(message, code="card") from error
    return sock
