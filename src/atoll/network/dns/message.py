"""Questions as bytes (RFC 1035, EDNS of RFC 6891): read as far as a forwarder must, and kept as they came.

A name is read only where it is the question's; in records names are stepped over, so that no pointer is ever
followed.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "AA",
    "AD",
    "CD",
    "DO",
    "HEADER",
    "IN",
    "OPCODE",
    "QR",
    "QUESTION",
    "RA",
    "RD",
    "RECORD",
    "SIZE",
    "TC",
    "Broken",
    "Query",
    "Rcode",
    "Type",
    "compose",
    "name_over",
    "opt",
    "question_of",
    "read_query",
    "refuse",
]

#: Flags of the header, and DO as it is in the flags of EDNS.
QR, AA, TC, RD, RA, AD, CD, DO = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010, 0x8000
OPCODE = 0x7800

#: Bytes of the longest question that is read, and records that may follow it.
_LONGEST, _FURTHER = 4096, 8
#: Bytes of a datagram that everybody takes, and that fit any path (RFC 9715).
_PLAIN, SIZE = 512, 1232

HEADER = struct.Struct(">HHHHHH")
QUESTION = struct.Struct(">HH")
RECORD = struct.Struct(">HHIH")
IN = 1

_OPT = struct.Struct(">BHHBBHH")


class Rcode(IntEnum):
    """Outcome of a question (RFC 1035, section 4.1.1; RFC 6891, section 9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class Type(IntEnum):
    """Types of records that are told from others."""

    A = 1
    SOA = 6
    PTR = 12
    AAAA = 28
    OPT = 41
    SVCB = 64
    HTTPS = 65
    TKEY = 249
    TSIG = 250
    IXFR = 251
    AXFR = 252
    MAILB = 253
    MAILA = 254
    ANY = 255


#: Types that are no types of records, or that only a zone's own servers are asked for.
_UNANSWERED = {
    0: Rcode.FORMERR,
    int(Type.OPT): Rcode.FORMERR,
    int(Type.TKEY): Rcode.NOTIMP,
    int(Type.TSIG): Rcode.NOTIMP,
    int(Type.MAILA): Rcode.NOTIMP,
    int(Type.MAILB): Rcode.NOTIMP,
    int(Type.AXFR): Rcode.REFUSED,
    int(Type.IXFR): Rcode.REFUSED,
}


class Query(NamedTuple):
    """A question as asked. ``name`` is in lower case, ``question`` as it came; ``size`` is the client's."""

    id: int
    flags: int
    name: bytes
    type: int
    question: bytes
    edns: bool
    size: int
    secure: bool


class Broken(NamedTuple):
    """A question that gets no answer but ``rcode``; ``question`` is empty where it could not be read."""

    id: int
    flags: int
    rcode: int
    question: bytes
    edns: bool


class _Edns(NamedTuple):
    """What an OPT record says; its version is -1 if there is none."""

    size: int
    version: int
    flags: int


_NO_EDNS = _Edns(_PLAIN, -1, 0)


def read_query(data: bytes) -> Query | Broken | None:
    """A client's question; None for what gets no answer at all."""
    if len(data) < HEADER.size:
        return None
    ident, flags, questions, answers, authorities, further = HEADER.unpack_from(data)
    if flags & QR:
        return None
    if flags & OPCODE:
        return Broken(ident, flags, Rcode.NOTIMP, b"", edns=False)
    end = _name_end(data) if len(data) <= _LONGEST else 0
    if questions != 1 or answers or authorities or further > _FURTHER or not end:
        return Broken(ident, flags, Rcode.FORMERR, b"", edns=False)
    question = data[HEADER.size : end + 4]
    extra = _client_edns(data, end + 4, further)
    kind, group = QUESTION.unpack_from(data, end)
    rcode = Rcode.FORMERR if extra is None else Rcode.BADVERS if extra.version > 0 else _outcome(kind, group)
    edns = extra is not None and extra.version >= 0
    if extra is None or rcode:
        return Broken(ident, flags, rcode, question, edns=edns)
    name = question[:-4].lower()  # lengths of labels are no letters
    return Query(ident, flags, name, kind, question, edns, extra.size, bool(extra.flags & DO))


def question_of(query: Query) -> bytes:
    """The question as it is compared: names are the same in any case."""
    return query.name + query.question[-4:]


def compose(query: Query, ident: int, *, edns: bool) -> bytes:
    """The question for an upstream, without anything else that the client said."""
    flags = query.flags & (RD | CD) | AD
    head = HEADER.pack(ident, flags, 1, 0, 0, int(edns))
    return head + query.question + (opt(0, secure=query.secure) if edns else b"")


def refuse(query: Query | Broken, rcode: int) -> bytes:
    """An answer that has nothing but its outcome."""
    flags = QR | RA | query.flags & (OPCODE | RD | CD) | rcode & 15
    extra = opt(rcode, secure=isinstance(query, Query) and query.secure) if query.edns else b""
    head = HEADER.pack(query.id, flags, int(bool(query.question)), 0, 0, int(query.edns))
    return head + query.question + extra


def _name_end(data: bytes) -> int:
    """Where the question's name ends, 0 if it or what follows it is not whole. It cannot be compressed."""
    at = HEADER.size
    last = min(len(data) - 5, HEADER.size + 254)
    while at <= last:
        length = data[at]
        if not length:
            return at + 1
        if length > 63:
            return 0
        at += 1 + length
    return 0


def name_over(data: bytes, at: int) -> int:
    """Where a name in a record ends, whatever it points to. Raises ``IndexError`` or ``ValueError``."""
    while length := data[at]:
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise ValueError("a label is of an unknown type")
        at += 1 + length
    return at + 1


def _client_edns(data: bytes, at: int, count: int) -> _Edns | None:
    """What a client's OPT says; None if what follows the question is malformed."""
    found = _NO_EDNS
    try:
        for _ in range(count):
            start = at
            at = name_over(data, at) + RECORD.size
            kind, size, ttl, length = RECORD.unpack_from(data, at - RECORD.size)
            at += length
            if kind == Type.OPT:
                if found.version >= 0 or data[start]:
                    return None
                found = _Edns(max(size, _PLAIN), ttl >> 16 & 0xFF, ttl & 0xFFFF)
    except (IndexError, ValueError, struct.error):
        return None
    return found if at == len(data) else None


def _outcome(kind: int, group: int) -> int:
    """The outcome of questions that have no answer here, whatever their name; 0 for others."""
    return _UNANSWERED.get(kind, 0) if group == IN else Rcode.REFUSED


def opt(rcode: int, *, secure: bool) -> bytes:
    """An OPT record of this side, with the upper bits of an outcome."""
    return _OPT.pack(0, Type.OPT, SIZE, rcode >> 4, 0, DO if secure else 0, 0)
