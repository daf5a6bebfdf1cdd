"""Questions that upstreams have not answered yet."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from atoll.network.dns.answers import Answer
from atoll.network.dns.cache import Key
from atoll.network.dns.message import Query
from atoll.network.dns.upstreams import Upstream

__all__ = ["Attempt", "Client", "Pending", "Waiting"]


class Client(NamedTuple):
    """Who asks: a machine, whatever its answer finds back by, and whether that is TCP."""

    machine: Hashable
    via: Hashable
    tcp: bool = False


class Waiting(NamedTuple):
    """A client's question that is open."""

    client: Client
    query: Query

    @property
    def key(self) -> Hashable:
        """The same for a question that is only repeated."""
        return self.client, self.query.id


class Pending:
    """A question that is open, for all who asked it."""

    __slots__ = (
        "attempts", "failed", "key", "last", "outdated", "query", "since", "tries", "upstreams", "waiting",
    )  # fmt: skip

    def __init__(self, key: Key, query: Query, upstreams: tuple[Upstream, ...], since: float) -> None:
        self.key = key
        self.query = query
        self.upstreams = upstreams
        self.since = since
        self.waiting: dict[Hashable, Waiting] = {}
        self.attempts: set[int] = set()
        self.failed: set[Upstream] = set()
        self.last: Answer | None = None
        self.tries = 0
        #: Whether the host asks others by now.
        self.outdated = False

    def of(self, machine: Hashable) -> list[Waiting]:
        """What one machine waits for."""
        return [waiting for waiting in self.waiting.values() if waiting.client.machine == machine]

    def after(self, upstream: Upstream) -> Upstream | None:
        """The upstream whose turn it is after another, in a circle without those that failed."""
        place = self.upstreams.index(upstream)
        circle = self.upstreams[place + 1 :] + self.upstreams[: place + 1]
        return next((each for each in circle if each not in self.failed), None)


class Attempt:
    """One time that it was sent. Answers to earlier ones are welcome until the question is closed."""

    __slots__ = ("edns", "forged", "ident", "pending", "tcp", "upstream")

    def __init__(self, pending: Pending, upstream: Upstream, ident: int, *, tcp: bool, edns: bool) -> None:
        self.pending = pending
        self.upstream = upstream
        self.ident = ident
        self.tcp = tcp
        self.edns = edns
        self.forged = 0
