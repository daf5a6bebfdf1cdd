"""The name server, between clients and upstreams made with dnspython."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import pytest
from dns_peers import FIRST, ME, SECOND, THIRD, Peer, data, question, rcode
from hypothesis import given
from hypothesis import strategies as st

from atoll.network.dns.forwarder import Client, Learned, Stripped
from atoll.network.dns.message import Rcode
from atoll.network.dns.upstreams import Resolvers, parse_hosts

A = ("site.example.", 300, "IN", "A", "203.0.113.5")
SOA = ("example.", 900, "IN", "SOA", "ns.example. admin.example. 1 2 3 4 60")


def test_a_question_goes_to_the_host_s_upstream_and_its_answer_back():
    peer = Peer()
    assert peer.ask("site.example", use_edns=0) is None
    asked = peer.asked()
    assert (asked.question[0].name.to_text(), asked.edns, asked.payload) == ("site.example.", 0, 1232)
    assert asked.flags & dns.flags.RD
    assert (peer.sent[0].upstream, peer.sent[0].tcp) == (FIRST, False)
    reply = peer.reply(A)
    assert (rcode(reply), data(reply), reply.answer[0].ttl) == ("NOERROR", ["203.0.113.5"], 300)
    assert reply.flags & dns.flags.RA
    assert not reply.flags & dns.flags.AA
    assert (reply.edns, reply.payload) == (0, 1232)
    assert peer.learned == [Learned("machine", "site.example", (bytes((203, 0, 113, 5)),), 300)]
    assert not peer.open
    assert peer.forwarder.next is None


def test_a_client_without_edns_gets_none_and_keeps_its_spelling():
    peer = Peer()
    peer.ask("SiTe.ExAmPlE")
    reply = peer.reply(("site.example.", 300, "IN", "A", "203.0.113.5"))
    assert reply.edns == -1
    assert b"\x04SiTe\x07ExAmPlE" in peer.raw[0]


def test_what_was_answered_is_answered_again_with_less_time_to_live():
    peer = Peer()
    peer.resolve(
        "site.example",
        ("site.example.", 60, "IN", "CNAME", "a.example."),
        ("a.example.", 9, "IN", "A", "1.2.3.4"),
    )
    assert [rrset.ttl for rrset in peer.ask("SITE.example", now=5.5).answer] == [55, 4]
    assert [rrset.ttl for rrset in peer.ask("SITE.example", now=8.9).answer] == [52, 1]
    assert peer.learned[-1].seconds == 1
    assert peer.ask("site.example", now=9.1) is None
    assert len(peer.sent) == 2


@pytest.mark.parametrize(("code", "kind"), [(3, "NXDOMAIN"), (0, "NOERROR")])
def test_what_is_not_there_is_remembered_for_as_long_as_its_zone_says(code, kind):
    peer = Peer()
    reply = peer.resolve("no.example", authority=[SOA], rcode=code)
    assert (rcode(reply), data(reply)) == (kind, [])
    assert rcode(peer.ask("no.example", now=59)) == kind
    assert peer.ask("no.example", now=61) is None


def test_what_is_not_there_is_not_remembered_where_no_zone_says_so():
    peer = Peer()
    peer.resolve("no.example", rcode=3)
    assert peer.ask("no.example", now=0.1) is None


def test_nothing_is_remembered_for_more_than_a_day():
    peer = Peer()
    peer.resolve("site.example", ("site.example.", 864_000, "IN", "A", "203.0.113.5"))
    assert peer.ask("site.example", now=86_399) is not None
    assert peer.ask("site.example", now=86_401) is None


def test_further_records_do_not_make_an_answer_older():
    peer = Peer()
    peer.resolve("site.example", A, additional=[("glue.test.", 1, "IN", "A", "203.0.113.6")])
    reply = peer.ask("site.example", now=200)
    assert [rrset.ttl for rrset in reply.answer + reply.additional] == [100, 0]


def test_a_negative_time_to_live_is_none():
    peer = Peer()
    peer.resolve("site.example", A, change=lambda reply: reply.replace(struct.pack(">I", 300), b"\xff" * 4))
    assert peer.ask("site.example", now=1) is None


def test_addresses_of_other_networks_than_the_internet_are_none():
    peer = Peer()
    record = b"\0\1\0\1" + struct.pack(">I", 300)
    peer.resolve("site.example", A, change=lambda reply: reply.replace(record, b"\0\1\0\5" + record[4:]))
    assert peer.learned == []


def test_answers_for_different_flags_are_kept_apart():
    peer = Peer()
    peer.resolve("site.example", A)
    assert peer.ask("site.example", want_dnssec=True) is None
    assert peer.asked().ednsflags & dns.flags.DO
    checking = question("site.example")
    checking.flags |= dns.flags.CD
    assert peer.ask(checking) is None
    assert peer.asked().flags & dns.flags.CD
    assert len(peer.sent) == 3


def test_authenticity_is_told_to_those_who_ask_for_it():
    peer = Peer()
    reply = peer.resolve("site.example", A, flags=dns.flags.AD)
    assert not reply.flags & dns.flags.AD
    asked = question("site.example")
    asked.flags |= dns.flags.AD
    assert peer.ask(asked).flags & dns.flags.AD


def test_equal_questions_are_asked_once_and_repeated_ones_answered_once():
    peer = Peer()
    first, second = question("site.example"), question("SITE.example")
    other = Client("other", ("10.0.2.16", 9))
    peer.ask(first)
    peer.ask(first)
    peer.ask(second, client=other)
    assert len(peer.sent) == 1
    peer.reply(A)
    assert [(client, reply.id) for client, reply in peer.replies] == [(ME, first.id), (other, second.id)]
    assert {learned.machine for learned in peer.learned} == {"machine", "other"}


def big(count):
    return ("site.example.", 300, "IN", "A", *[f"203.0.113.{number}" for number in range(count)])


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 512), ({"use_edns": 0, "payload": 900}, 900), ({"use_edns": 0, "payload": 4096}, 1232)],
)
def test_an_answer_that_is_too_long_for_the_client_says_so(settings, limit):
    for count in range(25, 100):
        peer = Peer()
        peer.ask("site.example", **settings)
        reply = peer.reply(big(count))
        if reply.flags & dns.flags.TC:
            break
        assert len(peer.raw[0]) <= limit
    assert limit - 16 < 12 + 18 + (11 if settings else 0) + 16 * count <= limit + 16
    assert not reply.answer
    assert len(data(peer.ask("site.example", client=Client("machine", "stream", tcp=True)))) == count


def test_an_answer_that_was_cut_is_asked_for_by_tcp():
    peer = Peer()
    assert peer.resolve("site.example", flags=dns.flags.TC) is None
    assert [sent.tcp for sent in peer.sent] == [False, True]
    assert list(peer.open) == [2]
    assert len(data(peer.reply(big(80)))) == 0, "it is too long for the client, too"
    assert peer.replies[0][1].flags & dns.flags.TC


def test_a_silent_upstream_is_followed_by_the_next_and_avoided_for_a_while():
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    assert peer.forwarder.next == 2.0
    peer.tick(1.9)
    assert len(peer.sent) == 1
    peer.tick(2.0)
    assert [sent.upstream for sent in peer.sent] == [FIRST, SECOND]
    assert peer.reply(A, now=2.1) is not None
    peer.ask("other.example", now=3)
    assert peer.sent[-1].upstream == SECOND
    peer.reply(now=3)
    peer.ask("third.example", now=40)
    assert peer.sent[-1].upstream == FIRST


def test_an_upstream_that_answers_late_is_not_avoided():
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    peer.tick(2.0)
    peer.reply(A, number=0, now=3)
    peer.ask("other.example", now=3)
    assert peer.sent[-1].upstream == FIRST


def test_a_late_failure_does_not_hurry_the_one_that_is_asked_now():
    peer = Peer(FIRST, SECOND, THIRD)
    peer.ask("site.example")
    peer.tick(2.0)
    peer.reply(rcode=2, number=0, now=2.5)
    assert [sent.upstream for sent in peer.sent] == [FIRST, SECOND]
    assert peer.reply(A, now=2.6) is not None


def test_an_upstream_that_cuts_even_over_tcp_has_failed():
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    peer.reply(flags=dns.flags.TC)
    peer.reply(flags=dns.flags.TC)
    assert [(sent.upstream, sent.tcp) for sent in peer.sent] == [
        (FIRST, False),
        (FIRST, True),
        (SECOND, False),
    ]


def test_a_late_answer_is_as_good():
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    peer.tick(2.0)
    assert data(peer.reply(A, number=0, now=3)) == ["203.0.113.5"]
    assert not peer.open


def test_a_question_that_nobody_answers_fails_after_eight_seconds():
    peer = Peer(FIRST, SECOND, THIRD)
    peer.ask("site.example")
    while peer.forwarder.next is not None:
        now = peer.forwarder.next
        peer.tick(now)
    assert now == 8.0
    assert rcode(peer.replies[0][1]) == "SERVFAIL"
    assert [sent.upstream for sent in peer.sent] == [FIRST, SECOND, THIRD, FIRST]
    assert not peer.open
    assert len(peer.forwarder) == 0


@pytest.mark.parametrize("code", [2, 4, 5])
def test_an_upstream_that_fails_is_followed_by_the_next_at_once(code):
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    if code == 4:
        peer.reply(rcode=code)  # it may only not know EDNS
        assert peer.sent[-1].upstream == FIRST
    peer.reply(rcode=code)
    assert peer.sent[-1].upstream == SECOND
    assert data(peer.reply(A)) == ["203.0.113.5"]


def test_if_all_upstreams_fail_their_answer_is_the_answer():
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    peer.reply(rcode=5)
    assert rcode(peer.reply(rcode=2)) == "SERVFAIL"
    assert rcode(peer.ask("site.example", now=1)) == "SERVFAIL", "and is remembered for a moment"
    assert peer.ask("site.example", now=6) is None


def test_an_upstream_that_cannot_be_reached_is_followed_by_the_next_at_once():
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example")
    peer.take(peer.forwarder.failed(1, 0))
    assert peer.sent[-1].upstream == SECOND
    peer.take(peer.forwarder.failed(2, 0))
    assert rcode(peer.replies[0][1]) == "SERVFAIL"
    peer.take(peer.forwarder.failed(2, 0))
    assert len(peer.replies) == 1


def without_question(reply):
    return reply[:2] + struct.pack(">HHHHH", 0x8001, 0, 0, 0, 0)


@pytest.mark.parametrize("change", [None, without_question])
def test_an_upstream_that_does_not_know_edns_is_asked_without(change):
    peer = Peer()
    peer.ask("site.example")
    peer.reply(rcode=1, change=change)
    assert peer.asked().edns == -1
    assert peer.reply(A) is not None
    peer.ask("other.example")
    assert peer.asked().edns == -1


def test_ids_are_random_and_every_question_has_a_socket_of_its_own():
    peer = Peer()
    for number in range(200):
        peer.ask(f"n{number}.example")
    assert len({peer.asked(n).id for n in range(200)}) > 190
    assert len({sent.number for sent in peer.sent}) == 200


def wrong_id(reply):
    return bytes((reply[0] ^ 1,)) + reply[1:]


@pytest.mark.parametrize(
    "change",
    [
        wrong_id,
        lambda reply: reply.replace(b"\x04site", b"\x04evil"),
        lambda reply: reply[:2] + b"\1" + reply[3:],
        lambda reply: reply[:11],
    ],
)
def test_what_answers_another_question_is_passed_over(change):
    peer = Peer()
    peer.ask("site.example")
    assert peer.reply(A, change=change) is None
    assert list(peer.open) == [1]
    assert peer.reply(A) is not None


def test_somebody_who_guesses_ids_only_gets_the_question_asked_by_tcp():
    peer = Peer()
    peer.ask("site.example")
    for _ in range(8):
        assert peer.reply(A, number=0, change=wrong_id) is None
    assert [sent.tcp for sent in peer.sent] == [False, True]
    assert list(peer.open) == [2]


def test_names_of_machines_are_answered_here():
    peer = Peer()
    reply = peer.ask("WEB.atoll.internal")
    assert (data(reply), reply.answer[0].ttl) == (["10.0.2.15"], 5)
    assert reply.flags & dns.flags.AA
    assert b"\x03WEB\x05atoll" in peer.raw[-1]
    assert data(peer.ask("web.atoll.internal", "AAAA")) == ["fd00:a::15"]
    assert data(peer.ask("web", "A")) == ["10.0.2.15"]
    assert sorted(data(peer.ask("web.atoll.internal", "ANY"))) == ["10.0.2.15", "fd00:a::15"]
    assert data(peer.ask("15.2.0.10.in-addr.arpa", "PTR")) == ["web.atoll.internal."]
    assert not peer.sent
    told = {(each.name, address) for each in peer.learned for address in each.addresses}
    assert told == {
        (name, bytes(ip_address(address).packed))
        for name in ("web", "web.atoll.internal")
        for address in ("10.0.2.15", "fd00:a::15")
        if (name, address) != ("web", "fd00:a::15")
    }


@pytest.mark.parametrize(
    ("name", "kind", "code", "zone"),
    [
        ("nobody.atoll.internal", "A", "NXDOMAIN", "atoll.internal."),
        ("web.atoll.internal", "MX", "NOERROR", "atoll.internal."),
        ("atoll.internal", "A", "NOERROR", "atoll.internal."),
        ("99.2.0.10.in-addr.arpa", "PTR", "NXDOMAIN", "2.0.10.in-addr.arpa."),
        ("we\\.b.atoll.internal", "A", "NXDOMAIN", "atoll.internal."),
        ("\\255\\000.atoll.internal", "A", "NXDOMAIN", "atoll.internal."),
    ],
)
def test_what_is_not_there_is_denied_here(name, kind, code, zone):
    peer = Peer()
    reply = peer.ask(name, kind, use_edns=0)
    assert (rcode(reply), data(reply)) == (code, [])
    assert reply.authority[0].name.to_text() == zone
    assert (reply.authority[0].ttl, reply.authority[0][0].minimum) == (5, 5)
    assert not peer.sent


def test_names_may_change_at_any_time():
    peer = Peer()
    assert rcode(peer.ask("db.atoll.internal")) == "NXDOMAIN"
    peer.names.add("db", "db", [ip_address("10.0.2.16")])
    assert data(peer.ask("db.atoll.internal")) == ["10.0.2.16"]
    peer.names.remove("db")
    assert rcode(peer.ask("db.atoll.internal")) == "NXDOMAIN"


def test_names_that_the_host_knows_are_answered_as_there():
    peer = Peer(hosts=parse_hosts("192.168.7.7 nas nas.home\n127.0.1.1 thishost\n"))
    assert data(peer.ask("NAS.home")) == ["192.168.7.7"]
    assert data(peer.ask("nas.home", "AAAA")) == []
    assert data(peer.ask("7.7.168.192.in-addr.arpa", "PTR")) == ["nas."]
    assert peer.learned[0] == Learned("machine", "nas.home", (ip_address("192.168.7.7").packed,), 5)
    assert not peer.sent
    assert peer.ask("nas.home", "MX") is None
    assert peer.ask("thishost") is None


def test_other_upstreams_may_have_other_answers():
    peer = Peer()
    peer.resolve("site.example", A)
    peer.forwarder.follow(Resolvers((FIRST,)), parse_hosts(""))
    assert peer.ask("site.example") is not None
    peer.forwarder.follow(Resolvers((SECOND,)), parse_hosts(""))
    assert peer.ask("site.example") is None
    assert peer.sent[-1].upstream == SECOND


def test_what_upstreams_answer_that_are_not_asked_any_more_is_not_kept():
    peer = Peer()
    peer.ask("site.example")
    peer.forwarder.follow(Resolvers((SECOND,)), parse_hosts(""))
    assert peer.reply(A) is not None
    assert peer.ask("site.example") is None


def test_names_that_are_not_allowed_get_the_verdict():
    seen = []

    def verdict(machine, name):
        seen.append((machine, name))
        return Rcode.NXDOMAIN if name == "bad.example" else None

    peer = Peer(verdict=verdict)
    assert rcode(peer.ask("BAD.example", use_edns=0)) == "NXDOMAIN"
    assert peer.ask("good.example") is None
    assert rcode(peer.ask("web.atoll.internal")) == "NOERROR"
    assert seen == [("machine", "bad.example"), ("machine", "good.example")]


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.2.9", "169.254.169.254", "0.0.0.0"])
def test_a_name_of_the_outside_cannot_lead_inside(bad):
    peer = Peer()
    records = [
        ("x.example.", 9, "IN", "CNAME", "y.example."),
        ("y.example.", 60, "IN", "A", bad, "203.0.113.5"),
    ]
    reply = peer.resolve("x.example", *records)
    assert (data(reply), reply.answer[0].name.to_text(), reply.answer[0].ttl) == (
        ["203.0.113.5"],
        "x.example.",
        60,
    )
    assert peer.learned == [
        Learned("machine", "x.example", (ip_address("203.0.113.5").packed,), 60),
        Stripped("machine", "x.example", (ip_address(bad).packed,)),
    ]
    assert data(peer.ask("x.example", now=59)) == ["203.0.113.5"]
    only = peer.resolve("z.example", ("z.example.", 60, "IN", "A", bad))
    assert (rcode(only), data(only)) == ("NOERROR", [])


@pytest.mark.parametrize(
    "bad", ["::1", "::", "fe80::1", "fd00:a::9", "::ffff:127.0.0.1", "64:ff9b::10.0.2.2"]
)
def test_a_name_of_the_outside_cannot_lead_inside_by_ipv6_either(bad):
    peer = Peer()
    reply = peer.resolve("x.example", ("x.example.", 60, "IN", "AAAA", bad, "2001:db8::1"), kind="AAAA")
    assert data(reply) == ["2001:db8::1"]


def test_addresses_in_other_records_lead_nowhere_else():
    peer = Peer()
    good = 'site.example. ipv4hint="203.0.113.9" ipv6hint="2001:db8::9"'
    peer.resolve("site.example", ("site.example.", 60, "IN", "HTTPS", f"1 {good}"), kind="HTTPS")
    assert peer.learned[0].addresses == (ip_address("203.0.113.9").packed, ip_address("2001:db8::9").packed)
    bad = peer.resolve("x.example", ("x.example.", 60, "IN", "HTTPS", "1 . ipv4hint=127.0.0.1"), kind="HTTPS")
    assert data(bad) == []
    glue = ("mail.example.", 60, "IN", "A", "127.0.0.1")
    bad = peer.resolve(
        "y.example", ("y.example.", 60, "IN", "MX", "1 mail.example."), kind="MX", additional=[glue]
    )
    assert (data(bad), data(bad, "additional")) == ([], [])


def test_protection_can_be_switched_off():
    peer = Peer(protect=False)
    assert data(peer.resolve("x.example", ("x.example.", 60, "IN", "A", "127.0.0.1"))) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda asked: asked[:2] + b"\x11" + asked[3:], "NOTIMP"),
        (lambda asked: asked[:4] + b"\0\2" + asked[6:], "FORMERR"),
        (lambda asked: asked[:4] + b"\0\0" + asked[6:12], "FORMERR"),
        (lambda asked: asked[:6] + b"\0\1" + asked[8:], "FORMERR"),
        (lambda asked: asked[:-5] + b"\xc0\x0c" + asked[-4:], "FORMERR"),
        (lambda asked: asked[:-1], "FORMERR"),
        (lambda asked: asked + b"x", "FORMERR"),
        (lambda asked: asked[:12] + b"\x3f" * 300 + asked[-5:], "FORMERR"),
        (lambda asked: asked[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0" + asked[-4:], "FORMERR"),
        (lambda asked: asked[:11] + b"\1" + asked[12:] + b"\1x\0\0\x29\4\0" + bytes(6), "FORMERR"),
        (lambda asked: asked[:11] + b"\x09" + asked[12:] + (b"\0\0\1\0\1" + bytes(6)) * 9, "FORMERR"),
        (
            lambda asked: (
                asked[:11] + b"\1" + asked[12:] + b"\0\0\x0a\0\1" + bytes(4) + b"\x10\0" + bytes(4096)
            ),
            "FORMERR",
        ),
        (lambda asked: asked[:-4] + b"\0\xfc\0\1", "REFUSED"),
        (lambda asked: asked[:-2] + b"\0\3", "REFUSED"),
        (lambda asked: asked[:-4] + b"\0\xf9\0\1", "NOTIMP"),
        (lambda asked: asked[:-4] + b"\0\x29\0\1", "FORMERR"),
    ],
)
def test_questions_that_cannot_be_answered_are_told_why(change, code):
    peer = Peer()
    peer.take(peer.forwarder.ask(ME, change(question("site.example").to_wire()), 0))
    assert rcode(peer.replies[0][1]) == code
    assert not peer.sent


@pytest.mark.parametrize("change", [lambda asked: asked[:11], lambda asked: asked[:2] + b"\x81" + asked[3:]])
def test_what_is_no_question_is_not_answered(change):
    peer = Peer()
    assert peer.forwarder.ask(ME, change(question("site.example").to_wire()), 0) == []


def test_newer_versions_of_edns_are_refused_and_two_of_them_malformed():
    peer = Peer()
    reply = peer.ask("site.example", use_edns=1)
    assert (rcode(reply), reply.edns) == ("BADVERS", 0)
    asked = question("site.example", use_edns=0).to_wire()
    twice = asked[:10] + b"\0\2" + asked[12:] + asked[-11:]
    peer.take(peer.forwarder.ask(ME, twice, 0))
    assert rcode(peer.replies[-1][1]) == "FORMERR"


def test_what_a_client_says_beside_its_question_stays_here():
    peer = Peer()
    cookie = dns.edns.GenericOption(10, b"12345678")
    peer.ask("site.example", use_edns=0, options=[cookie, dns.edns.ECSOption("10.1.2.0", 24)])
    assert peer.asked().options == ()
    reply = peer.reply(A)
    assert reply.options == ()


def opt_first(reply):
    """Move OPT, the last 11 bytes, before the other records of the additional section."""
    at = reply.index(b"\x04glue")
    return reply[:at] + reply[-11:] + reply[at:-11]


def test_records_after_opt_are_left_out():
    peer = Peer()
    glue = ("glue.test.", 60, "IN", "A", "203.0.113.6")
    reply = peer.resolve("site.example", A, additional=[glue], change=opt_first)
    assert (data(reply), data(reply, "additional")) == (["203.0.113.5"], [])
    peer = Peer()
    reply = peer.resolve("site.example", A, additional=[glue])
    assert data(reply, "additional") == ["203.0.113.6"]


def test_one_machine_cannot_have_too_many_questions_open():
    peer = Peer(per_machine=10, questions=15)
    for number in range(12):
        reply = peer.ask(f"n{number}.example")
        assert (reply is None) == (number < 10)
    assert rcode(reply) == "REFUSED"
    other = Client("other", 1)
    assert [peer.ask(f"m{n}.example", client=other) is None for n in range(6)] == [True] * 5 + [False]
    assert peer.ask("n1.example", client=other) is None, "it is open already"
    peer.forwarder.leave("machine")
    peer.reply(number=0)
    assert not peer.replies[2:][-1][1].answer
    assert peer.ask("n20.example") is None


def test_an_answered_question_makes_room_for_another():
    peer = Peer(per_machine=2)
    for number in range(20):
        assert peer.resolve(f"n{number}.example") is not None


def test_answers_that_are_kept_ready_are_bounded():
    peer = Peer()
    for number in range(3000):
        peer.forwarder.ask(ME, question(f"n{number}.atoll.internal").to_wire(), 0)
    assert len(peer.forwarder._ready) <= 1024


def test_nothing_is_sent_to_those_who_left():
    peer = Peer()
    stream, other = Client("machine", "stream", tcp=True), Client("machine", "other", tcp=True)
    peer.ask("site.example", client=stream)
    peer.ask("site.example", client=other)
    peer.forwarder.leave("machine", "stream")
    peer.reply(A)
    assert [client for client, _ in peer.replies] == [other]


def test_upstreams_that_never_agree_are_not_asked_forever():
    peer = Peer(tries=5)
    peer.ask("site.example")
    for _ in range(30):
        if peer.open:
            for _ in range(8):
                peer.reply(A, change=wrong_id)
            peer.tick(peer.forwarder.next or 0)
    assert len(peer.sent) <= 5
    assert rcode(peer.replies[-1][1]) == "SERVFAIL"


@given(st.lists(st.binary(max_size=200), max_size=5), st.binary(min_size=12, max_size=12))
def test_nothing_a_client_sends_raises_and_every_reply_can_be_read(tails, head):
    peer = Peer()
    for tail in tails:
        for message in (
            head + tail,
            head[:2] + b"\1\0\0\1\0\0\0\0\0\0" + tail,
            head[:2] + b"\1\0\0\1\0\0\0\0\0\1" + tail,
        ):
            peer.take(peer.forwarder.ask(ME, message, 0))
    assert len(peer.forwarder) == len(peer.open)


@given(st.binary(max_size=300), st.integers(0, 0xFFFF), st.tuples(*[st.integers(0, 3)] * 3))
def test_nothing_an_upstream_sends_raises(tail, flags, counts):
    peer = Peer(FIRST, SECOND)
    peer.ask("site.example", use_edns=0)
    sent = peer.sent[0].message
    head = sent[:2] + struct.pack(">HHHHH", flags, 1, *counts)
    for effect in peer.forwarder.answer(1, head + sent[12:-11] + tail, 0):
        assert type(effect).__name__ in {"ToClient", "ToUpstream", "Close", "Learned", "Stripped"}


@given(st.data())
def test_whatever_happens_every_question_is_answered_once_and_nothing_is_left(draw):
    peer = Peer(FIRST, SECOND, per_machine=6, questions=8)
    now, waiting = 0.0, {}
    for _ in range(draw.draw(st.integers(1, 40))):
        now += draw.draw(st.sampled_from([0.0, 0.1, 1.0, 2.5]))
        peer.tick(now)
        what = draw.draw(st.sampled_from(["ask", "ask", "answer", "fail", "forge", "garbage"]))
        number = draw.draw(st.sampled_from(sorted(peer.open))) if peer.open else 0
        place = next((at for at, sent in enumerate(peer.sent) if sent.number == number), None)
        if what == "ask":
            asked = question(f"n{draw.draw(st.integers(0, 9))}.example")
            client = Client(draw.draw(st.sampled_from("ab")), len(waiting))
            waiting[client] = asked.id
            peer.ask(asked, now=now, client=client)
        elif place is not None and what == "answer":
            code = draw.draw(st.sampled_from([0, 2, 3, 5]))
            cut = draw.draw(st.sampled_from([0, dns.flags.TC]))
            peer.reply(A, now=now, number=place, rcode=code, flags=cut)
        elif place is not None and what == "fail":
            peer.take(peer.forwarder.failed(number, now))
        elif place is not None:
            change = wrong_id if what == "forge" else (lambda reply: reply[:-5])
            peer.reply(A, now=now, number=place, change=change)
        assert len(peer.forwarder) <= 8
    for _ in range(100):
        if (following := peer.forwarder.next) is None:
            break
        now = max(now, following)
        peer.tick(now)
    assert {client: reply.id for client, reply in peer.replies} == waiting
    assert len(peer.replies) == len(waiting)
    assert not peer.open
    assert len(peer.forwarder) == 0
