"""The network's end of TCP: headers against scapy, connections against a plain and honest guest."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from tcp_peers import ENDS, ENDS_6, GATEWAY_MAC, GUEST_MAC, MASK, Guest, Segment, Socket, World

from atoll.network.tcp.flow import State
from atoll.network.tcp.flows import Ends, Flows, ends_of
from atoll.network.tcp.inbox import LEAST_WINDOW, WINDOW, Inbox
from atoll.network.tcp.outstanding import LEAST_KEPT, Outstanding
from atoll.network.tcp.segment import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    Options,
    Template,
    parse_options,
    syn_options,
)
from atoll.network.wire import checksum
from atoll.network.wire.checksum import ones_sum, piece_sum

NUMBER = st.integers(0, MASK)


class Allowance:
    allowance = 100_000
    kept = 0


FLAGS = st.integers(0, 63)


def random_bytes(count, seed=1):
    return bytes((seed * 31 + at * 7 + (at >> 8)) & 0xFF for at in range(count))


# Headers


@given(
    version=st.sampled_from([4, 6]),
    sequence=NUMBER,
    acknowledged=NUMBER,
    flags=FLAGS,
    window=st.integers(0, 65535),
    payload=st.binary(max_size=40),
    options=st.sampled_from([b"", syn_options(1460, 7), syn_options(536, None)]),
)
def test_a_header_is_what_scapy_makes_of_it(version, sequence, acknowledged, flags, window, payload, options):
    ends = ENDS if version == 4 else ENDS_6
    kind = b"\x08\0" if version == 4 else b"\x86\xdd"
    template = Template(
        GUEST_MAC + GATEWAY_MAC + kind, ends.other, ends.guest, ends.other_port, ends.guest_port
    )
    head = template.head(
        sequence, acknowledged, flags, window, size=len(payload), total=ones_sum(payload), options=options
    )
    assert int.from_bytes(head[:4]) == len(head) + len(payload) - 4
    frame = Ether(head[4:] + payload)
    packet, tcp = frame.payload, frame[TCP]
    assert isinstance(packet, IP if version == 4 else IPv6)
    assert (tcp.seq, tcp.ack, int(tcp.flags), tcp.window) == (sequence, acknowledged, flags, window)
    assert (tcp.sport, tcp.dport, bytes(tcp.payload)) == (443, 40000, payload)
    sums = tcp.chksum, getattr(packet, "chksum", None)
    made = frame.copy()
    del made[TCP].chksum
    if version == 4:
        del made.payload.chksum
    made = Ether(bytes(made))
    assert [total % 65535 for total in sums if total is not None] == [
        total % 65535
        for total in (made[TCP].chksum, getattr(made.payload, "chksum", None))
        if total is not None
    ]
    assert bytes(made)[:14] == head[4:18]


@given(mss=st.integers(1, 65535), shift=st.none() | st.integers(0, 14))
def test_options_are_read_as_they_are_written_and_as_scapy_does(mss, shift):
    options = syn_options(mss, shift)
    assert len(options) % 4 == 0
    assert parse_options(memoryview(options)) == Options(mss, shift)
    found = dict(TCP(bytes(TCP(dataofs=5 + len(options) // 4))[:20] + options).options)
    assert (found["MSS"], found.get("WScale")) == (mss, shift)


@given(st.binary(max_size=40))
@example(b"\x02\x04\x05")
@example(b"\x03\x00\x03\x03\x0f")
def test_options_of_any_bytes_raise_nothing(data):
    options = parse_options(memoryview(data))
    assert options.shift is None or options.shift <= 14


def test_a_shift_beyond_the_largest_counts_as_the_largest():
    assert parse_options(memoryview(b"\x01\x03\x03\xff")).shift == 14


@given(data=st.binary(max_size=300), pad=st.sampled_from([0, 1, 4096, 65521]))
def test_a_sum_is_that_of_the_words(data, pad):
    data = data + b"\xff" * pad
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) & 1))
    assert ones_sum(data) % 65535 == sum(words) % 65535


@given(data=st.binary(max_size=2000), start=st.integers(0, 300), cut=st.integers(0, 300))
def test_the_library_sums_as_python_does(data, start, cut):
    assert checksum._SUM is not None, "it is compiled with this package"
    data += bytes(600)
    size = len(data) - start - cut
    assert piece_sum(data, start, size) % 65535 == ones_sum(data[start : start + size]) % 65535


def test_without_the_library_python_sums(monkeypatch):
    monkeypatch.setattr(checksum, "_SUM", None)
    data = random_bytes(70_001)
    assert piece_sum(data, 3, 65_000) == ones_sum(data[3:65_003])


# Outstanding


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=12), st.data())
def test_what_is_outstanding_is_the_end_of_what_was_added(pieces, data):
    shared = Allowance()
    outstanding, whole, gone = Outstanding(MASK - 5, shared), b"", 0
    for piece in pieces:
        outstanding.add(piece)
        whole += piece
        count = data.draw(st.integers(0, len(whole) - gone))
        outstanding.acknowledge(count)
        gone += count
        assert outstanding.size == shared.kept == len(whole) - gone
        assert outstanding.first == (MASK - 5 + gone) & MASK
        first = bytes(outstanding.piece(0, 4))
        assert whole[gone:].startswith(first)
        assert bool(first) == bool(outstanding.size)


# Connections


@pytest.mark.parametrize("ends", [ENDS, ENDS_6], ids=["IPv4", "IPv6"])
def test_a_guest_is_answered_when_the_host_s_side_is_there(ends):
    world = World(ends=ends)
    world.guest.connect()
    world.run()
    assert not world.frames
    assert not world.guest.is_open
    world.guest.connect()  # it asks again
    world.run()
    assert len(world.sockets) == 1
    world.socket.flow.connected(world.now)
    (frame,) = world.frames
    answer = Segment(frame)
    assert answer.flags == SYN | ACK
    assert parse_options(memoryview(answer.options)) == Options(1440 if ends is ENDS_6 else 1460, 7)
    world.run()
    assert world.guest.is_open
    assert world.socket.is_reading


def test_a_guest_that_does_not_scale_is_not_told_scaled_windows():
    world = World()
    world.feed(7, 0, SYN, 65535)
    world.socket.flow.connected(world.now)
    answer = Segment(world.frames[0])
    assert parse_options(memoryview(answer.options)) == Options(1460, None)
    assert answer.window == 65535
    world.frames.clear()
    world.feed(8, answer.sequence + 1, ACK | PSH, 500, payload=b"x" * 536)
    world.flows.acknowledge()
    world.flows.acknowledge_all()
    assert Segment(world.frames[0]).window == 65535
    world.socket.to_send += bytes(2000)
    world.frames.clear()
    world.socket.pump(world.now)
    assert [len(Segment(frame).payload) for frame in world.frames] == [500]


@pytest.mark.parametrize("refuse", [True, False])
def test_a_refusal_reaches_the_guest_as_it_happened(refuse):
    world = World(refuse=refuse)
    world.feed(7, 0, SYN, 1000)
    if not refuse:
        assert not world.frames
        world.socket.flow.reset()
        assert world.socket.over == "reset"
    (frame,) = world.frames
    answer = Segment(frame)
    assert (answer.flags, answer.sequence, answer.acknowledged) == (RST | ACK, 0, 8)
    assert not world.flows.table


def test_a_segment_of_no_connection_is_reset_as_the_standard_has_it():
    world = World()
    world.feed(100, 555, ACK, 10, payload=b"abc")
    world.feed(100, 0, FIN, 10, payload=b"abc")
    world.feed(100, 555, RST | ACK, 10)
    answers = [Segment(frame) for frame in world.frames]
    assert [(each.flags, each.sequence, each.acknowledged) for each in answers] == [
        (RST, 555, 0),
        (RST | ACK, 0, 104),
    ]


def test_bytes_and_ends_pass_both_ways():
    world = World()
    world.connect()
    world.guest.sent += random_bytes(5000)
    world.socket.to_send += random_bytes(7000, 2)
    world.guest.push()
    world.run()
    assert bytes(world.socket.came) == random_bytes(5000)
    assert bytes(world.guest.came) == random_bytes(7000, 2)
    world.guest.wants_end = True
    world.guest.push()
    world.run()
    assert world.socket.ended
    world.socket.to_send += b"after the guest's end"
    world.run()
    assert world.guest.came.endswith(b"after the guest's end")
    assert world.socket.over is None
    world.socket.ends = True
    world.run()
    assert world.guest.has_fin
    assert world.socket.over == "ended"
    assert world.flows.allowance == world.allowance
    assert not world.flows.kept


def test_the_last_end_is_acknowledged_also_when_it_is_the_guest_s():
    world = World()
    world.connect()
    world.socket.ends = True
    world.run()
    assert world.guest.has_fin
    world.guest.wants_end = True
    world.guest.push()
    world.run()
    assert world.socket.over == "ended"
    assert world.is_done()
    assert not world.guest.was_reset


def test_both_may_end_at_once():
    world = World()
    world.connect()
    guest = world.guest
    guest.wants_end = guest.sent_fin = world.socket.ends = True
    world.socket.pump(world.now)
    world.feed(8, guest.expected, FIN | ACK, 500)
    guest.next = (guest.next + 1) & MASK
    world.flows.acknowledge()
    assert world.socket.over is None
    world.run()
    assert world.socket.over == "ended"
    assert world.is_done()


def test_a_guest_s_reset_counts_only_at_the_number_that_is_expected():
    world = World()
    world.connect()
    world.feed(9, 0, RST, 0)
    assert world.socket.over is None
    world.flows.acknowledge()
    assert Segment(world.frames[-1]).flags == ACK  # the challenge of RFC 5961
    world.feed(8, 0, RST, 0)
    assert world.socket.over == "reset"
    assert not world.flows.table


def test_a_guest_that_has_started_anew_gets_rid_of_its_former_connection():
    world = World()
    world.connect()
    world.feed(99_999, 0, SYN, 500)
    world.flows.acknowledge()
    challenge = Segment(world.frames[-1])
    assert (challenge.flags, challenge.acknowledged) == (ACK, 8)
    world.feed(challenge.acknowledged, 0, RST, 0)
    world.feed(99_999, 0, SYN, 500)
    assert len(world.sockets) == 2


@pytest.mark.parametrize("answer", ["answers", "refuses", "is silent"])
def test_the_network_connects_to_a_guest(answer):
    world = World()
    socket = Socket()
    flow = world.flows.accept(socket, ENDS._replace(other_port=0))
    world.ends = ends_of(next(iter(world.flows.table)))
    assert world.ends.other_port >= 49152
    flow.open(world.now)
    asked = Segment(world.frames.pop())
    assert (asked.flags, asked.acknowledged) == (SYN, 0)
    if answer == "answers":
        world.feed(500, asked.sequence + 1, SYN | ACK, 1000, syn_options(1400, 2))
        assert flow.state is State.OPEN
        assert socket.is_reading
        assert Segment(world.frames.pop()).acknowledged == 501
        world.feed(501, asked.sequence + 1, RST | ACK, 0)
    elif answer == "refuses":
        world.feed(0, asked.sequence + 2, RST | ACK, 0)  # of another question
        assert flow.state is State.SYN_SENT
        world.feed(0, asked.sequence + 1, RST | ACK, 0)
    else:
        for _ in range(60):
            world.now += 4.0
            world.flows.tick(world.now)
    assert socket.over == "reset"
    assert not world.flows.table


def test_a_guest_that_remembers_another_connection_is_asked_again():
    world = World()
    flow = world.flows.accept(Socket(), ENDS)
    flow.open(world.now)
    asked = Segment(world.frames.pop())
    world.feed(77, 4242, ACK, 1000)
    reset, again = map(Segment, world.frames)
    assert (reset.flags, reset.sequence) == (RST, 4242)
    assert (again.flags, again.sequence) == (SYN, asked.sequence)


# Time


def test_a_silent_guest_is_asked_and_given_up():
    world = World()
    world.connect()
    silent = world.now
    world.guest.take = lambda segment: asked.append((world.now - silent, segment.flags))
    asked = []
    while world.socket.over is None:
        world.tick(10.0)
        assert world.now - silent < 1000
    assert world.socket.over == "reset"
    assert asked[0][0] > 600
    assert all(flags == ACK for _, flags in asked[:-1])
    assert asked[-1][1] & RST


def test_a_guest_that_answers_is_kept():
    world = World()
    world.connect()
    for _ in range(200):
        world.tick(20.0)
    assert world.socket.over is None


def test_what_is_not_acknowledged_is_sent_again_less_and_less_often_and_then_given_up():
    world = World()
    world.connect()
    world.socket.to_send += b"hello"
    world.drops = 1 << 30
    world.run()
    times = []
    start = world.now
    while world.socket.over is None:
        before = world.dropped
        world.tick(0.25)
        if world.dropped > before:
            times.append(world.now - start)
        assert world.now - start < 300
    gaps = [after - before for before, after in itertools.pairwise(times[:-1])]
    assert gaps == sorted(gaps)
    assert 1 <= times[0] < 2
    assert world.now - start >= 120


def test_a_guest_with_a_closed_window_that_answers_is_kept():
    """RFC 9293, section 3.8.6.1: as long as it acknowledges probes, the connection stays open."""
    world = World(capacity=2000)
    world.connect()
    world.socket.to_send += bytes(5000)
    world.run()
    assert world.guest.unread == 2000
    # It had less room than it had said: what was sent to it is lost, and its window is closed.
    flow = world.socket.flow
    flow.send(b"lost", world.now)
    world.frames.clear()
    for _ in range(100):
        world.tick(5.0)
    assert world.socket.over is None


def test_a_window_that_opens_while_the_guest_cannot_tell_is_asked_for():
    world = World(capacity=3000)
    world.connect()
    world.socket.to_send += random_bytes(9000)
    world.run()
    assert len(world.guest.came) == 3000
    world.guest.unread = 0  # it reads, and what it tells is lost
    world.tick(6.0)
    assert len(world.guest.came) >= 6000


def test_three_equal_acknowledgements_bring_what_was_lost_without_waiting():
    world = World(mtu=1500, capacity=60_000)
    world.connect()
    world.socket.to_send += random_bytes(30_000)
    world.drops = 1
    world.run()
    assert world.dropped == 1
    assert bytes(world.guest.came) == random_bytes(30_000)


def test_after_a_loss_less_is_sent_at_once_and_more_again_as_it_arrives():
    world = World(capacity=500_000, shift=4)
    world.connect()
    flow = world.socket.flow
    assert flow.room() == 500_000
    world.socket.to_send += bytes(30_000)
    world.drops = 1 << 30
    world.run()
    world.tick(1.1)
    assert flow.room() <= 0
    world.drops = 0
    world.tick(5.0)
    assert len(world.guest.came) == 30_000
    assert 1460 <= flow.room() <= 40_000


# When acknowledgements are sent


def established(**others):
    world = World(**others)
    world.feed(7, 0, SYN, 65535, syn_options(others.get("mss", 1460), 7))
    flow = world.socket.flow
    flow.connected(world.now)
    answer = Segment(world.frames.pop())
    world.feed(8, answer.sequence + 1, ACK, 500)
    return world, flow, answer.sequence + 1


def fed(world, at, first, payload):
    """The guest sends ``payload``, whose number is ``at``; what it is told at once, and its next number."""
    world.feed(at, first, ACK, 500, payload=payload)
    world.flows.acknowledge()
    frames, world.frames = world.frames, []
    return [Segment(frame) for frame in frames], at + len(payload)


def test_an_answer_carries_the_acknowledgement_of_its_question():
    world, flow, first = established()
    told, at = fed(world, 8, first, b"question")
    assert not told
    flow.send(b"answer", world.now)
    [answer] = map(Segment, world.frames)
    assert (answer.acknowledged, answer.payload) == (at, b"answer")
    world.frames.clear()
    world.flows.acknowledge_all()
    assert not world.frames


def test_who_is_not_answered_soon_is_acknowledged_at_once_from_then_on_until_answers_come_again():
    world, flow, first = established()
    told, at = fed(world, 8, first, b"one")
    assert not told
    world.flows.acknowledge_all()
    assert Segment(world.frames.pop()).acknowledged == at
    for turn in range(4):
        told, at = fed(world, at, first + turn, b"more")
        assert [segment.acknowledged for segment in told] == ([at] if turn < 3 else [])
        flow.send(b"!", world.now)
        world.frames.clear()
        world.feed(at, first + turn + 1, ACK, 500)


def test_fewer_acknowledgements_are_sent_to_one_who_does_not_wait_for_them_and_more_to_one_who_does():
    world, _, first = established()
    segment, at, gaps = bytes(1460), 8, [0]
    for _ in range(200):
        told, at = fed(world, at, first, segment)
        gaps[-1] += 1
        gaps += [0] if told else []
    assert gaps[0] == 4
    assert max(gaps) == 16
    for _ in range(6):  # it waits
        _, at = fed(world, at, first, segment)
        world.flows.acknowledge_all()
        world.frames.clear()
    told, at = fed(world, at, first, segment)
    assert told


def test_only_the_last_of_what_there_is_is_pushed():
    world, flow, _ = established()
    flow.send(bytes(3000), world.now, more=True)
    flow.send(bytes(3000), world.now)
    assert [Segment(frame).flags & PSH for frame in world.frames] == [0, 0, 0, PSH, PSH, PSH]


def test_any_number_of_flows_may_send_alike():
    world = World()
    world.flows.allowance = 8 << 20
    windows = {}
    for turn in range(200):
        for port in range(1, 9):
            world.ends = ENDS._replace(guest_port=port)
            if not turn:
                world.feed(7, 0, SYN, 65535, syn_options(1460, 7))
                world.socket.flow.connected(world.now)
                windows[port] = (8, Segment(world.frames.pop()).sequence + 1, 1460)
            at, first, window = windows[port]
            size = min(60_000, window)
            world.feed(at, first, ACK, 500, payload=bytes(size))
            world.flows.acknowledge()
            world.flows.acknowledge_all()
            window -= size
            while world.frames:
                window = Segment(world.frames.pop()).window << 7
            windows[port] = (at + size, first, window)
    sizes = [window for _, _, window in windows.values()]
    assert min(sizes) > 700_000
    assert max(sizes) < 1.3 * min(sizes)


# Bounds


def test_a_guest_is_told_no_more_than_there_is_room_for():
    world = World()
    world.connect()
    guest, socket = world.guest, world.socket
    socket.room = 0
    guest.sent += bytes(WINDOW + (2 << 20))
    for _ in range(100):
        guest.push()
        world.run()
        if guest.acked_bytes == guest.may_send():
            break
    assert guest.acked_bytes <= WINDOW
    assert WINDOW - guest.acked_bytes < 1 << 8
    # What it sends beyond is not taken.
    inbox = socket.flow._inbox
    waits = inbox.waiting
    guest.say(guest.acked_bytes, bytes(5000))
    world.run()
    assert inbox.waiting - waits < 1 << 8
    socket.room = 1 << 40
    world.run()
    assert guest.may_send() > guest.acked_bytes


def test_all_flows_together_hold_no_more_than_is_allowed_and_a_little_for_each():
    world = World()
    world.flows.allowance = 1 << 20
    promised = 0
    for port in range(1, 65):
        world.ends = ENDS._replace(guest_port=port)
        world.feed(7, 0, SYN, 65535, syn_options(1460, 7))
        world.socket.flow.connected(world.now)
        answer = Segment(world.frames.pop())
        world.feed(8, answer.sequence + 1, ACK, 500)
        world.feed(8, answer.sequence + 1, ACK, 500, payload=b"1")
        world.flows.acknowledge_all()
        promised += Segment(world.frames.pop()).window << 7
        assert promised >= LEAST_WINDOW * port * 15 // 16
    assert promised <= (1 << 20) + 64 * (LEAST_WINDOW + 65536)
    world.flows.abandon()
    assert world.flows.allowance == 1 << 20


def test_guests_that_acknowledge_nothing_are_kept_little_for(monkeypatch):
    monkeypatch.setattr("atoll.network.tcp.outstanding.MOST_KEPT", 1 << 20)
    world = World()
    for port in range(1, 33):
        world.ends = ENDS._replace(guest_port=port)
        world.feed(7, 0, SYN, 65535, syn_options(1460, 14))
        world.socket.flow.connected(world.now)
        answer = Segment(world.frames.pop())
        world.feed(8, answer.sequence + 1, ACK, 65535)
        world.socket.to_send += bytes(100_000)
        world.socket.pump(world.now)
        world.frames.clear()
    assert world.flows.kept <= (1 << 20) + 100_000 + 32 * LEAST_KEPT
    # Each goes on as soon as its own is acknowledged.
    last = world.socket
    assert not last.is_reading
    world.feed(8, answer.sequence + 1 + LEAST_KEPT, ACK, 65535)
    assert last.is_reading
    world.flows.abandon()
    assert not world.flows.kept


class Sink:
    def __init__(self):
        self.room, self.got, self.wants = 0, bytearray(), False

    def write(self, data):
        taken = min(self.room, len(data))
        self.room -= taken
        self.got += data[:taken]
        return taken

    def want_drain(self):
        self.wants = True


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 3000)),
            st.tuples(st.just("drain"), st.integers(0, 3000)),
            st.tuples(st.just("offer"), st.sampled_from([65535, WINDOW])),
            st.tuples(st.just("others"), st.integers(-200_000, 200_000)),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_an_inbox_keeps_account_of_what_it_promised_and_holds(steps, ends):
    shared, sink = Allowance(), Sink()
    inbox = Inbox(shared, sink)
    inbox.begin(MASK - 1000)
    sent, others = bytearray(), 0
    for what, count in steps:
        if what == "take":
            piece = random_bytes(min(count, inbox.fits()), len(sent))
            inbox.take(memoryview(piece))
            sent += piece
        elif what == "drain":
            sink.room += count
            inbox.drain()
        elif what == "offer":
            assert inbox.offer(count) == inbox.fits()
        else:
            shared.allowance += count
            others += count
        assert shared.allowance + inbox.fits() + inbox.waiting - others == 100_000
        assert inbox.fits() + inbox.waiting <= WINDOW
        assert bytes(sink.got) == bytes(sent[: len(sink.got)])
        assert inbox.next == (MASK - 999 + len(sent)) & MASK
    if ends:
        inbox.skip()
    inbox.close()
    assert shared.allowance - others == 100_000


@pytest.mark.parametrize("size", [1, 2])
def test_many_small_segments_cost_no_more_memory_than_large_ones(size):
    inbox = Inbox(Allowance(), Sink())
    inbox.begin(0)
    inbox.offer()
    for at in range(20_000 // size):
        inbox.take(memoryview(random_bytes(size, at)))
    assert len(inbox._pieces) < 100


def test_the_number_of_connections_is_bounded(monkeypatch):
    monkeypatch.setattr("atoll.network.tcp.flows.MOST_FLOWS", 3)
    world = World()
    for port in range(5):
        world.ends = ENDS._replace(guest_port=1000 + port)
        world.feed(7, 0, SYN, 65535)
    assert len(world.flows.table) == len(world.sockets) == 3
    assert [Segment(frame).flags for frame in world.frames] == [RST | ACK] * 2
    assert world.flows.accept(Socket(), ENDS) is None


def flows(secret=b"s" * 16, now=0.0):
    return Flows(lambda _parts: None, None, bytes(12), mtu=1500, clock=lambda: now, secret=secret)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_an_initial_number_follows_from_a_secret_the_ends_and_the_time(one, other):
    key, near = ENDS.key, ENDS._replace(guest_port=40001).key
    assert flows(one)._isn(key) == flows(one)._isn(key)
    assert (flows(one, 2.0)._isn(key) - flows(one, 1.0)._isn(key)) & MASK == 250_000
    if one != other:
        assert flows(one)._isn(key) != flows(other)._isn(key)
    assert abs(flows(one)._isn(key) - flows(one)._isn(near)) > 1


@given(st.binary(min_size=4, max_size=4), st.integers(0, 65535), st.integers(0, 65535))
def test_ends_are_read_back_from_their_key(address, one, other):
    ends = Ends(address, one, bytes(reversed(address)), other)
    assert ends_of(ends.key) == ends
    six = Ends(address * 4, one, ENDS_6.other, other)
    assert ends_of(six.key) == six


# Whatever happens in between, what arrives is what was sent


def junk(world, kind):
    """Segments that change nothing."""
    guest = world.guest
    expected = guest.expected
    far = (guest.una + (1 << 30)) & MASK
    world.feed(
        *[
            (guest.una, (expected + (1 << 24)) & MASK, ACK, 500, b"", b"acknowledges what was not sent"),
            (far, expected, ACK, guest.window(), b"", b"far beyond the window"),
            (far, expected, RST | ACK, 0),
            (far, expected, SYN, 0),
            (guest.una, expected, PSH, guest.window(), b"", b"without ACK"),
            ((guest.una - 1) & MASK, expected, ACK, guest.window()),
        ][kind - 1]
    )


def host_says(world, count):
    if not world.socket.ends:
        world.socket.to_send += random_bytes(count, count)


def host_takes(world, count):
    socket = world.socket
    socket.room = count if socket.room > 1 << 30 else socket.room + count


def host_ends(world, _count):
    world.socket.ends = True


def guest_says(world, count):
    if not world.guest.wants_end:
        world.guest.sent += random_bytes(count, count + 1)


def guest_pushes(world, count):
    world.guest.push(count)


def guest_reads(world, count):
    world.guest.read(count)


def guest_ends(world, _count):
    world.guest.wants_end = True


def guest_repeats(world, count):
    guest = world.guest
    begin = max(0, guest.acked_bytes - count)
    if not guest.sent_fin or guest.acked_bytes < len(guest.sent):
        guest.say(begin, bytes(guest.sent[begin : min(begin + count, guest.may_send())]))


def guest_skips(world, count):
    guest = world.guest
    begin = guest.acked_bytes + count
    if begin < min(len(guest.sent), guest.may_send()):
        guest.say(begin, bytes(guest.sent[begin : min(begin + 500, guest.may_send())]))


def guest_loses(world, count):
    world.drops += count


def time_passes(world, count):
    world.tick(count / 5)


def all_runs(world, _count):
    world.run()


STEP = st.one_of(
    *[
        st.tuples(st.just(step), st.integers(1, most))
        for step, most in {
            host_says: 40_000,
            host_takes: 20_000,
            host_ends: 1,
            guest_says: 40_000,
            guest_pushes: 20_000,
            guest_reads: 30_000,
            guest_ends: 1,
            guest_repeats: 3000,
            guest_skips: 3000,
            guest_loses: 6,
            time_passes: 100,
            all_runs: 1,
            junk: 6,
        }.items()
    ]
)


@given(
    steps=st.lists(STEP, max_size=25),
    version=st.sampled_from([4, 6]),
    mtu=st.sampled_from([1280, 65520]),
    isn=st.sampled_from([7, MASK - 3000, 1 << 31]),
    capacity=st.sampled_from([2000, 65535, 500_000]),
    shift=st.sampled_from([0, 4, 14]),
)
def test_what_arrives_is_what_was_sent(steps, version, mtu, isn, capacity, shift):
    ends = ENDS if version == 4 else ENDS_6
    if capacity >> shift == 0:
        capacity = 1 << shift
    world = World(ends=ends, mtu=mtu, isn=isn, capacity=capacity, shift=shift, mss=mtu - 60)
    world.connect()
    guest, socket = world.guest, world.socket
    for step, count in steps:
        if not guest.was_reset and not socket.over:
            step(world, count)
    world.settle()
    assert not guest.was_reset or world.dropped
    if not guest.was_reset or socket.over == "ended":
        assert bytes(guest.came) == bytes(socket.sent)
        assert bytes(socket.came) == bytes(guest.sent)
        assert socket.ended
        assert socket.over == "ended"
    assert not world.flows.table
    assert world.flows.allowance == world.allowance
    assert not world.flows.kept


@given(
    st.lists(
        st.tuples(
            st.integers(-3, 3) | NUMBER,
            st.integers(-3, 3) | NUMBER,
            FLAGS,
            st.integers(0, 65535),
            st.binary(max_size=12),
            st.sampled_from([b"", b"x", b"y" * 3000]),
            st.sampled_from(["", "connect", "send", "end", "tick", "drain"]),
        ),
        max_size=20,
    )
)
def test_no_segment_raises_and_all_that_was_taken_is_given_back(segments):
    world = World()
    world.feed(7, 0, SYN, 1000, syn_options(1460, 7))
    for sequence, acknowledged, flags, window, options, payload, then in segments:
        socket = world.socket
        flow = socket.flow
        sent = flow._next if abs(acknowledged) <= 3 else 0
        world.feed(
            (8 + len(socket.came) + sequence) & MASK,
            (sent + acknowledged) & MASK,
            flags,
            window,
            options,
            payload,
        )
        if socket.over is None:
            if then == "connect" and flow.state is State.CONNECTING:
                flow.connected(world.now)
            elif then == "send" and flow.room() > 0:
                flow.send(b"z" * min(flow.room(), 4000), world.now)
            elif then == "end" and flow.state is State.OPEN and not flow._ended:
                flow.end(world.now)
            elif then == "drain":
                socket.room = 100
                flow.drain()
            elif then == "tick":
                world.now += 40
                world.flows.tick(world.now)
        world.flows.acknowledge()
        for frame in world.frames:
            Segment(frame)
        world.frames.clear()
    world.flows.acknowledge_all()
    world.flows.abandon()
    assert not world.flows.table
    assert all(socket.over for socket in world.sockets)
    assert world.flows.allowance == world.allowance
    assert not world.flows.kept


def test_guests_of_tests_are_as_plain_as_they_say():
    """The model itself: what comes out of order is kept, what does not fit is not taken."""
    world = World(capacity=10)
    guest = Guest(world, isn=7, capacity=10)
    guest.base = guest.expected = 100
    guest.is_open = True

    def segment(sequence, payload):
        found = object.__new__(Segment)
        found.sequence, found.payload, found.flags = sequence, payload, ACK
        found.acknowledged, found.window = 8, 10
        return found

    guest.window()
    guest.take(segment(103, b"def"))
    assert not guest.came
    guest.take(segment(100, b"abcd"))
    assert bytes(guest.came) == b"abcdef"
