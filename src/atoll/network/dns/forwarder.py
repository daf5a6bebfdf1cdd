"""The name server of a network as a state machine: questions, answers and time in, effects out (free of I/O).

A question is answered from the network's own names, from the host's, or from what upstreams answered before.
Otherwise it goes to the host's upstreams, one after the other, each time with a number, an id, and a socket
of its own: who wants to forge an answer must guess id and port (RFC 5452). Equal questions are asked once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import StrEnum
from random import Random, SystemRandom
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from atoll.network.dns import message
from atoll.network.dns.answers import Answer, read_answer, respond
from atoll.network.dns.asking import Attempt, Client, Pending, Waiting
from atoll.network.dns.cache import Cache, key_of
from atoll.network.dns.labels import text
from atoll.network.dns.message import Broken, Query, Rcode, read_query, refuse
from atoll.network.dns.names import Names, Network
from atoll.network.dns.rebinding import ALWAYS, Forbidden
from atoll.network.dns.records import local_answer
from atoll.network.dns.upstreams import Hosts, Resolvers, Upstream

__all__ = [
    "Client",
    "Close",
    "Effect",
    "Forwarder",
    "Learned",
    "Origin",
    "Settings",
    "Stripped",
    "ToClient",
    "ToUpstream",
    "Verdict",
]

#: Answers made here that are kept ready.
_READY = 1024
#: Answers to another question than was asked, after which an upstream is asked by TCP.
_FORGED = 8

#: Whether a machine may ask for a name of the outside (lower case, no dot at its end): None, or the outcome
#: that it is told instead.
Verdict = Callable[[Hashable, str], int | None]


class Settings(msgspec.Struct, frozen=True):
    """Limits.

    Attributes:
        size: bytes of the longest datagram that is sent to a client, 512 or more.
        patience: seconds after which the next upstream is asked.
        deadline: seconds after which a question has failed.
        questions: that are open at once.
        per_machine: questions of one machine that are open at once.
        tries: how often one question is sent at most.
        avoided: seconds for which an upstream that was silent is asked last.
        forbidden: networks in which a name of the outside may have no address, beside this host and the link.
        protect: whether there are such networks at all.
    """

    size: int = message.SIZE
    patience: float = 2.0
    deadline: float = 8.0
    questions: int = 1024
    per_machine: int = 256
    tries: int = 16
    avoided: float = 30.0
    forbidden: tuple[Network, ...] = ()
    protect: bool = True


class Origin(StrEnum):
    """Whose word an answer is."""

    NETWORK = "network"
    HOST = "host"
    CACHE = "cache"
    UPSTREAM = "upstream"
    REFUSAL = "refusal"


class ToClient(NamedTuple):
    """Send a client its answer; over TCP it is the message without its length.

    ``upstream`` is the name server that was asked, also if that was earlier; None if none was.
    """

    client: Client
    message: bytes
    origin: Origin = Origin.REFUSAL
    upstream: tuple[str, int] | None = None


class ToUpstream(NamedTuple):
    """Open a connected socket, send this, and hand every message from it to ``answer`` with this number.

    Over TCP it is the message without its length.
    """

    number: int
    upstream: Upstream
    tcp: bool
    message: bytes


class Close(NamedTuple):
    """Close the socket with this number."""

    number: int


class Learned(NamedTuple):
    """A machine is about to be told that a name has these addresses (4 or 16 bytes), for some seconds."""

    machine: Hashable
    name: str
    addresses: tuple[bytes, ...]
    seconds: int


class Stripped(NamedTuple):
    """A machine is not told that a name has these addresses, which are not the outside's to give."""

    machine: Hashable
    name: str
    addresses: tuple[bytes, ...]


Effect = ToClient | ToUpstream | Close | Learned | Stripped


class Forwarder:
    """Answers the machines of one network.

    Effects are to be carried out in their order: what a machine may use is learned before it is told.

    Args:
        names: of the network.
        settings: limits.
        verdict: asked for each question about a name that is not the network's own.
        random: source of ids.
    """

    def __init__(
        self,
        names: Names,
        settings: Settings | None = None,
        verdict: Verdict = lambda _machine, _name: None,
        random: Random | None = None,
    ) -> None:
        settings = settings or Settings()
        self._names = names
        self._settings = settings
        self._verdict = verdict
        self._random = random or SystemRandom()
        self._forbidden = Forbidden(ALWAYS + settings.forbidden if settings.protect else ())
        self._upstreams = Resolvers().upstreams
        self._hosts = Hosts()
        self._cache = Cache()
        self._ready: dict[tuple[bytes, int], Answer | None] = {}
        self._version = names.version
        self._number = 0
        self._pending: dict[tuple[bytes, int], Pending] = {}
        self._attempts: dict[int, Attempt] = {}
        self._timers: dict[int, float] = {}
        self._open: dict[Hashable, int] = {}
        self._avoided: dict[Upstream, float] = {}
        self._plain: set[Upstream] = set()

    def __len__(self) -> int:
        """Questions that are open."""
        return len(self._pending)

    @property
    def next(self) -> float | None:
        """When ``tick`` has something to do; None: not before something else happens."""
        patience = next(iter(self._timers.values()), None)
        oldest = next(iter(self._pending.values()), None)
        if oldest is None:
            return patience
        deadline = oldest.since + self._settings.deadline
        return deadline if patience is None else min(patience, deadline)

    def follow(self, resolvers: Resolvers, hosts: Hosts) -> None:
        """The host's settings are these from now on. Other upstreams may give other answers: none is kept."""
        self._hosts = hosts
        if resolvers.upstreams != self._upstreams:
            self._upstreams = resolvers.upstreams
            for pending in self._pending.values():
                pending.outdated = True
            self._cache.clear()
            self._avoided.clear()
            self._plain.clear()

    def ask(self, client: Client, query: bytes, now: float) -> list[Effect]:
        """Take a client's message.

        Args:
            client: who asks.
            query: the message; over TCP without its length.
            now: seconds of a monotonic clock.
        """
        asked = read_query(query)
        if asked is None:
            return []
        if isinstance(asked, Broken):
            return [ToClient(client, refuse(asked, asked.rcode))]
        if (own := self._own(asked)) is not None:
            return self._deliver(client, asked, own, own.records, own.seconds, Origin.NETWORK)
        return self._outside(client, asked, now)

    def answer(self, number: int, data: bytes, now: float) -> list[Effect]:
        """Take a message that came in through the socket with a number; over TCP without its length."""
        attempt = self._attempts.get(number)
        if attempt is None:
            return []
        read = read_answer(data, message.question_of(attempt.pending.query), self._forbidden)
        if read is None or read[0] != attempt.ident:
            return self._forged(number, attempt, now)
        self._avoided.pop(attempt.upstream, None)
        return self._judge(number, attempt, read[1], now)

    def failed(self, number: int, now: float) -> list[Effect]:
        """The socket with a number cannot be used: refused, no way there, closed without an answer."""
        attempt = self._attempts.get(number)
        return [] if attempt is None else self._failed(number, attempt, None, now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due at ``now`` (``next``)."""
        effects: list[Effect] = []
        while self._pending:
            oldest = next(iter(self._pending.values()))
            if oldest.since + self._settings.deadline > now:  # computed as in ``next``
                break
            effects += self._finish(oldest, oldest.last or Answer(Rcode.SERVFAIL), now)
        while self._timers and next(iter(self._timers.values())) <= now:
            number = next(iter(self._timers))
            del self._timers[number]
            attempt = self._attempts[number]
            self._avoided[attempt.upstream] = now + self._settings.avoided
            effects += self._retry(attempt.pending, attempt.upstream, now)
        return effects

    def leave(self, machine: Hashable, via: Hashable = None) -> None:
        """A machine is gone, or only one way to it: nothing is sent there any more."""
        for pending in self._pending.values():
            for waiting in pending.of(machine):
                if via is None or waiting.client.via == via:
                    del pending.waiting[waiting.key]
                    self._less(machine)

    def _own(self, query: Query) -> Answer | None:
        """The answer to a question about the network's own names; None if it is about others."""
        if self._version != self._names.version or len(self._ready) >= _READY:
            self._ready.clear()
            self._version = self._names.version
        key = (query.name, query.type)
        if key in self._ready:
            return self._ready[key]
        found = self._names.lookup(text(query.name), query.type)
        answer = None if found is None else local_answer(query, found, self._version)
        self._ready[key] = answer
        return answer

    def _outside(self, client: Client, asked: Query, now: float) -> list[Effect]:
        """Answer about a name that is not the network's own."""
        name = text(asked.name)
        rcode = self._verdict(client.machine, name)
        if rcode is not None:
            return [ToClient(client, refuse(asked, rcode))]
        if (found := self._hosts.lookup(name, asked.type)) is not None:
            answer = local_answer(asked, found, 0)
            return self._deliver(client, asked, answer, answer.records, answer.seconds, Origin.HOST)
        hit = self._cache.get(key_of(asked), now)
        if hit is not None:
            return self._deliver(client, asked, hit.answer, hit.records, hit.seconds, Origin.CACHE)
        return self._forward(client, asked, now)

    def _limit(self, client: Client, query: Query) -> int:
        return 65_535 if client.tcp else min(query.size, self._settings.size)

    def _deliver(
        self, client: Client, query: Query, answer: Answer, records: bytes, seconds: int, origin: Origin
    ) -> list[Effect]:
        """Tell a client, and before that whoever has to know what it is told."""
        effects: list[Effect] = []
        if answer.addresses:
            effects.append(Learned(client.machine, text(query.name), answer.addresses, seconds))
        if answer.stripped:
            effects.append(Stripped(client.machine, text(query.name), answer.stripped))
        told = respond(query, answer, records, self._limit(client, query))
        effects.append(ToClient(client, told, origin, answer.upstream))
        return effects

    def _forward(self, client: Client, query: Query, now: float) -> list[Effect]:
        key = key_of(query)
        pending = self._pending.get(key)
        waiting = Waiting(client, query)
        if pending is not None and waiting.key in pending.waiting:
            return []  # asked again by a client that cannot wait
        crowded = self._open.get(client.machine, 0) >= self._settings.per_machine
        if crowded or (pending is None and len(self._pending) >= self._settings.questions):
            return [ToClient(client, refuse(query, Rcode.REFUSED))]
        self._open[client.machine] = self._open.get(client.machine, 0) + 1
        if pending is not None:
            pending.waiting[waiting.key] = waiting
            return []
        order = self._upstreams
        if self._avoided:
            order = tuple(sorted(order, key=lambda upstream: self._avoided.get(upstream, now) > now))
        pending = self._pending[key] = Pending(key, query, order, now)
        pending.waiting[waiting.key] = waiting
        return self._send(pending, order[0], now)

    def _send(self, pending: Pending, upstream: Upstream, now: float, *, tcp: bool = False) -> list[Effect]:
        """Ask one upstream, unless the question was sent too often."""
        if pending.tries >= self._settings.tries:
            return self._finish(pending, pending.last or Answer(Rcode.SERVFAIL), now)
        pending.tries += 1
        self._number += 1
        edns = upstream not in self._plain
        ident = self._random.getrandbits(16)
        self._attempts[self._number] = Attempt(pending, upstream, ident, tcp=tcp, edns=edns)
        self._timers[self._number] = now + self._settings.patience
        pending.attempts.add(self._number)
        return [ToUpstream(self._number, upstream, tcp, message.compose(pending.query, ident, edns=edns))]

    def _judge(self, number: int, attempt: Attempt, answer: Answer | None, now: float) -> list[Effect]:
        """Take an upstream's answer, or ask on: by TCP, without EDNS, or another one."""
        pending = attempt.pending
        if answer is None or (answer.flags & message.TC and attempt.tcp):
            return self._failed(number, attempt, None, now)
        if answer.flags & message.TC:
            return [*self._drop(number), *self._send(pending, attempt.upstream, now, tcp=True)]
        if attempt.edns and answer.rcode in {Rcode.FORMERR, Rcode.NOTIMP, Rcode.BADVERS}:
            self._plain.add(attempt.upstream)  # RFC 6891, section 7
            return [*self._drop(number), *self._send(pending, attempt.upstream, now, tcp=attempt.tcp)]
        if answer.rcode not in {Rcode.NOERROR, Rcode.NXDOMAIN}:
            return self._failed(number, attempt, replace(answer, upstream=tuple(attempt.upstream)), now)
        return self._finish(pending, replace(answer, upstream=tuple(attempt.upstream)), now)

    def _retry(self, pending: Pending, last: Upstream, now: float) -> list[Effect]:
        """Ask the next upstream of those that have not failed; if all have, that is the answer."""
        upstream = pending.after(last)
        if upstream is None:
            return self._finish(pending, pending.last or Answer(Rcode.SERVFAIL), now)
        return self._send(pending, upstream, now)

    def _failed(self, number: int, attempt: Attempt, answer: Answer | None, now: float) -> list[Effect]:
        """An upstream has no answer: the next one may have."""
        pending = attempt.pending
        pending.failed.add(attempt.upstream)
        pending.last = answer or pending.last
        current = number in self._timers
        effects: list[Effect] = list(self._drop(number))
        if current or not pending.attempts:
            effects += self._retry(pending, attempt.upstream, now)
        return effects

    def _forged(self, number: int, attempt: Attempt, now: float) -> list[Effect]:
        """Pass over what does not answer the question; somebody guesses if there is much of it."""
        attempt.forged += 1
        if attempt.forged < _FORGED:
            return []
        if attempt.tcp:
            return self._failed(number, attempt, None, now)
        return [*self._drop(number), *self._send(attempt.pending, attempt.upstream, now, tcp=True)]

    def _drop(self, number: int) -> list[Effect]:
        attempt = self._attempts.pop(number)
        attempt.pending.attempts.discard(number)
        self._timers.pop(number, None)
        return [Close(number)]

    def _finish(self, pending: Pending, answer: Answer, now: float) -> list[Effect]:
        """Tell all who wait."""
        effects: list[Effect] = []
        for number in sorted(pending.attempts):
            effects += self._drop(number)
        del self._pending[pending.key]
        if not pending.outdated:
            self._cache.put(pending.key, answer, now)
        for waiting in pending.waiting.values():
            self._less(waiting.client.machine)
            effects += self._deliver(
                waiting.client, waiting.query, answer, answer.records, answer.seconds, Origin.UPSTREAM
            )
        return effects

    def _less(self, machine: Hashable) -> None:
        self._open[machine] -= 1
        if not self._open[machine]:
            del self._open[machine]
