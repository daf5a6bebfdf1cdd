"""Answers made here: records of the network's own names. What others send is never read by this module."""

from __future__ import annotations

from collections.abc import Iterator

import dnslib

from atoll.network.dns.answers import Answer
from atoll.network.dns.message import AA, Query
from atoll.network.dns.names import Address, Found

__all__ = ["TTL", "local_answer"]

#: Seconds for which a machine may believe what it is told of a name here, or that there is none.
TTL = 5

#: Whom to write to about the zone: nobody (RFC 6303, section 3).
_MAILBOX = "nobody.invalid"


def local_answer(query: Query, found: Found, serial: int) -> Answer:
    """The answer to a question for a name that is known here.

    Args:
        query: the question.
        found: what is known.
        serial: of the zone's data (RFC 1035, section 3.3.13).
    """
    buffer = dnslib.DNSBuffer(bytes(12) + query.question)
    buffer.offset = start = len(buffer.data)
    asked = dnslib.DNSLabel(tuple(_labels(query.name)))
    buffer.names[asked.label] = 12  # so that records repeat the name as it was asked
    for value in found.records:
        _record(asked, value).pack(buffer)
    if not found.records:
        _authority(found.zone, serial).pack(buffer)
    return Answer(
        found.rcode,
        AA,
        (len(found.records), int(not found.records), 0),
        bytes(buffer.data[start:]),
        seconds=TTL,
        addresses=tuple(value.packed for value in found.records if not isinstance(value, str)),
    )


def _labels(name: bytes) -> Iterator[bytes]:
    at = 0
    while length := name[at]:
        yield name[at + 1 : at + 1 + length]
        at += 1 + length


def _record(name: dnslib.DNSLabel, value: Address | str) -> dnslib.RR:
    if isinstance(value, str):
        return dnslib.RR(name, dnslib.QTYPE.PTR, rdata=dnslib.PTR(value), ttl=TTL)
    if value.version == 4:
        return dnslib.RR(name, dnslib.QTYPE.A, rdata=dnslib.A(str(value)), ttl=TTL)
    return dnslib.RR(name, dnslib.QTYPE.AAAA, rdata=dnslib.AAAA(str(value)), ttl=TTL)


def _authority(zone: str, serial: int) -> dnslib.RR:
    """Who says that there is nothing, and for how long (RFC 2308, section 3)."""
    times = (serial & 0xFFFFFFFF, 3600, 600, 86_400, TTL)
    soa = dnslib.SOA(zone, _MAILBOX, times)
    return dnslib.RR(zone, dnslib.QTYPE.SOA, rdata=soa, ttl=TTL)
