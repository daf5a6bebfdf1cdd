"""Answers as they are read, kept and sent on, with dnspython on both sides."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rrset
import pytest
from dns_peers import question
from hypothesis import given
from hypothesis import strategies as st

from atoll.network.dns import labels
from atoll.network.dns.answers import Answer, aged, read_answer, respond
from atoll.network.dns.cache import Cache
from atoll.network.dns.message import Query, question_of, read_query

SAMPLES = {
    "A": "203.0.113.5",
    "AAAA": "2001:db8::5",
    "CNAME": "other.site.example.",
    "NS": "ns.site.example.",
    "MX": "10 mail.site.example.",
    "TXT": '"some text" "more"',
    "SRV": "1 2 443 srv.site.example.",
    "SOA": "ns.site.example. admin.site.example. 1 2 3 4 5",
    "CAA": '0 issue "ca.example"',
    "HTTPS": '1 svc.example. alpn="h2" ipv4hint="203.0.113.7"',
    "DS": "1 8 2 " + "ab" * 32,
    "RRSIG": "A 8 2 300 20300101000000 20200101000000 1 example. AAAA",
    "TYPE65280": "\\# 4 01020304",
}
owners = st.sampled_from(["site.example.", "a.site.example.", "b.other.test."])
ttls = st.integers(1, 100_000)
records = st.builds(
    lambda owner, ttl, kind: (owner, ttl, "IN", kind, SAMPLES[kind]),
    owners,
    ttls,
    st.sampled_from(sorted(SAMPLES)),
)
sections = st.lists(records, max_size=5, unique_by=lambda record: (record[0], record[3]))


def nothing(_address):
    return False


def asked(name="site.example", kind="A", **settings):
    query = read_query(question(name, kind, **settings).to_wire())
    assert isinstance(query, Query)
    return query


def message_of(query, *parts, edns=0):
    made = dns.message.make_query("site.example", "A", use_edns=edns, id=query.id)
    made.flags |= dns.flags.QR
    made.answer, made.authority, made.additional = [
        [dns.rrset.from_text(*record) for record in part] for part in parts
    ]
    return made


def rendered(message):
    return [
        sorted(f"{rrset.name} {rrset.ttl} {rrset.rdtype} {record}" for rrset in section for record in rrset)
        for section in (message.answer, message.authority, message.additional)
    ]


def older(parts, age):
    """The records as dnspython has them with less time to live."""
    return [[(owner, max(0, ttl - age), *rest) for owner, ttl, *rest in part] for part in parts]


@given(sections, sections, sections, st.integers(0, 200_000), st.booleans())
def test_answers_pass_unchanged_but_for_their_age(answer, authority, additional, age, edns):
    query = asked(use_edns=0 if edns else False)
    parts = (answer, authority, additional)
    original = message_of(query, *parts)
    ident, read = read_answer(original.to_wire(), question_of(query), nothing)
    assert ident == query.id
    sent = dns.message.from_wire(respond(query, read, aged(read, age)))
    assert rendered(sent) == rendered(message_of(query, *older(parts, age)))
    assert (sent.edns >= 0) == edns


@given(sections, st.binary(max_size=30), st.data())
def test_a_damaged_answer_is_no_answer_or_another_and_never_raises(answer, garbage, data):
    query = asked()
    original = message_of(query, answer, [], []).to_wire()
    at = data.draw(st.integers(0, len(original)))
    read_answer(original[:at] + garbage + original[at + len(garbage) :], question_of(query), nothing)
    assert (
        read_answer(original[:at], question_of(query), nothing) in {None, (query.id, None)}
        or at >= len(original) - 11
    )


def test_a_loop_of_pointers_is_passed_on_unread():
    query = asked()
    loop = b"\xc0\x1d" + b"\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4"
    head = query.id.to_bytes(2) + b"\x81\x80\0\1\0\1\0\0\0\0"
    ident, read = read_answer(head + query.question + loop, question_of(query), nothing)
    assert (ident, read.addresses) == (query.id, (b"\1\2\3\4",))


def test_counts_that_lie_cost_nothing():
    query = asked()
    head = query.id.to_bytes(2) + b"\x81\x80\0\1\xff\xff\xff\xff\xff\xff"
    assert read_answer(head + query.question, question_of(query), nothing) == (query.id, None)


def key(number):
    return (b"%d" % number, 0)


def answer_of(size, seconds=60):
    return Answer(0, counts=(1, 0, 0), records=bytes(size), seconds=seconds)


def test_the_cache_holds_what_was_used_last():
    cache = Cache()
    for number in range(5000):
        cache.put(key(number), answer_of(10), 0)
        assert cache.get(key(0), 1) is not None
    assert len(cache) == 4096
    assert cache.get(key(500), 1) is None
    assert cache.get(key(4999), 1) is not None


def test_the_cache_is_bounded_in_bytes_and_counts_them_right():
    cache = Cache()
    for number in range(300):
        cache.put(key(number), answer_of(60_000), 0)
        assert cache.size <= 4 << 20
    assert len(cache) == (4 << 20) // (120_512)
    for number in range(300):
        cache.put(key(number), answer_of(60_000, seconds=0), 0)
    assert (len(cache), cache.size) == (0, 0)


@pytest.mark.parametrize(("seconds", "then", "there"), [(60, 59.9, True), (60, 60.0, False), (0, 0.0, False)])
def test_an_answer_is_kept_as_long_as_it_says(seconds, then, there):
    cache = Cache()
    cache.put(key(1), answer_of(10, seconds), 0)
    assert (cache.get(key(1), then) is not None) == there


names = st.lists(st.binary(min_size=1, max_size=20), min_size=0, max_size=5)


@given(names, names)
def test_names_as_text_are_as_different_as_names(one, other):
    packed = [b"".join(bytes((len(label),)) + label for label in name) + b"\0" for name in (one, other)]
    assert (labels.text(packed[0]) == labels.text(packed[1])) == (packed[0] == packed[1])
    expected = dns.name.Name([*one, b""])
    assert dns.name.from_text(labels.text(packed[0])) == expected


@given(st.lists(st.text("abz019-", min_size=1, max_size=20), min_size=1, max_size=5))
def test_names_as_bytes_are_those_of_the_standard(parts):
    name = ".".join(parts)
    assert labels.wire(name) == dns.name.from_text(name).to_wire()
    assert labels.wire(name + ".") == labels.wire(name)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, ".".join(["abcdefg"] * 32), "ü.example"])
def test_what_is_no_name_is_said_to_be_none(name):
    with pytest.raises(ValueError):  # noqa: PT011 - a codec's own error is one, too
        labels.wire(name)
