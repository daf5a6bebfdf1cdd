"""What a network takes of a guest's frames, and what it lets others see of them."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from tcp_peers import Socket, split

from atoll.network.addressing import Addressing
from atoll.network.gateway import Gateway
from atoll.network.leases import Lease
from atoll.network.neighbours import Gate
from atoll.network.station import Station
from atoll.network.tcp.flows import Flows
from atoll.network.udp.associations import Associations
from atoll.network.wire.ethernet import parse_mac

ADDRESSING = Addressing(ipaddress.ip_network("10.0.2.0/24"), ipaddress.ip_network("fd00:a::/64"))
MAC, OTHER_MAC, GATEWAY = "02:00:00:00:00:01", "02:00:00:00:00:02", "52:55:0a:00:02:02"
ALL = "ff:ff:ff:ff:ff:ff"
FOUR, OTHER = "10.0.2.15", "10.0.2.16"
SIX, OTHER_SIX = "fd00:a::f", "fd00:a::10"
LOCAL = "fe80::ff:fe00:1"


class Exit:
    def __init__(self):
        self.sent = []

    def send(self, peer, payload):
        self.sent.append((str(ipaddress.ip_address(peer.address)), peer.port, bytes(payload)))

    def close(self):
        pass


class World:
    """One guest beside another; all that it brings about is kept."""

    def __init__(self, *, shared=True):
        self.now = 1000.0
        self.frames, self.forwarded, self.pinged = [], [], []
        self.sockets, self.questions, self.exit = [], [], Exit()
        self.gateway = Gateway(
            ADDRESSING,
            mtu=1500,
            outside=True,
            domain="atoll.internal",
            resolve=lambda _asker, query, _answer: self.questions.append(query),
            now=self.now,
        )
        macs = parse_mac(MAC) + ADDRESSING.mac
        self.flows = Flows(self.transmit, self, macs, mtu=1500, clock=lambda: self.now, secret=bytes(16))
        self.associations = Associations(self.transmit, self, macs, mtu=1500)
        lease = Lease(parse_mac(MAC), *ADDRESSING.machine(0), "guest")
        self.station = Station(
            lease,
            self.gateway,
            self.flows,
            self.associations,
            neighbourhood=self if shared else None,
            pings=self,
            transmit=self.transmit,
            clock=lambda: self.now,
        )
        self.gateway.add(lease, self.station)
        self.other = object()
        self.gateway.neighbours.pin(ADDRESSING.machine(1)[1].packed, parse_mac(OTHER_MAC), self.other)

    def transmit(self, parts):
        self.frames += map(Ether, split(b"".join(parts)))

    def forward(self, station, destination, frame):
        assert station is self.station
        assert frame[:6] == destination
        self.forwarded.append(frame)

    def ping(self, packet):
        self.pinged.append(packet)

    def open(self, _ends):
        self.sockets.append(Socket())
        return self.sockets[-1]

    def open_exit(self, _association):
        return self.exit

    def allows(self, _guest, peer):
        return peer.port != 9

    def send(self, packet, *, to=GATEWAY, mac=MAC, kind=None):
        """Frames that the guest gets at once."""
        frame = packet if isinstance(packet, bytes) else bytes(Ether(dst=to, src=mac) / packet)
        if kind is not None:
            frame = frame[:12] + kind.to_bytes(2) + frame[14:]
        buffer = memoryview(b"before" + frame + b"after")
        self.frames = []
        self.station.frame(buffer, 6, 6 + len(frame))
        self.flows.acknowledge()
        return self.frames


def syn(source=FOUR, sport=40000):
    layer = IPv6 if ":" in source else IP
    return layer(src=source, dst="203.0.113.5" if layer is IP else "2001:db8::5") / TCP(
        sport=sport, dport=443, seq=7, flags="S"
    )


@pytest.mark.parametrize("source", [FOUR, SIX])
def test_a_guest_s_own_packets_go_their_way(source):
    world = World()
    layer = IP if source == FOUR else IPv6
    to = "203.0.113.5" if source == FOUR else "2001:db8::5"
    assert not world.send(syn(source))
    world.send(layer(src=source, dst=to) / UDP(sport=5, dport=7) / b"hello")
    world.send(layer(src=source, dst=to) / (ICMP() if source == FOUR else ICMPv6EchoRequest()))
    assert len(world.sockets) == 1
    assert world.exit.sent == [(to, 7, b"hello")]
    assert len(world.pinged) == 1
    assert world.station.refused == 0
    assert not world.forwarded


@pytest.mark.parametrize(
    ("packet", "options"),
    [
        (syn(), {"mac": OTHER_MAC}),
        (syn(OTHER), {}),
        (syn("10.0.2.2"), {}),
        (syn("127.0.0.1"), {}),
        (syn("0.0.0.0"), {}),
        (syn(OTHER_SIX), {}),
        (syn("fd00:a::2"), {}),
        (syn("2001:db8::1"), {}),
        (syn("::1"), {}),
        (syn("::"), {}),
        (syn("::ffff:10.0.2.15"), {}),
        (IP(src=OTHER, dst="203.0.113.5") / UDP(dport=53), {}),
        (IP(src="0.0.0.0", dst="203.0.113.5") / UDP(dport=53), {}),
        (IPv6(src="::", dst="2001:db8::5") / ICMPv6EchoRequest(), {}),
        (ARP(op=1, hwsrc=MAC, psrc=FOUR, pdst="10.0.2.2"), {"mac": OTHER_MAC}),
        (syn(), {"kind": 0x8100}),
        (Raw(b"\x45" + bytes(60)), {"kind": 0x88CC}),
    ],
)
def test_what_is_not_from_the_guest_s_own_addresses_is_refused_and_counted(packet, options):
    world = World()
    assert not world.send(packet, **options)
    assert world.station.refused == 1
    assert not world.sockets
    assert not world.exit.sent
    assert not world.send(packet, **({"to": OTHER_MAC} | options))
    assert not world.forwarded


@pytest.mark.parametrize(
    "question",
    [
        IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / BOOTP(chaddr=b"1") / DHCP(),
        IPv6(src="::", dst="ff02::1:ff00:f", hlim=255) / ICMPv6ND_NS(tgt=SIX),
    ],
)
def test_one_without_an_address_may_ask_for_one(question):
    world = World()
    world.send(question, to=ALL)
    assert world.station.refused == 0


def test_the_gateway_s_address_is_nobody_else_s():
    world = World()
    (answer,) = world.send(ARP(op=1, hwsrc=MAC, psrc=FOUR, pdst="10.0.2.2"), to=ALL)
    assert (answer[ARP].op, answer[ARP].hwsrc, answer.dst) == (2, GATEWAY, MAC)
    assert not world.send(ARP(op=1, hwsrc=MAC, psrc=OTHER, pdst="10.0.2.2"), to=ALL)
    assert not world.send(ARP(op=1, hwsrc=MAC, psrc=FOUR, pdst=OTHER), to=ALL)


@pytest.mark.parametrize(
    "lie",
    [
        ARP(op=2, hwsrc=MAC, psrc="10.0.2.2", hwdst=OTHER_MAC, pdst=OTHER),
        ARP(op=2, hwsrc=OTHER_MAC, psrc=FOUR, hwdst=OTHER_MAC, pdst=OTHER),
        ARP(op=1, hwsrc=MAC, psrc=OTHER, pdst=OTHER),
        IPv6(src=SIX, dst=OTHER_SIX, hlim=255) / ICMPv6ND_NA(tgt="fd00:a::2"),
        IPv6(src=SIX, dst=OTHER_SIX, hlim=255) / ICMPv6ND_NA(tgt=OTHER_SIX),
        IPv6(src=SIX, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt="2001:db8::1"),
        IPv6(src=LOCAL, dst="ff02::1", hlim=255) / ICMPv6ND_RA(),
        IPv6(src=LOCAL, dst="ff02::1", hlim=255) / IPv6ExtHdrDestOpt() / ICMPv6ND_RA(),
        IPv6(src=LOCAL, dst="ff02::1", hlim=255) / IPv6ExtHdrFragment(m=1) / ICMPv6ND_RA(),
        IPv6(src=LOCAL, dst="ff02::1", hlim=255)
        / IPv6ExtHdrFragment(m=1, nh=60)
        / Raw(b"\x3a\x02" + bytes(6)),
        IPv6(src=LOCAL, dst=OTHER_SIX, hlim=255) / ICMPv6ND_Redirect(),
        IP(src=FOUR, dst="255.255.255.255") / UDP(sport=67, dport=68) / BOOTP(op=2) / DHCP(),
        IP(src=FOUR, dst=OTHER, flags="MF") / UDP(sport=67, dport=68) / BOOTP(op=2) / DHCP(),
        IPv6(src=LOCAL, dst=OTHER_SIX) / UDP(sport=547, dport=546) / b"\x02",
    ],
    ids=lambda packet: packet.summary()[:60],
)
@pytest.mark.parametrize("to", [OTHER_MAC, ALL])
def test_lies_about_addresses_reach_no_other_guest(lie, to):
    world = World()
    world.send(lie, to=to)
    assert not world.forwarded


@pytest.mark.parametrize(
    "truth",
    [
        ARP(op=2, hwsrc=MAC, psrc=FOUR, hwdst=OTHER_MAC, pdst=OTHER),
        ARP(op=1, hwsrc=MAC, psrc="0.0.0.0", pdst=FOUR),
        IPv6(src=SIX, dst=OTHER_SIX, hlim=255) / ICMPv6ND_NA(tgt=SIX) / ICMPv6NDOptDstLLAddr(lladdr=MAC),
        IPv6(src=SIX, dst="ff02::1:ff00:10", hlim=255) / ICMPv6ND_NS(tgt=OTHER_SIX),
        IP(src=FOUR, dst=OTHER) / UDP(sport=1, dport=2) / b"hello",
        IP(src=FOUR, dst=OTHER, frag=100) / Raw(b"\0\0\0\x44" + bytes(20)),
        IPv6(src=SIX, dst=OTHER_SIX) / IPv6ExtHdrFragment(nh=58, offset=180) / Raw(b"\x86" + bytes(20)),
        syn(),
    ],
    ids=lambda packet: packet.summary()[:60],
)
def test_what_is_true_reaches_another_guest_as_it_was_sent(truth):
    world = World()
    world.send(truth, to=OTHER_MAC)
    assert world.forwarded == [bytes(Ether(dst=OTHER_MAC, src=MAC) / truth)]
    assert world.station.refused == 0


def test_on_a_network_that_is_not_shared_nobody_sees_another():
    world = World(shared=False)
    world.send(ARP(op=1, hwsrc=MAC, psrc=FOUR, pdst=OTHER), to=ALL)
    world.send(syn(), to=OTHER_MAC)
    assert not world.forwarded
    assert not world.sockets


def test_a_datagram_that_may_not_go_is_answered_with_why():
    world = World()
    (answer,) = world.send(IP(src=FOUR, dst="203.0.113.5") / UDP(sport=5, dport=9) / b"x")
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 13)
    assert (answer[IP].src, answer[IP].dst) == ("10.0.2.2", FOUR)
    (answer,) = world.send(IP(src=FOUR, dst="203.0.113.5", proto=99) / b"x")
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 2)


def test_a_connection_is_the_same_whether_its_segments_come_in_fragments():
    world = World()
    world.send(syn())
    world.sockets[0].flow.connected(world.now)
    (answer,) = world.frames
    payload = bytes(range(256)) * 8
    segment = IP(src=FOUR, dst="203.0.113.5", id=3) / TCP(
        sport=40000, dport=443, seq=8, ack=answer[TCP].seq + 1, flags="A", window=500
    )
    for piece in (segment / payload).fragment(1000):
        world.send(piece)
    assert bytes(world.sockets[0].came) == payload


@given(st.binary(max_size=100), st.sampled_from([0x0800, 0x0806, 0x86DD, 5]), st.sampled_from([GATEWAY, ALL]))
def test_any_frame_is_taken_or_dropped_without_an_error(data, kind, to):
    world = World()
    world.send((parse_mac(to) + parse_mac(MAC) + kind.to_bytes(2) + data)[: len(data) + 14])
    world.send(data)


TEMPLATES = [
    syn(),
    syn(SIX),
    IP(src=FOUR, dst="203.0.113.5") / UDP(sport=5, dport=7) / b"hello",
    IP(src=FOUR, dst="10.0.2.2") / UDP(sport=68, dport=67) / BOOTP(chaddr=parse_mac(MAC)) / DHCP(),
    IP(src=FOUR, dst="10.0.2.3") / UDP(sport=68, dport=53) / bytes(20),
    IP(src=FOUR, dst="203.0.113.5", flags="MF") / UDP(sport=5, dport=7) / bytes(24),
    IPv6(src=SIX, dst="ff02::1:2") / UDP(sport=546, dport=547) / bytes(30),
    IPv6(src=SIX, dst="ff02::2", hlim=255) / ICMPv6ND_NS(tgt="fd00:a::2"),
    IPv6(src=SIX, dst="2001:db8::5") / IPv6ExtHdrFragment(m=1) / UDP() / bytes(24),
    ARP(op=1, hwsrc=MAC, psrc=FOUR, pdst="10.0.2.2"),
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([bytes(Ether(dst=GATEWAY, src=MAC) / packet) for packet in TEMPLATES]),
            st.lists(st.tuples(st.integers(12, 90), st.integers(0, 255)), max_size=4),
            st.none() | st.integers(0, 90),
        ),
        max_size=8,
    )
)
def test_frames_that_are_nearly_right_raise_nothing(frames):
    world = World()
    for frame, changes, end in frames:
        changed = bytearray(frame)
        for at, value in changes:
            if at < len(changed):
                changed[at] = value
        world.send(bytes(changed[:end]))
    assert len(world.station._reassembly._parts) <= 32


def test_groups_get_no_connections_and_nobody_is_told_what_they_did_not_take():
    world = World()
    for to, address in ((ALL, "10.0.2.255"), (ALL, "203.0.113.5"), (GATEWAY, "224.0.0.9"), (ALL, "10.0.2.2")):
        ends = IP(src=FOUR, dst=address)
        assert world.send(ends / TCP(sport=4000, dport=80, flags="S"), to=to) == []
        assert world.send(ends / UDP(sport=4000, dport=9) / b"x", to=to) == []
        assert world.send(IP(src=FOUR, dst=address, proto=99) / Raw(b"x"), to=to) == []
    assert not world.sockets


class Deciding:
    """Lets a guest send to one port."""

    def __init__(self, port=0):
        self.port = port
        self.asked = []

    def may_tell(self, protocol, address, port):
        assert len(address) in {4, 16}
        self.asked.append((protocol.value, port))
        return port == self.port


@pytest.fixture
def gated():
    world = World()
    world.open = lambda _ends: None
    world.allows = lambda _guest, _peer: False
    world.decider = Deciding(7000)
    world.gate = world.station.neighbourhood = Gate(world, world.decider, lambda: world.now)
    return world


def beside(packet, source=FOUR, to=OTHER):
    return (IPv6 if ":" in source else IP)(src=source, dst=to) / packet


def tell(world, packet):
    """Whether a neighbour gets a packet."""
    world.forwarded = []
    world.send(packet, to=OTHER_MAC)
    return bool(world.forwarded)


@pytest.mark.parametrize(("own", "other"), [(FOUR, OTHER), (SIX, OTHER_SIX)])
def test_a_guest_with_a_policy_tells_its_neighbours_what_it_may(gated, own, other):
    assert tell(gated, beside(TCP(sport=4000, dport=7000, flags="S"), own, other))
    assert tell(gated, beside(TCP(sport=4000, dport=7000, flags="A"), own, other))
    assert gated.decider.asked == [("tcp", 7000)]
    assert not tell(gated, beside(TCP(sport=4000, dport=22, flags="S"), own, other))
    refusal = gated.frames[-1]
    assert refusal[TCP].flags == "RA"
    assert not tell(gated, beside(UDP(sport=4000, dport=22) / b"x", own, other))
    assert not tell(gated, beside(ICMPv6EchoRequest() if ":" in own else ICMP(), own, other))
    gated.gate.decide_again()
    gated.decider.port = 1
    assert not tell(gated, beside(TCP(sport=4000, dport=7000, flags="A"), own, other))
    assert gated.frames[-1][TCP].flags == "R"


def test_what_says_no_port_goes_where_the_guest_has_something_to_do(gated):
    later = IP(src=FOUR, dst=OTHER, frag=100, proto=17) / Raw(b"x" * 64)
    other = IP(src=FOUR, dst=OTHER, proto=47) / Raw(b"x" * 64)
    unreachable = beside(ICMP(type=3, code=3) / Raw(b"x" * 28))
    assert not tell(gated, later)
    assert not tell(gated, unreachable)
    asked = bytes(Ether(src=OTHER_MAC, dst=MAC) / beside(UDP(sport=53, dport=4000) / b"?", OTHER, FOUR))
    gated.gate.hear(asked)
    assert tell(gated, beside(UDP(sport=4000, dport=53) / b"!"))
    assert not tell(gated, beside(UDP(sport=4001, dport=53) / b"!"))
    assert tell(gated, later)
    assert tell(gated, unreachable)
    assert not tell(gated, other)
    gated.now += 301
    assert not tell(gated, beside(UDP(sport=4000, dport=53) / b"!"))
    assert not tell(gated, later)


def test_addresses_are_found_whatever_the_policy_is(gated):
    solicit = IPv6(src=SIX, dst=OTHER_SIX) / ICMPv6ND_NS(tgt=OTHER_SIX)
    assert tell(gated, solicit)
    assert tell(gated, ARP(hwsrc=MAC, psrc=FOUR, pdst=OTHER))


@given(st.lists(st.binary(max_size=120), max_size=20))
def test_any_frames_leave_the_gate_as_it_was_or_less(frames):
    world = World()
    gate = Gate(world, Deciding(), lambda: world.now)
    for frame in frames:
        gate.hear(frame)
        for kind in (b"\x08\x00\x45", b"\x86\xdd\x60"):
            whole = bytes.fromhex("020000000002020000000001") + kind + frame
            gate.hear(whole)
            gate.forward(world.station, whole[:6], whole)
