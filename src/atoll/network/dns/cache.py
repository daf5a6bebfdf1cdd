"""Answers of upstreams, kept for as long as they say (RFC 1035, section 7.4; RFC 2308)."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from atoll.network.dns.answers import Answer, aged
from atoll.network.dns.message import CD, DO, RD, Query, question_of

__all__ = ["Cache", "Hit", "Key", "key_of"]

#: Answers, and bytes of them, that are kept at most.
_ENTRIES, _BYTES = 4096, 4 << 20
#: Bytes that an answer takes beside its records, about.
_OVERHEAD = 512

#: A question, and the flags that make another question of it.
Key = tuple[bytes, int]


class Hit(NamedTuple):
    """An answer with its records as they are now, and the seconds for which it holds on."""

    answer: Answer
    records: bytes
    seconds: int


class _Kept:
    """An answer since ``then``, and its records as they were at an age, which the next one may have, too."""

    __slots__ = ("age", "answer", "records", "size", "then")

    def __init__(self, answer: Answer, then: float) -> None:
        self.answer = answer
        self.then = then
        self.age = 0
        self.records = answer.records
        self.size = _OVERHEAD + 2 * len(answer.records) + 32 * len(answer.ttls) + 64 * len(answer.addresses)


def key_of(query: Query) -> Key:
    """What two questions have in common that have one answer."""
    return question_of(query), query.flags & (RD | CD) | (DO if query.secure else 0)


class Cache:
    """Keeps at most 4,096 answers and 4 MiB; what was not used for longest goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes of all answers, about."""
        return self._size

    def get(self, key: Key, now: float) -> Hit | None:
        """The answer to a question, if it still holds at ``now`` seconds."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        age = int(now - kept.then)
        if age >= kept.answer.seconds:
            self._remove(key)
            return None
        if age != kept.age:
            kept.records = aged(kept.answer, age)
            kept.age = age
        self._kept.move_to_end(key)
        return Hit(kept.answer, kept.records, kept.answer.seconds - age)

    def put(self, key: Key, answer: Answer, now: float) -> None:
        """Keep an answer, unless it says not to."""
        if key in self._kept:
            self._remove(key)
        if answer.seconds <= 0:
            return
        kept = _Kept(answer, now)
        self._kept[key] = kept
        self._size += kept.size
        while len(self._kept) > _ENTRIES or self._size > _BYTES:
            self._remove(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget all: those who answered are not asked any more."""
        self._kept.clear()
        self._size = 0

    def _remove(self, key: Key) -> None:
        self._size -= self._kept.pop(key).size
