"""What the process of a network is asked about names, and who answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from atoll.errors import NetworkError, UsageError
from atoll.guest.channel import Stream
from atoll.guest.messages import Empty, Request
from atoll.network.dns.forwarder import ToClient
from atoll.network.dns.names import Names
from atoll.network.lan import Lan
from atoll.vm.control import Method
from atoll.vm.network.cards import HOST, Cards
from atoll.vm.network.hostnames import HostView
from atoll.vm.network.requests import NetworkControl
from atoll.vm.streams import LocalStream

__all__ = [
    "Answered",
    "Called",
    "Named",
    "NamesTold",
    "Service",
    "ask",
    "call",
    "listen",
    "methods",
    "provide",
    "read_names",
]

#: Seconds in which a question is answered, or has failed: the forwarder itself gives up before.
_PATIENCE = 12.0


class NamesRead(Request, frozen=True, tag="network.names"):
    """Ask which names there are; they follow as data, ``Named`` each in one array."""


class Named(msgspec.Struct, frozen=True):
    """A name.

    Attributes:
        name: as it is asked for.
        addresses: in the order in which they are answered.
        owners: what has it: machines, ``host``, or services of a machine. It goes with the last of them.
        alias: it is a further name of a machine.
    """

    name: str
    addresses: tuple[str, ...]
    owners: tuple[str, ...]
    alias: bool = False


class NamesTold(msgspec.Struct, frozen=True):
    """How a network's name server answers.

    Attributes:
        domain: of its names, in which guests look for short ones.
        resolvers: addresses at which guests ask it.
        upstreams: name servers of this host that it asks, ``ADDRESS:PORT`` each, in this order.
        listens: where it answers this host's programs; empty for nowhere.
        refused: why it does not, although it is to; empty if it does.
    """

    domain: str
    resolvers: tuple[str, ...]
    upstreams: tuple[str, ...]
    listens: str = ""
    refused: str = ""


class Reverse(msgspec.Struct, frozen=True):
    """What an address is called."""

    address: str
    name: str


class Tables(msgspec.Struct, frozen=True):
    """The names of a network, and of addresses."""

    names: tuple[Named, ...] = ()
    reverse: tuple[Reverse, ...] = ()


class Ask(Request, frozen=True, tag="network.ask"):
    """Have a question of DNS answered as a guest's would be."""

    query: bytes


class Answered(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        message: of DNS.
        origin: ``network``, ``host``, ``cache``, ``upstream`` or ``refusal``.
        upstream: name server that gave it, also if that was earlier; empty if none did.
        seconds: that it took.
    """

    message: bytes
    origin: str
    upstream: str
    seconds: float


class Call(Request, frozen=True, tag="network.call"):
    """Have the machine of a card have these names, too, in the place of those of before."""

    owner: str
    aliases: tuple[str, ...]


class Service(msgspec.Struct, frozen=True):
    """Something in a machine that has names of its own.

    Attributes:
        name: in the network's domain.
        host: addresses of this host where it is reached.
    """

    name: str
    host: tuple[str, ...] = ()


class Provide(Request, frozen=True, tag="network.provide"):
    """Have names lead to the machine of a card for as long as the stream stays."""

    owner: str
    services: tuple[Service, ...]


class Listen(Request, frozen=True, tag="network.listen"):
    """Answer this host's programs as the network's record says by now; the reply is ``NamesTold``."""


class Called:
    """Names that services of a machine have."""

    def __init__(self, machine: str) -> None:
        self.machine = machine


def methods(lan: Lan, cards: Cards, view: HostView) -> Mapping[str, Method]:
    """What answers these requests, by their tags."""
    names = lan.resolver.names

    def told() -> NamesTold:
        addressing = lan.addressing
        return NamesTold(
            domain=names.domain,
            resolvers=(str(addressing.resolver), str(addressing.resolver6)),
            upstreams=tuple(map(_place, lan.resolver.followed.upstreams)),
            listens=view.listens,
            refused=view.refused,
        )

    async def answer_names(_: bytes, stream: LocalStream) -> None:
        stream.reply(told(), end=False)
        reverse = tuple(Reverse(str(address), name) for address, name in names.reverse)
        await stream.write(msgspec.msgpack.encode(Tables(tuple(_named(names, cards)), reverse)), end=True)

    async def answer_ask(payload: bytes, stream: LocalStream) -> None:
        query = msgspec.msgpack.decode(payload, type=Ask).query
        began = time.monotonic()
        found: asyncio.Future[ToClient] = asyncio.get_running_loop().create_future()
        asker = lan.resolver.trace(query, lambda one: None if found.done() else found.set_result(one))
        try:
            async with asyncio.timeout(_PATIENCE):
                one = await found
        except TimeoutError:
            raise NetworkError("the question makes no sense to the name server", code="question") from None
        finally:
            lan.resolver.leave(asker)
        upstream = "" if one.upstream is None else _place(one.upstream)
        stream.reply(Answered(one.message, one.origin, upstream, time.monotonic() - began))

    async def answer_call(payload: bytes, stream: LocalStream) -> None:
        order = msgspec.msgpack.decode(payload, type=Call)
        cards.rename(order.owner, order.aliases)
        stream.reply(Empty())

    async def answer_provide(payload: bytes, stream: LocalStream) -> None:
        order = msgspec.msgpack.decode(payload, type=Provide)
        card = cards.held(order.owner)
        owner = Called(card.order.hostname)
        try:
            for service in order.services:
                _enter(names, cards, owner, service, card.addresses)
            view.provide(owner, {one.name: tuple(map(ip_address, one.host)) for one in order.services})
            stream.reply(Empty(), end=False)
            await card.gone.wait()
            await stream.write(b"", end=True)
        finally:
            names.remove(owner)
            view.withdraw(owner)

    async def answer_listen(_: bytes, stream: LocalStream) -> None:
        await view.renew()
        stream.reply(told())

    return {
        "network.names": answer_names,
        "network.ask": answer_ask,
        "network.call": answer_call,
        "network.provide": answer_provide,
        "network.listen": answer_listen,
    }


def _enter(
    names: Names,
    cards: Cards,
    owner: Called,
    service: Service,
    addresses: tuple[IPv4Address | IPv6Address, ...],
) -> None:
    """Name a service, unless a machine is called so: that is what is meant by the name."""
    if service.name == HOST or any(service.name in card.called for card in cards):
        return
    try:
        names.add(owner, service.name, addresses)
    except UsageError:
        return  # such a container is found by its machine's name


def _named(names: Names, cards: Cards) -> Iterator[Named]:
    of: dict[str, tuple[dict[str, None], dict[str, None], bool]] = {}
    for entry in names:
        addresses, owners, alias = of.get(entry.name, ({}, {}, False))
        addresses.update(dict.fromkeys(map(str, entry.addresses)))
        owner, is_alias = _owner(entry.owner, entry.name.removesuffix(f".{names.domain}"), cards)
        owners[owner] = None
        of[entry.name] = addresses, owners, alias or is_alias
    for name, (addresses, owners, alias) in sorted(of.items()):
        yield Named(name, tuple(addresses), tuple(owners), alias)


def _owner(owner: Hashable, name: str, cards: Cards) -> tuple[str, bool]:
    if isinstance(owner, Called):
        return f"{owner.machine} (container)", False
    for card in cards:
        if card is owner:
            return card.order.hostname, name != card.order.hostname
    return HOST, False


def _place(upstream: tuple[str, int]) -> str:
    address, port = upstream
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


# What clients ask. All raise what the process answers, and ``ChannelError`` if it goes away.


async def read_names(control: NetworkControl) -> tuple[NamesTold, Tables]:
    """How a network's name server answers, and all names."""
    stream = control.open(NamesRead(), end=True)
    try:
        told = await stream.reply(NamesTold)
        parts = []
        while data := await stream.read():
            parts.append(data)
    finally:
        stream.cancel()
    return told, msgspec.msgpack.decode(b"".join(parts), type=Tables)


async def ask(control: NetworkControl, query: bytes) -> Answered:
    """The answer to a question of DNS, as a guest gets it."""
    return await control.call(Ask(query=query), Answered)


async def call(control: NetworkControl, owner: str, aliases: tuple[str, ...]) -> None:
    """Have the machine with that id have these names, too, at once."""
    await control.call(Call(owner=owner, aliases=aliases), Empty)


async def provide(control: NetworkControl, owner: str, services: tuple[Service, ...]) -> Stream:
    """Have names lead to a machine until the stream is cancelled, or the machine is gone."""
    stream = control.open(Provide(owner=owner, services=services), end=True)
    try:
        await stream.reply(Empty)
    except BaseException:
        stream.cancel()
        raise
    return stream


async def listen(control: NetworkControl) -> NamesTold:
    """Have this host's programs be answered as the network's record says by now."""
    return await control.call(Listen(), NamesTold)
