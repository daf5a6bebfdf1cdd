"""Connections over links that are as bad as somebody wants them: what both ends said arrives all the same."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tcp_peers import MASK, Segment, World, split

from atoll.network.shaping import Shape, Shaper
from atoll.network.tcp.early import Early
from atoll.network.tcp.segment import ACK, PSH

TICK = 0.25


class ShapedWorld(World):
    """Whose frames meet a shape in each direction, on a clock that jumps to what comes next."""

    def __init__(self, inward, outward, seed, *, lossy=True, **rest):
        self.inward, self.outward = Shaper(inward, seed), Shaper(outward, seed + 1)
        self.under_way = {}
        super().__init__(**rest)
        self.next_tick = self.now + TICK
        self.next_turn = self.now + 1.0
        self.retries = 1.0
        self.lossy = lossy

    def transmit(self, parts):
        for frame in split(b"".join(parts)):
            self.inward.put(frame, self.now)

    def to_network(self, *segment):
        number = len(self.under_way)
        self.under_way[number] = segment
        self.outward.put(number.to_bytes(54) + segment[-1], self.now)

    def step(self):
        """To the next thing that happens."""
        times = [self.next_tick, self.next_turn, self.inward.next, self.outward.next]
        self.now = min(time for time in times if time is not None)
        for frame in self.inward.take(self.now):
            self.guest.take(Segment(frame))
        for frame in self.outward.take(self.now):
            self.feed(*self.under_way[int.from_bytes(frame[:54])])
            self.flows.acknowledge()
        self.flows.acknowledge_all()
        for socket in self.sockets:
            socket.drain()
            socket.pump(self.now)
        if self.now >= self.next_tick:
            self.next_tick += TICK
            self.flows.most_early = 4096 if self.lossy else 0
            self.flows.delay = self.inward.slowest(self.now) + self.outward.slowest(self.now)
            self.flows.tick(self.now)
        self.guest.read(1 << 40)
        if self.now >= self.next_turn:
            self.turn()

    def turn(self):
        """What a guest does whose segments are not acknowledged for a while."""
        guest = self.guest
        if not guest.is_open:
            guest.connect()
        elif not self.is_done():
            before = guest.acked_bytes
            guest.push(8 * guest.mss)
            self.retries = min(2 * self.retries, 8.0) if guest.acked_bytes == before else 1.0
        self.next_turn = self.now + self.retries


DIRECTION = st.builds(
    Shape,
    latency=st.sampled_from([0.0, 0.01, 0.5, 3.0]),
    jitter=st.sampled_from([0.0, 0.02, 1.0]),
    loss=st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    rate=st.sampled_from([0.0, 20_000.0, 1e6]),
    queue=st.sampled_from([3000, 1 << 20]),
)
SIZE = st.integers(0, 60_000)


@given(
    inward=DIRECTION,
    outward=DIRECTION,
    to_guest=SIZE,
    from_guest=SIZE,
    seed=st.integers(0, 1000),
    lossy=st.booleans(),
)
@example(
    inward=Shape(loss=0.3),
    outward=Shape(loss=0.3),
    to_guest=60_000,
    from_guest=60_000,
    seed=1,
    lossy=True,
)
@example(
    inward=Shape(latency=3.0, loss=0.1),
    outward=Shape(latency=3.0),
    to_guest=60_000,
    from_guest=0,
    seed=5,
    lossy=False,
)
@example(
    inward=Shape(rate=20_000.0, queue=3000),
    outward=Shape(rate=20_000.0, queue=3000),
    to_guest=60_000,
    from_guest=60_000,
    seed=3,
    lossy=True,
)
def test_what_both_ends_say_arrives_whatever_is_lost(inward, outward, to_guest, from_guest, seed, lossy):
    world = ShapedWorld(inward, outward, seed, lossy=lossy)
    guest = world.guest
    down, up = bytes(range(251)) * 240, bytes(range(241)) * 250
    guest.sent += up[:from_guest]
    guest.wants_end = True
    guest.connect()
    while not world.sockets:
        world.step()
    socket = world.socket
    socket.to_send += down[:to_guest]
    socket.ends = True
    socket.flow.connected(world.now)
    for _ in range(40_000):
        world.step()
        if socket.over is not None and guest.has_fin:
            break
    assert bytes(guest.came) == down[:to_guest]
    assert bytes(socket.came) == up[:from_guest]
    assert (socket.over, socket.ended, guest.has_fin) == ("ended", True, True)
    assert not world.flows.table
    assert (world.flows.allowance, world.flows.kept, world.flows.early) == (world.allowance, 0, 0)


@pytest.mark.parametrize(
    "shape", [Shape(latency=4.0, jitter=0.5), Shape(rate=5000.0)], ids=["a long way", "a narrow one"]
)
def test_nothing_is_sent_twice_where_nothing_is_lost(shape):
    world = ShapedWorld(shape, Shape(latency=1.0), 1, capacity=400_000, shift=7)
    world.next_turn = math.inf
    world.guest.connect()
    while not world.sockets:
        world.step()
    socket = world.socket
    socket.to_send += bytes(200_000)
    socket.flow.connected(world.now)
    while len(world.guest.came) < 200_000:
        world.step()
    segments = 200_000 // 1460 + 1
    assert (
        world.inward.passed <= segments + 3
    )  # and the handshake; each piece that is read ends with a short one


def test_what_took_long_is_remembered_for_as_long_as_that():
    shaper = Shaper(Shape(latency=10.0), 1)
    assert shaper.slowest(0.0) == 0.0
    shaper.put(b"x", 100.0)
    assert shaper.slowest(100.0) == shaper.slowest(110.0) == 10.0
    assert shaper.slowest(200.0) == 0.0
    shaper = Shaper(Shape(rate=100.0), 1)
    for at in range(10):
        shaper.put(bytes(500), float(at))
    assert shaper.slowest(10.0) == pytest.approx(41.0)
    assert shaper.backlog(10.0) == pytest.approx(40.0)


# What came too early


class Keeper:
    def __init__(self, most=100):
        self.early, self.most_early = 0, most


@given(
    data=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12),
    first=st.sampled_from([0, MASK - 20]),
    fin=st.booleans(),
)
def test_what_came_early_goes_on_where_it_belongs(data, cuts, first, fin):
    """Whatever segments of them were kept, what is taken is these bytes, as far as they are there."""
    keeper = Keeper()
    early = Early(keeper)
    there = set()
    for start, size in cuts:
        piece = data[start : start + size]
        has_fin = fin and start <= len(data) <= start + len(piece)
        if piece or has_fin:
            early.keep((first + start) & MASK, memoryview(piece), fin=has_fin)
            there |= set(range(start, start + len(piece) + has_fin))
    at = 0
    while at <= len(data):
        found = early.take((first + at) & MASK)
        if found is None:
            at += 1
            continue
        payload, ends = found
        assert payload == data[at : at + len(payload)]
        assert ends is (fin and at + len(payload) == len(data)) or not ends
        there -= set(range(at, at + len(payload) + ends))
        at += len(payload) + ends
    assert not there
    early.clear()
    assert keeper.early == 0


def test_no_more_is_kept_than_may_be():
    keeper = Keeper(2)
    one, other = Early(keeper), Early(keeper)
    one.keep(10, memoryview(b"a"), fin=False)
    other.keep(20, memoryview(b"b"), fin=False)
    one.keep(30, memoryview(b"c"), fin=False)
    one.keep(10, memoryview(b"abc"), fin=False)
    other.clear()
    assert keeper.early == 1
    one.keep(40, memoryview(b"d"), fin=True)
    assert one.take(10) == (b"abc", False)
    assert one.take(30) is None
    assert one.take(40) == (b"d", True)
    assert keeper.early == 0


def test_a_guest_on_a_link_that_loses_nothing_has_nothing_kept_behind_a_hole():
    world = World()
    world.connect()
    guest = world.guest
    for most in (0, 10):
        world.flows.most_early = most
        world.feed(guest.isn + 101, guest.expected, ACK | PSH, 500, payload=b"x" * 50)
        assert world.flows.early == bool(most)
    world.feed(guest.isn + 1, guest.expected, ACK | PSH, 500, payload=b"y" * 100)
    assert bytes(world.socket.came) == b"y" * 100 + b"x" * 50
    world.feed(guest.isn + 1 + (1 << 21), guest.expected, ACK | PSH, 500, payload=b"beyond the window")
    assert world.flows.early == 0


def test_several_segments_are_sent_again_where_any_may_be_lost():
    world = World(capacity=60_000)
    world.connect()
    world.flows.most_early = 10
    data = bytes(range(256)) * 80
    world.socket.to_send += data
    world.socket.pump(world.now)
    world.frames.clear()
    world.now += 1.1
    world.flows.tick(world.now)
    again = [Segment(frame) for frame in world.frames]
    assert len(again) == 8
    assert b"".join(segment.payload for segment in again) == data[: 8 * 1460]
    world.run()
    assert bytes(world.guest.came) == data
