"""Connections over links that are as bad as somebody wants them: what both ends said arrives all the same."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tcp_peers import Segment, World, split

from atoll.network.shaping import Shape, Shaper

TICK = 0.25


class ShapedWorld(World):
    """Whose frames meet a shape in each direction, on a clock that jumps to what comes next."""

    def __init__(self, inward, outward, seed, **rest):
        self.inward, self.outward = Shaper(inward, seed), Shaper(outward, seed + 1)
        self.under_way = {}
        super().__init__(**rest)
        self.next_tick = self.now + TICK
        self.next_turn = self.now + 1.0
        self.retries = 1.0

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


@given(inward=DIRECTION, outward=DIRECTION, to_guest=SIZE, from_guest=SIZE, seed=st.integers(0, 1000))
@example(Shape(loss=0.3), Shape(loss=0.3), 60_000, 60_000, 1)
@example(Shape(latency=3.0, loss=0.1), Shape(latency=3.0), 60_000, 0, 5)
@example(Shape(rate=20_000.0, queue=3000), Shape(rate=20_000.0, queue=3000), 60_000, 60_000, 3)
@settings(max_examples=25)
def test_what_both_ends_say_arrives_whatever_is_lost(inward, outward, to_guest, from_guest, seed):
    world = ShapedWorld(inward, outward, seed)
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
    assert (world.flows.allowance, world.flows.kept) == (world.allowance, 0)


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
