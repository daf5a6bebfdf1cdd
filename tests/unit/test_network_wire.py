"""Packets of guests, made and read by scapy: IP, datagrams, control messages, ARP, fragments."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import ARP
from scapy.packet import Raw

from atoll.network.reassembly import Reassembly
from atoll.network.wire import arp, icmp, ip, udp
from atoll.network.wire.ethernet import parse_mac

FOUR, FOUR_TO = "10.0.2.15", "203.0.113.5"
SIX, SIX_TO = "fd00:a::f", "2001:db8::5"
VERSION = st.sampled_from([4, 6])


def parse(packet):
    return ip.parse(memoryview(bytes(packet)))


def addresses(version):
    packet = parse(IP(src=FOUR, dst=FOUR_TO) if version == 4 else IPv6(src=SIX, dst=SIX_TO))
    return packet.source, packet.destination


def rebuilt(packet):
    """What scapy would have sent: with sums of its own."""
    again = packet.copy()
    for layer in (again, again.payload):
        for sum_ in ("chksum", "cksum"):
            if sum_ in layer.fields:
                delattr(layer, sum_)
    return bytes(again)


@given(VERSION, st.sampled_from([1, 6, 17, 58, 200]), st.binary(max_size=50), st.integers(1, 255))
def test_headers_are_what_scapy_makes_and_read_as_it_reads_them(version, protocol, payload, hops):
    source, destination = addresses(version)
    made = ip.header(source, destination, protocol, len(payload), hops=hops) + payload
    packet = (IP if version == 4 else IPv6)(made)
    assert (packet.src, packet.dst) == ((FOUR, FOUR_TO) if version == 4 else (SIX, SIX_TO))
    if version == 4:
        assert rebuilt(IP(made[:20])) == made[:20]
    assert bytes(packet.payload) == payload
    back = parse(made + b"padding of a short frame")
    assert back == ip.Packet(source, destination, protocol, hops, memoryview(payload), memoryview(made))


@given(VERSION, st.integers(0, 65535), st.integers(0, 65535), st.binary(max_size=99))
def test_datagrams_are_what_scapy_makes_of_them(version, source_port, port, payload):
    ends = addresses(version)
    head = udp.header(*ends, source_port, port, payload)
    packet = ip.header(*ends, ip.UDP, len(head) + len(payload)) + head + payload
    found = (IP if version == 4 else IPv6)(packet)
    assert rebuilt(found) == packet
    datagram = udp.parse(parse(packet).payload)
    assert datagram == udp.Datagram(source_port, port, memoryview(payload))


def test_a_datagram_whose_sum_is_zero_says_so():
    source, destination = addresses(6)
    for word in range(65536):
        head = udp.header(source, destination, 1, 2, word.to_bytes(2))
        assert head[6:8] != b"\0\0"


@pytest.mark.parametrize("size", [0, 7, 100])
def test_a_datagram_with_a_length_that_does_not_fit_is_none(size):
    payload = b"\0\1\0\2" + size.to_bytes(2) + b"\0\0" + b"abc"
    assert udp.parse(memoryview(payload)) is None


def test_an_echo_is_answered():
    request = IP(src=FOUR, dst=FOUR_TO) / ICMP(id=7, seq=3) / b"payload"
    packet = parse(request)
    assert icmp.is_echo(packet)
    reply = ICMP(icmp.echo_reply(packet))
    assert (reply.type, reply.id, reply.seq, bytes(reply.payload)) == (0, 7, 3, b"payload")
    assert rebuilt(reply) == icmp.echo_reply(packet)
    packet = parse(IPv6(src=SIX, dst=SIX_TO) / ICMPv6EchoRequest(id=7, seq=3, data=b"payload"))
    assert icmp.is_echo(packet)
    made = bytes(IPv6(src=SIX_TO, dst=SIX) / ICMPv6EchoReply(id=7, seq=3, data=b"payload"))
    assert icmp.echo_reply(packet) == made[40:]


@pytest.mark.parametrize("reason", icmp.Reason)
@pytest.mark.parametrize("size", [0, 5000])
def test_an_error_repeats_what_did_not_arrive(reason, size):
    packet = parse(IP(src=FOUR, dst=FOUR_TO) / UDP(sport=1000, dport=9) / bytes(size))
    message = icmp.error(bytes((10, 0, 2, 2)), packet, reason)
    found = ICMP(message)
    assert (found.type, found.code) == reason.value[:2]
    assert rebuilt(found) == message
    assert bytes(found)[8:36] == bytes(packet.whole[:28])
    assert len(message) <= 576 - 20
    six = parse(IPv6(src=SIX, dst=SIX_TO) / UDP(sport=1000, dport=9) / bytes(size))
    message = icmp.error(six.destination, six, reason)
    head = ip.header(six.destination, six.source, ip.ICMP6, len(message))
    found = IPv6(head + message)
    assert (found.payload.type, found.payload.code) == reason.value[2:]
    assert rebuilt(found) == head + message
    assert len(head + message) <= 1280
    if reason is icmp.Reason.NO_PORT:
        assert found[ICMPv6DestUnreach].payload.dst == SIX_TO


def test_a_question_for_a_hardware_address_is_answered():
    asked = ARP(op=1, hwsrc="02:00:00:00:00:01", psrc=FOUR, pdst="10.0.2.2")
    question = arp.parse_question(memoryview(bytes(asked)))
    answer = ARP(arp.answer(question, parse_mac("52:55:0a:00:02:02")))
    assert (answer.op, answer.hwsrc, answer.psrc) == (2, "52:55:0a:00:02:02", "10.0.2.2")
    assert (answer.hwdst, answer.pdst) == ("02:00:00:00:00:01", FOUR)
    assert arp.parse_question(memoryview(bytes(ARP(op=2)))) is None
    assert arp.parse_question(memoryview(bytes(ARP(op=1, hwlen=8)))) is None


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x45", b"\x4f", b"\x60\0\0\0"]))
def test_any_bytes_are_read_without_an_error(data, start):
    view = memoryview(start + data)
    packet = ip.parse(view)
    arp.parse_question(view)
    udp.parse(view)
    if packet is not None:
        assert len(packet.whole) <= len(view)
        icmp.is_echo(packet)
        icmp.error(packet.destination, packet, icmp.Reason.NO_PORT)


def test_headers_between_are_passed_over():
    packet = IPv6(src=SIX, dst=SIX_TO) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(dport=5) / b"x"
    assert (parse(packet).protocol, bytes(parse(packet).payload)) == (17, bytes(packet[UDP]))
    endless = IPv6(src=SIX, dst=SIX_TO)
    for _ in range(20):
        endless /= IPv6ExtHdrDestOpt()
    assert parse(endless) is None


def test_what_follows_the_header_of_a_fragment_is_not_read_before_it_is_whole():
    """Headers may lie in several fragments: who hides behind them is known when all have come."""
    hidden = IPv6ExtHdrDestOpt(nh=58) / Raw(b"\x86\0rest of what claims to be an advertisement")
    for offset, more in ((0, 1), (3, 0)):
        packet = IPv6(src=SIX, dst=SIX_TO) / IPv6ExtHdrFragment(nh=60, offset=offset, m=more, id=1) / hidden
        found = parse(packet)
        assert (found.protocol, bytes(found.payload)) == (60, bytes(hidden))
    atomic = IPv6(src=SIX, dst=SIX_TO) / IPv6ExtHdrFragment(nh=60, offset=0, m=0, id=1) / hidden
    found = parse(atomic)
    assert (found.protocol, found.fragment) == (58, None)


# Fragments


def pieces_of(version, payload, size=600):
    if version == 4:
        return fragment(IP(src=FOUR, dst=FOUR_TO, id=77) / UDP(sport=1, dport=2) / payload, fragsize=size)
    whole = IPv6(src=SIX, dst=SIX_TO) / IPv6ExtHdrFragment(id=77) / UDP(sport=1, dport=2) / payload
    return fragment6(whole, max(1280, size))


@given(VERSION, st.integers(3000, 9000), st.randoms(use_true_random=False))
def test_fragments_in_any_order_make_the_packet_again(version, size, order):
    payload = random.Random(size).randbytes(size)
    reassembly, whole = Reassembly(), None
    pieces = pieces_of(version, payload)
    order.shuffle(pieces)
    for piece in pieces:
        assert whole is None
        whole = reassembly.add(parse(piece), 0.0)
    assert whole.fragment is None
    assert bytes(udp.parse(whole.payload).payload) == payload
    assert not reassembly._parts


def test_our_own_fragments_are_put_together_by_scapy():
    source, destination = addresses(4)
    made = ip.header(source, destination, ip.UDP, 8, fragment=ip.Fragment(77, 16, more=True))
    packet = IP(made + bytes(8))
    assert (packet.id, packet.frag, int(packet.flags)) == (77, 2, 1)
    assert rebuilt(packet) == made + bytes(8)
    six = addresses(6)
    packet = IPv6(ip.header(*six, ip.UDP, 8, fragment=ip.Fragment(77, 16, more=True)) + bytes(8))
    head = packet[IPv6ExtHdrFragment]
    assert (head.id, head.offset, head.m, head.nh, packet.plen) == (77, 2, 1, 17, 16)


def part(offset, payload, *, more=True, ident=1, protocol=17):
    fragment = ip.Fragment(ident, offset, more)
    view = memoryview(payload)
    return ip.Packet(b"\1" * 4, b"\2" * 4, protocol, 64, view, view, fragment)


@pytest.mark.parametrize(
    "second",
    [
        part(8, bytes(16)),  # reaches into the first
        part(0, bytes(16)),  # the same again
        part(16, bytes(3)),  # others follow one of no multiple of eight
        part(16, b"", more=False),
        part(65528, bytes(16), more=False),  # beyond the largest packet
    ],
)
def test_fragments_that_do_not_fit_take_their_packet_with_them(second):
    reassembly = Reassembly()
    assert reassembly.add(part(0, bytes(16)), 0.0) is None
    assert reassembly.add(second, 0.0) is None
    assert not reassembly._parts


def test_two_ends_of_one_packet_are_none():
    reassembly = Reassembly()
    reassembly.add(part(16, bytes(8), more=False), 0.0)
    assert reassembly.add(part(24, bytes(8), more=False), 0.0) is None
    assert not reassembly._parts


def test_a_packet_is_not_waited_for_for_ever():
    reassembly = Reassembly()
    reassembly.add(part(0, bytes(16)), 0.0)
    assert reassembly.add(part(16, bytes(8), more=False), 16.0) is None
    assert reassembly.add(part(0, b"x" * 16), 16.0) is not None


FRAGMENT = st.builds(
    part,
    st.integers(0, 8191).map(lambda units: units * 8) | st.sampled_from([0, 8, 16]),
    st.sampled_from([0, 1, 8, 16, 1024, 65528]).map(bytes),
    more=st.booleans(),
    ident=st.integers(0, 100),
)


@given(st.lists(FRAGMENT, max_size=80))
def test_a_flood_of_fragments_is_bounded(fragments):
    reassembly = Reassembly()
    for at, packet in enumerate(fragments):
        whole = reassembly.add(packet, at * 0.1)
        assert whole is None or 0 < len(whole.payload) <= 65535
        assert len(reassembly._parts) <= 32
        for parts in reassembly._parts.values():
            assert sum(map(len, parts.pieces.values())) <= 65535
            assert len(parts.pieces) <= 64
