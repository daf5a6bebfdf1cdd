"""What frames say in a line, and what people say of a link."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Solicit
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6ND_NS, ICMPv6ND_RA, IPv6, IPv6ExtHdrFragment
from scapy.layers.inet6 import IPv6ExtHdrDestOpt as Options
from scapy.layers.l2 import ARP, Ether

from atoll.errors import UsageError
from atoll.network import pcapng
from atoll.network.describing import Described, describe
from atoll.network.pcapng import Direction
from atoll.network.recording import Recording
from atoll.network.shapewords import in_words, parse_duration, parse_shape
from atoll.network.shaping import Shape

ETHER = Ether(src="02:00:00:00:00:01", dst="52:55:0a:00:02:02")
FOUR = IP(src="10.0.2.15", dst="203.0.113.5")
SIX = IPv6(src="fd00::f", dst="2001:db8::5")
FRAMES = {
    "TCP": (
        FOUR
        / TCP(sport=40000, dport=443, flags="SA", seq=7, ack=9, window=100, options=[("MSS", 9)])
        / b"ab",
        "10.0.2.15:40000 > 203.0.113.5:443 TCP: SYN ACK, seq 7, ack 9, window 100, length 2",
    ),
    "TCP over IPv6": (
        SIX / Options() / TCP(sport=1, dport=2, flags="R", seq=7, window=0),
        "[fd00::f]:1 > [2001:db8::5]:2 TCP: RST, seq 7, window 0, length 0",
    ),
    "UDP": (FOUR / UDP(sport=5, dport=6) / b"abc", "10.0.2.15:5 > 203.0.113.5:6 UDP: length 3"),
    "a question": (
        SIX / UDP(sport=5, dport=53) / DNS(id=77, qd=DNSQR(qname="www.a.example", qtype="AAAA")),
        "[fd00::f]:5 > [2001:db8::5]:53 DNS: query 77, www.a.example AAAA",
    ),
    "an answer": (
        FOUR
        / UDP(sport=53, dport=5)
        / DNS(id=77, qr=1, rcode=3, qd=DNSQR(qname="a\x1b.example"), an=DNSRR(rrname="a", rdata="1.2.3.4")),
        r"10.0.2.15:53 > 203.0.113.5:5 DNS: answer 77, a\027.example A, no such name, 1 records",
    ),
    "DHCP": (
        FOUR
        / UDP(sport=67, dport=68)
        / BOOTP(op=2, yiaddr="10.0.2.15")
        / DHCP(options=[("message-type", "offer"), "end"]),
        "10.0.2.15:67 > 203.0.113.5:68 DHCP: offer, 10.0.2.15",
    ),
    "DHCPv6": (
        SIX / UDP(sport=546, dport=547) / DHCP6_Solicit(),
        "[fd00::f]:546 > [2001:db8::5]:547 DHCPv6: solicit",
    ),
    "ping": (
        FOUR / ICMP(type=8, id=3, seq=4) / b"abcd",
        "10.0.2.15 > 203.0.113.5 ICMP: echo request, id 3, seq 4, length 12",
    ),
    "unreachable": (
        FOUR / ICMP(type=3, code=3) / b"abcd",
        "10.0.2.15 > 203.0.113.5 ICMP: unreachable, code 3, length 12",
    ),
    "ping over IPv6": (
        SIX / ICMPv6EchoReply(id=3, seq=4),
        "fd00::f > 2001:db8::5 ICMPv6: echo reply, id 3, seq 4, length 8",
    ),
    "a neighbour": (
        SIX / ICMPv6ND_NS(tgt="fd00::2"),
        "fd00::f > 2001:db8::5 ICMPv6: neighbour solicitation, fd00::2, length 24",
    ),
    "a router": (SIX / ICMPv6ND_RA(), "fd00::f > 2001:db8::5 ICMPv6: router advertisement, length 16"),
    "ARP": (
        ARP(op=1, psrc="10.0.2.15", pdst="10.0.2.2"),
        "10.0.2.15 > 10.0.2.2 ARP: who has 10.0.2.2?",
    ),
    "an answer of ARP": (
        ARP(op=2, hwsrc="52:55:0a:00:02:02", psrc="10.0.2.2", pdst="10.0.2.15"),
        "10.0.2.2 > 10.0.2.15 ARP: 10.0.2.2 is at 52:55:0a:00:02:02",
    ),
    "a fragment": (
        IP(src="10.0.2.15", dst="203.0.113.5", proto=17, frag=2, flags="MF") / b"abcdefgh",
        "10.0.2.15 > 203.0.113.5 IPv4: fragment of protocol 17 at 16, length 8",
    ),
    "a fragment of IPv6": (
        SIX / IPv6ExtHdrFragment(nh=17, offset=3, m=1) / b"abcdefgh",
        "fd00::f > 2001:db8::5 IPv6: fragment of protocol 17 at 24, length 8",
    ),
    "another protocol": (
        IP(src="10.0.2.15", dst="203.0.113.5", proto=132) / b"abc",
        "10.0.2.15 > 203.0.113.5 IPv4: protocol 132, length 3",
    ),
}


def line(said):
    return f"{said.source} > {said.destination} {said.protocol}: {said.info}"


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_in_a_line(name):
    packet, said = FRAMES[name]
    frame = bytes(ETHER / packet)
    assert line(describe(frame)) == said
    assert line(describe(frame[: max(60, len(frame) - 2)], len(frame))).split(": ")[0] == said.split(": ")[0]


def test_a_frame_of_another_kind_by_its_hardware_addresses():
    frame = bytes(Ether(src="02:00:00:00:00:01", dst="52:55:0a:00:02:02", type=0x88CC) / b"abcd")
    ends = "02:00:00:00:00:01", "52:55:0a:00:02:02"
    assert describe(frame, 100) == Described(*ends, "Ethernet", "type 0x88cc, length 100")


@given(st.binary(max_size=120), st.sampled_from([b"\x08\0", b"\x86\xdd", b"\x08\x06", b"\x12\x34", b""]))
@example(
    b"\x45" + bytes(8) + b"\x11" + bytes(10) + b"\x00\x35\x00\x35\x00\x00\x00\x00" + b"\x01\xff" * 20,
    b"\x08\0",
)
def test_any_bytes_are_one_printable_line(data, kind):
    said = describe(bytes(12) + kind + data if kind else data)
    assert line(said).isprintable()
    assert len(line(said)) < 400


@given(st.sampled_from(sorted(FRAMES)), st.data())
def test_a_frame_that_is_cut_or_changed_anywhere_is_one_printable_line(name, data):
    frame = bytearray(bytes(ETHER / FRAMES[name][0]))
    for _ in range(data.draw(st.integers(0, 4))):
        frame[data.draw(st.integers(12, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert line(describe(bytes(frame[: data.draw(st.integers(0, len(frame)))]))).isprintable()


# A recording


def parts(data, at):
    """``data`` in pieces that end anywhere."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1),
            st.sampled_from([Direction.INBOUND, Direction.OUTBOUND]),
            st.binary(max_size=99),
        ),
        max_size=8,
    ),
    st.lists(st.integers(0, 5000)),
)
def test_what_was_recorded_is_read_back_however_it_comes(frames, edges):
    woken = []
    recording = Recording(
        [("dev", "x"), ("ci", "y")],
        snap=50,
        clock=lambda: 1_700_000_000_123_456_789,
        wake=lambda: woken.append(1),
    )
    begin = recording.take()
    taps = [recording.tap(number) for number in range(2)]
    for number, direction, frame in frames:
        taps[number](direction, memoryview(frame))
    assert len(woken) == bool(frames)
    data = begin + recording.take() + recording.statistics()
    blocks = pcapng.Blocks()
    found = [block for part in parts(data, edges) for block in blocks.feed(part)]
    assert b"".join(found) == data
    packets = [packet for block in found if (packet := pcapng.parse_packet(block)) is not None]
    assert [(each.number, each.direction, each.frame, each.size) for each in packets] == [
        (number, direction, frame[:50], len(frame)) for number, direction, frame in frames
    ]
    assert all(packet.at == 1_700_000_000_123_456_789 for packet in packets)
    counts = [said for block in found if (said := pcapng.parse_statistics(block)) is not None]
    assert [(said.number, said.dropped) for said in counts] == [(0, 0), (1, 0)]
    assert [said.received for said in counts] == [
        sum(each[0] == number for each in frames) for number in (0, 1)
    ]


def test_who_reads_nothing_gets_the_first_frames_and_the_number_of_the_others():
    recording = Recording([("dev", "")], wake=lambda: None)
    tap = recording.tap(0)
    for _ in range(200):
        tap(Direction.INBOUND, memoryview(bytes(60_000)))
    held = recording.take()
    assert len(held) < 5 << 20
    kept = sum(pcapng.parse_packet(block) is not None for block in pcapng.Blocks().feed(held))
    said = pcapng.parse_statistics(recording.statistics())
    assert (said.received, said.dropped) == (200, 200 - kept)
    tap(Direction.INBOUND, memoryview(b"x" * 60))
    assert pcapng.parse_packet(recording.take()).frame == b"x" * 60


def test_a_recording_of_so_many_frames_is_complete_with_them():
    woken = []
    recording = Recording([("dev", "")], count=2, wake=lambda: woken.append(1))
    for frame in (b"a", b"b", b"c"):
        assert recording.is_complete is (frame == b"c")
        recording.tap(0)(Direction.INBOUND, memoryview(frame))
    assert woken
    frames = [pcapng.parse_packet(block) for block in pcapng.Blocks().feed(recording.take())]
    assert [packet.frame for packet in frames if packet] == [b"a", b"b"]


@given(st.lists(st.binary(max_size=60)))
def test_blocks_of_any_bytes_are_taken_apart_or_refused(pieces):
    blocks = pcapng.Blocks()
    try:
        for piece in pieces:
            for block in blocks.feed(piece):
                pcapng.parse_packet(block)
                pcapng.parse_statistics(block)
    except ValueError:
        pass


@given(st.binary(max_size=60), st.sampled_from([5, 6]))
def test_a_block_of_any_content_is_read(body, kind):
    body += bytes(-len(body) % 4)
    size = (12 + len(body)).to_bytes(4, "little")
    (block,) = pcapng.Blocks().feed(kind.to_bytes(4, "little") + size + body + size)
    pcapng.parse_packet(block)
    pcapng.parse_statistics(block)


# Words for a link


@pytest.mark.parametrize(
    ("words", "shape", "said"),
    [
        ({"latency": "50ms"}, Shape(latency=0.05), "latency 50ms"),
        (
            {"latency": 1.5, "jitter": "250us", "loss": "1%", "rate": "10Mbit"},
            Shape(latency=1.5, jitter=0.00025, loss=0.01, rate=1.25e6),
            "latency 1.5s, jitter 250us, loss 1%, rate 10Mbit",
        ),
        ({"loss": 0.5, "rate": 8000}, Shape(loss=0.5, rate=1000.0), "loss 50%, rate 8kbit"),
        ({"rate": "1.5gbit", "latency": "0"}, Shape(rate=187_500_000.0), "rate 1.5Gbit"),
        ({}, Shape(), "as it is"),
    ],
)
def test_a_link_is_said_as_it_is_meant(words, shape, said):
    assert parse_shape(**words) == shape
    assert in_words(shape) == said


@pytest.mark.parametrize(
    "words",
    [
        {"latency": "50"},
        {"latency": "61s"},
        {"jitter": "-5ms"},
        {"loss": "101%"},
        {"loss": "x"},
        {"loss": 1.5},
        {"rate": "10"},
        {"rate": "0"},
        {"rate": "10 furlongs"},
        {"latency": float("nan")},
        {"latency": float("inf")},
        {"latency": True},
        {"rate": -1},
    ],
)
def test_what_cannot_be_a_link_is_refused(words):
    with pytest.raises(UsageError) as caught:
        parse_shape(**words)
    assert caught.value.code == "usage.shape"


def test_durations():
    assert [parse_duration(text) for text in ("30", "1.5s", "2m", "1h", "250ms")] == [
        30,
        1.5,
        120,
        3600,
        0.25,
    ]
    for text in ("", "0", "x", "-1s", "5 weeks"):
        with pytest.raises(UsageError):
            parse_duration(text)
