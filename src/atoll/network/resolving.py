"""The name server of a network, on the running event loop: it asks this host's own name servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from atoll.network.addressing import Addressing
from atoll.network.dns.asking import Client
from atoll.network.dns.forwarder import (
    Close,
    Effect,
    Forwarder,
    Learned,
    Settings,
    Stripped,
    ToClient,
    ToUpstream,
)
from atoll.network.dns.hostfiles import HostFiles
from atoll.network.dns.message import Rcode
from atoll.network.dns.names import Names
from atoll.network.dns.upstreams import Resolvers

__all__ = ["Resolver", "Traced"]

#: Bytes of the longest message.
_LONGEST: Final = 65535

#: Bytes read of an upstream's TCP connection at once.
_READ_SIZE: Final = 16 << 10

Reply = Callable[[bytes], None]


class Listener(Protocol):
    """Who decides about names, and has to know what guests are told of them."""

    def verdict(self, machine: Hashable, name: str) -> int | None:
        """See ``dns.forwarder.Verdict``."""

    def learned(self, learned: Learned) -> None:
        """A guest is about to be told addresses."""

    def stripped(self, stripped: Stripped) -> None:
        """A guest is not told addresses."""


class Traced:
    """Somebody who wants to know where an answer comes from.

    Args:
        told: called with it.
    """

    def __init__(self, told: Callable[[ToClient], None]) -> None:
        self.told = told


class Resolver:
    """Answers the guests of one network.

    Args:
        domain: of the network's names.
        addressing: of the network.
        listener: decides about names, and is told of answers.
        outside: whether it leads anywhere: else it knows its own names alone: to ask is to tell.

    Attributes:
        names: what guests and others of this network are called.
    """

    def __init__(
        self, domain: str, addressing: Addressing, listener: Listener, *, outside: bool = True
    ) -> None:
        self._listener = listener
        self.names = Names(domain, (addressing.ipv4, addressing.ipv6))
        forbidden = (addressing.ipv4, addressing.ipv6)
        settings = Settings(forbidden=forbidden)
        self._forwarder = Forwarder(self.names, settings, listener.verdict if outside else _none)
        self._files = HostFiles()
        self._forwarder.follow(self._files.resolvers, self._files.hosts)
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[int, _Upstream] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, machine: Hashable, query: bytes, reply: Reply, *, tcp: bool) -> None:
        """Answer a question by calling ``reply``, at once or later; never if it makes no sense."""
        if self._files.refresh():
            self._forwarder.follow(self._files.resolvers, self._files.hosts)
        self._carry_out(self._forwarder.ask(Client(machine, reply, tcp), query, time.monotonic()))

    def trace(self, query: bytes, told: Callable[[ToClient], None]) -> Hashable:
        """``ask`` as no guest's; who asked, for ``leave`` when the answer is not waited for any more."""
        asker = Traced(told)
        if self._files.refresh():
            self._forwarder.follow(self._files.resolvers, self._files.hosts)
        self._carry_out(self._forwarder.ask(Client(asker, asker), query, time.monotonic()))
        return asker

    @property
    def followed(self) -> Resolvers:
        """This host's own name servers, as they are now."""
        if self._files.refresh():
            self._forwarder.follow(self._files.resolvers, self._files.hosts)
        return self._files.resolvers

    def leave(self, machine: Hashable) -> None:
        """A guest is gone."""
        self._forwarder.leave(machine)

    def answered(self, number: int, data: bytes) -> None:
        """An upstream has sent a message."""
        self._carry_out(self._forwarder.answer(number, data, time.monotonic()))

    def failed(self, number: int) -> None:
        """An upstream cannot be reached, or has ended."""
        self._carry_out(self._forwarder.failed(number, time.monotonic()))

    def close(self) -> None:
        """Ask nobody any more."""
        for number in tuple(self._sockets):
            self._sockets.pop(number).close()
        if self._timer is not None:
            self._timer.cancel()

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ToClient):
                if isinstance(effect.client.via, Traced):
                    effect.client.via.told(effect)
                    continue
                reply: Reply = effect.client.via  # type: ignore[assignment] # as ``ask`` gave it
                reply(effect.message)
            elif isinstance(effect, Learned):
                self._listener.learned(effect)
            elif isinstance(effect, Stripped):
                self._listener.stripped(effect)
            elif isinstance(effect, ToUpstream):
                self._sockets[effect.number] = _Upstream(self, effect)
            elif isinstance(effect, Close):
                upstream = self._sockets.pop(effect.number, None)
                if upstream is not None:
                    upstream.close()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due := self._forwarder.next) is not None:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self._forwarder.tick(time.monotonic()))


def _none(_machine: Hashable, _name: str) -> int | None:
    """There is no outside."""
    return Rcode.NXDOMAIN


class _Upstream:
    """One question to one name server, by a socket of its own: its port is part of what nobody can guess."""

    def __init__(self, resolver: Resolver, order: ToUpstream) -> None:
        self._resolver = resolver
        self._number = order.number
        self._is_tcp = order.tcp
        self._left = len(order.message).to_bytes(2) + order.message if order.tcp else order.message
        self._came = bytearray()
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        try:
            self._open(order)
        except OSError:
            self._loop.call_soon(self._fail)

    def close(self) -> None:
        """Let go of the socket. Closing twice is fine."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _open(self, order: ToUpstream) -> None:
        family = socket.AF_INET6 if ":" in order.upstream.address else socket.AF_INET
        kind = socket.SOCK_STREAM if order.tcp else socket.SOCK_DGRAM
        self._sock = sock = socket.socket(family, kind)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((order.upstream.address, order.upstream.port))
        self._loop.add_reader(sock.fileno(), self._readable)
        if order.tcp:
            self._loop.add_writer(sock.fileno(), self._writable)
        else:
            sock.send(self._left)

    def _writable(self) -> None:
        assert self._sock is not None
        try:
            self._left = self._left[self._sock.send(self._left) :]
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        if not self._left:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_READ_SIZE if self._is_tcp else _LONGEST)
        except BlockingIOError:
            return
        except OSError:
            self._fail()
            return
        if not self._is_tcp:
            self._resolver.answered(self._number, data)
            return
        self._came += data
        size = int.from_bytes(self._came[:2])
        if len(self._came) >= 2 + size and len(self._came) >= 2:
            self._resolver.answered(self._number, bytes(self._came[2 : 2 + size]))
        elif not data:
            self._fail()

    def _fail(self) -> None:
        self.close()
        self._resolver.failed(self._number)
