"""Names of machines for this host's own programs: where the ports are that lead to each."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Hashable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import ClassVar, Final

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.network.dns.asking import Client
from atoll.network.dns.forwarder import Forwarder, ToClient
from atoll.network.dns.message import Rcode
from atoll.network.dns.names import Names
from atoll.paths import NetworkPaths
from atoll.vm.network.cards import HOST, Cards

__all__ = ["ADDRESS", "HostListener", "HostView", "on_host"]

Address = IPv4Address | IPv6Address

#: Where it listens: at the loopback alone.
ADDRESS: Final = "127.0.0.1"

_LONGEST: Final = 65535

#: Questions answered before others get a turn; connections at once, and seconds without a word on one.
_AT_ONCE: Final = 64
_CLIENTS: Final = 32
_SILENT: Final = 10.0

_LOOPBACK: Final = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}


class HostListener(msgspec.Struct, frozen=True, kw_only=True):
    """That a network answers this host's programs, and at which port of its loopback."""

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    port: int


def on_host(listening: str) -> Address:
    """Where a program of this host connects to what listens at an address: the loopback if at all."""
    address = ip_address(listening)
    return _LOOPBACK[address.version] if address.is_unspecified else address


class HostView:
    """Answers about the network's names at a port of the loopback, if its record says so.

    A machine's own address leads nowhere from this host: a name leads to where its ports listen here. A
    machine without any has its name, and no address.

    Args:
        place: of the network.
        cards: of the network.
        domain: of its names. Nothing else is answered.
        log: told in words what happens.

    Attributes:
        listens: where it does; empty for nowhere.
        refused: why it does not, although it is to.
    """

    def __init__(self, place: NetworkPaths, cards: Cards, domain: str, log: Callable[[str], None]) -> None:
        self._place = place
        self._cards = cards
        self._log = log
        self._names = Names(domain)
        self._forwarder = Forwarder(self._names, verdict=lambda _machine, _name: Rcode.REFUSED)
        self._services: dict[Hashable, Mapping[str, tuple[Address, ...]]] = {}
        self._entered: Mapping[str, tuple[Address, ...]] = {}
        self._loop = asyncio.get_running_loop()
        self._datagrams: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self.listens = self.refused = ""

    def provide(self, owner: Hashable, names: Mapping[str, tuple[Address, ...]]) -> None:
        """Services of a machine, and where each is reached."""
        self._services[owner] = names

    def withdraw(self, owner: Hashable) -> None:
        """They are gone."""
        self._services.pop(owner, None)

    async def renew(self) -> None:
        """Do as the network's record says by now. What keeps it from that is kept in ``refused``."""
        wanted = self._wanted()
        if self.listens == (f"{ADDRESS}:{wanted}" if wanted else "") and not self.refused:
            return
        await self.close()
        self.refused = ""
        if wanted:
            try:
                await self._listen(wanted)
            except OSError as error:
                await self.close()
                self.refused = f"port {wanted} of {ADDRESS}: {error.strerror}"
                self._log(f"names are not answered for this host: {self.refused}")

    async def close(self) -> None:
        """Answer no more. Closing twice is fine."""
        self.listens = ""
        if self._datagrams is not None:
            self._loop.remove_reader(self._datagrams.fileno())
            self._datagrams.close()
            self._datagrams = None
        server, self._server = self._server, None
        if server is not None:
            server.close()
        clients = tuple(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    def _wanted(self) -> int:
        if not self._place.resolver.exists():
            return 0
        try:
            return store.read_record(self._place.resolver, HostListener).port
        except StoreError as error:
            self._log(f"names are not answered for this host: {error.message}")
            return 0

    async def _listen(self, port: int) -> None:
        self._datagrams = sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((ADDRESS, port))
        self._server = await asyncio.start_server(self._accept, ADDRESS, port, reuse_address=True)
        self._loop.add_reader(sock.fileno(), self._readable)
        self.listens = f"{ADDRESS}:{port}"

    def _readable(self) -> None:
        assert self._datagrams is not None
        for _ in range(_AT_ONCE):
            try:
                query, client = self._datagrams.recvfrom(_LONGEST)
            except OSError:
                return
            for answer in self._answer(query, tcp=False):
                with contextlib.suppress(OSError):
                    self._datagrams.sendto(answer, client)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._clients) < _CLIENTS:
                self._clients.add(task)
                await self._talk(reader, writer)
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_SILENT):
                query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                for answer in self._answer(query, tcp=True):
                    writer.write(len(answer).to_bytes(2) + answer)
                await writer.drain()

    def _answer(self, query: bytes, *, tcp: bool) -> list[bytes]:
        self._renew_names()
        effects = self._forwarder.ask(Client("host", None, tcp), query, time.monotonic())
        return [effect.message for effect in effects if isinstance(effect, ToClient)]

    def _renew_names(self) -> None:
        """Names are made of what is there when somebody asks: ports come and go by themselves."""
        found = self._found()
        if found == self._entered:
            return
        self._names.remove(self)
        for name, addresses in found.items():
            self._names.add(self, name, addresses)
        self._entered = found

    def _found(self) -> Mapping[str, tuple[Address, ...]]:
        found: dict[str, dict[Address, None]] = {HOST: dict.fromkeys(_LOOPBACK.values())}
        for names in self._services.values():
            for name, addresses in names.items():
                found.setdefault(name, {}).update(dict.fromkeys(addresses))
        for card in self._cards:
            reached = dict.fromkeys(on_host(forward.address) for forward in card.order.forwards)
            for name in filter(None, card.called):
                found.setdefault(name, {}).update(reached)
        return {name: tuple(addresses) for name, addresses in found.items()}
