"""Answers of upstreams as bytes: read once for what a forwarder must know, and sent on as they came."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from atoll.network.dns.message import (
    AA,
    AD,
    CD,
    HEADER,
    IN,
    OPCODE,
    QR,
    QUESTION,
    RA,
    RD,
    RECORD,
    TC,
    Query,
    Rcode,
    Type,
    name_over,
    opt,
)

__all__ = ["Answer", "aged", "read_answer", "respond"]

#: Bytes of the longest message over TCP.
_MOST = 65_535
#: Seconds for which a failure is remembered (RFC 9520), and a negative answer or any at most.
_FAILED, _NEGATIVE, _KEPT = 5, 3600, 86_400

_TTL = struct.Struct(">I")

#: Types of records that have addresses, and those that have them beside other things.
_ADDRESSED = frozenset(int(kind) for kind in (Type.A, Type.AAAA, Type.SVCB, Type.HTTPS))
_HINTING = frozenset(int(kind) for kind in (Type.SVCB, Type.HTTPS))


class Answer(msgspec.Struct, frozen=True):
    """An answer without its question and OPT record, which are each client's own.

    Attributes:
        rcode: with the bits of EDNS.
        flags: of the header: AA, TC and AD are meant.
        counts: records in the answer, authority and additional sections.
        records: all of them.
        ttls: where in ``records`` times to live are.
        seconds: for which it may be kept; 0 not at all.
        addresses: that it gives for the name, each 4 or 16 bytes.
        stripped: that it gave and that nobody may get.
        upstream: address and port of the name server that gave it; None if it was made here.
    """

    rcode: int
    flags: int = 0
    counts: tuple[int, int, int] = (0, 0, 0)
    records: bytes = b""
    ttls: tuple[int, ...] = ()
    seconds: int = 0
    addresses: tuple[bytes, ...] = ()
    stripped: tuple[bytes, ...] = ()
    upstream: tuple[str, int] | None = None


def read_answer(
    data: bytes, question: bytes, forbidden: Callable[[bytes], bool]
) -> tuple[int, Answer | None] | None:
    """An upstream's answer and the id that it has; None if it is no answer to this question.

    The answer itself is None if it cannot be read to its end.

    Args:
        data: the message.
        question: what was asked, as ``question_of`` gives it.
        forbidden: whether a name of the outside may not have an address. Records with such are left out.
    """
    if len(data) < HEADER.size:
        return None
    ident, flags, questions, *counts = HEADER.unpack_from(data)
    if not flags & QR or flags & OPCODE:
        return None
    start = HEADER.size + len(question)
    if questions == 0 and flags & 15 in {Rcode.FORMERR, Rcode.NOTIMP, Rcode.SERVFAIL, Rcode.REFUSED}:
        return ident, Answer(flags & 15)  # some cannot even repeat what they do not understand
    if questions != 1 or data[HEADER.size : start].lower() != question.lower():
        return None
    try:
        return ident, _Reader(data, start, question, forbidden).read(flags, counts)
    except (IndexError, ValueError, struct.error):
        return ident, None


class _Reader:
    """Steps through the records of an upstream's answer once.

    ``IndexError``, ``struct.error`` and ``ValueError`` leave ``read`` for a message that is not well-formed.
    """

    def __init__(self, data: bytes, start: int, question: bytes, forbidden: Callable[[bytes], bool]) -> None:
        self._data = data
        self._start = start
        self._kind = QUESTION.unpack_from(question, len(question) - 4)[0]
        self._forbidden = forbidden
        self._ttls: list[int] = []
        self._lifetimes: list[int] = []
        self._addresses: dict[bytes, None] = {}
        self._stripped: dict[bytes, None] = {}
        self._own: list[tuple[int, bytes]] = []
        self._negative = -1
        self._answered = False

    def read(self, flags: int, counts: list[int]) -> Answer:
        """All of it, in three sections; the last ends before OPT, whose place nothing else needs."""
        at = self._start
        for section in (0, 1):
            for _ in range(counts[section]):
                at = self._record(at, section)
        end, further, upper = at, 0, 0
        while further < counts[2]:
            if self._data[at] == 0 and self._data[at + 1 : at + 3] == b"\0\x29":
                upper = self._data[at + 5]
                break
            at = end = self._record(at, 2)
            further += 1
        rcode = upper << 4 | flags & 15
        if self._stripped:
            return self._rebuilt(rcode, flags)
        return Answer(
            rcode, flags & (TC | AD), (counts[0], counts[1], further),
            self._data[self._start : end], tuple(self._ttls), self._seconds(rcode),
            tuple(self._addresses),
        )  # fmt: skip

    def _record(self, at: int, section: int) -> int:
        """Step over a record; where the next one is."""
        data = self._data
        at = name_over(data, at)
        kind, group, ttl, length = RECORD.unpack_from(data, at)
        body = at + RECORD.size
        end: int = body + length
        if end > len(data) or kind == Type.OPT:
            raise ValueError("a record reaches over the end, or is out of place")
        if ttl >> 31:
            ttl = 0  # RFC 2181, section 8
        self._ttls.append(at + 4 - self._start)
        if section < 2:
            self._lifetimes.append(ttl)
        if section == 0 and kind == self._kind:
            self._answered = True
        if group != IN:
            return end
        if kind == Type.SOA and section == 1:
            minimum = _TTL.unpack_from(data, name_over(data, name_over(data, body)) + 16)[0]
            self._negative = min(ttl, minimum)
        elif kind in _ADDRESSED:
            self._learn(kind, data[body:end], ttl, section)
        return end

    def _learn(self, kind: int, body: bytes, ttl: int, section: int) -> None:
        """Look at the addresses that a record has."""
        if kind in _HINTING:
            found = _hints(body)
        elif len(body) == (4 if kind == Type.A else 16):
            found = [body]
        else:
            raise ValueError("an address has a wrong length")
        bad = [address for address in found if self._forbidden(address)]
        for address in bad:
            self._stripped[address] = None
        if section == 0 and not bad:
            for address in found:
                self._addresses[address] = None
            if kind == self._kind and kind not in _HINTING:
                self._own.append((ttl, body))

    def _seconds(self, rcode: int) -> int:
        """How long the answer may be kept (RFC 2308 for what is not there)."""
        if rcode == Rcode.SERVFAIL:
            return _FAILED
        if rcode not in {Rcode.NOERROR, Rcode.NXDOMAIN}:
            return 0
        shortest = min(self._lifetimes, default=0)
        if rcode == Rcode.NOERROR and self._answered:
            return min(shortest, _KEPT)
        return max(0, min(shortest, self._negative, _NEGATIVE))

    def _rebuilt(self, rcode: int, flags: int) -> Answer:
        """What may be given of an answer: its good addresses, as the name's own.

        The other records go, too: names in them may point into what is left out.
        """
        records, ttls = b"", []
        for ttl, body in self._own:
            ttls.append(len(records) + 6)
            records += struct.pack(">HHHIH", 0xC00C, self._kind, IN, ttl, len(body)) + body
        seconds = min((ttl for ttl, _ in self._own), default=0)
        return Answer(
            rcode, flags & TC, (len(self._own), 0, 0), records, tuple(ttls), min(seconds, _KEPT),
            tuple(body for _, body in self._own), tuple(self._stripped),
        )  # fmt: skip


def respond(query: Query, answer: Answer, records: bytes, limit: int = _MOST) -> bytes:
    """An answer for one client.

    Args:
        query: what it asked.
        answer: to it.
        records: of the answer, with times to live as they are now (``Answer.records``, or ``aged``).
        limit: bytes of the longest message that may be sent, 512 or more; a longer one is cut (flag TC).
    """
    flags = QR | RA | query.flags & (RD | CD) | answer.flags & AA | answer.rcode & 15
    if query.secure or query.flags & AD:
        flags |= answer.flags & AD
    extra = opt(answer.rcode, secure=query.secure) if query.edns else b""
    answers, authorities, further = answer.counts
    question = query.question
    if HEADER.size + len(question) + len(records) + len(extra) > limit:
        flags |= TC
        answers = authorities = further = 0
        records = b""
    head = HEADER.pack(query.id, flags, 1, answers, authorities, further + query.edns)
    return b"".join((head, question, records, extra))


def aged(answer: Answer, age: int) -> bytes:
    """Records of an answer as they are ``age`` seconds later."""
    records = bytearray(answer.records)
    for at in answer.ttls:
        (ttl,) = _TTL.unpack_from(records, at)
        _TTL.pack_into(records, at, max(0, ttl - age))
    return bytes(records)


def _hints(body: bytes) -> list[bytes]:
    """Addresses in a record of type SVCB or HTTPS (RFC 9460, section 7.3)."""
    found = []
    at = name_over(body, 2)
    while at < len(body):
        key, length = QUESTION.unpack_from(body, at)
        at += 4 + length
        if at > len(body):
            raise ValueError("a parameter reaches over the end")
        size = {4: 4, 6: 16}.get(key)
        if size is not None:
            found += [body[place : place + size] for place in range(at - length, at, size)]
            if length % size:
                raise ValueError("an address has a wrong length")
    return found
