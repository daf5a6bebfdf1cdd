"""A connection whose first bytes decide whether it may be, in a socket of this host."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from tcp_peers import World

from atoll.network.connection import TcpSocket

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


class EmptyLink:
    """A link to a guest that takes everything."""

    is_full = False


class Asked(World):
    """A guest's connection in one end of a pair of sockets."""

    def __init__(self, *allowed):
        super().__init__(mtu=65520, mss=65000)
        self.asked = []
        self.allowed = allowed
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)

    def open(self, _ends):
        return TcpSocket(self.near, EmptyLink(), self.allow)

    def allow(self, name):
        self.asked.append(name)
        return name in self.allowed

    async def connect(self):
        self.guest.connect()
        while not self.guest.is_open:
            self.run()
            await asyncio.sleep(0)

    def say(self, data):
        self.guest.sent += data
        self.guest.push()
        self.run()

    async def came(self, count):
        """That many bytes, as the other end of the socket gets them."""
        data = b""
        while len(data) < count:
            data += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.far, count), 10)
            self.run()
        return data


@pytest.fixture
async def asked():
    made = []

    async def make(*allowed):
        world = Asked(*allowed)
        made.append(world)
        await world.connect()
        return world

    yield make
    for world in made:
        world.flows.abandon()
        world.near.close()
        world.far.close()


async def test_nothing_passes_before_it_is_known_whom_the_guest_wants(asked):
    world = await asked("a.example")
    world.say(REQUEST[:20])
    await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        world.far.recv(1)
    assert world.asked == []
    world.say(REQUEST[20:])
    assert await world.came(len(REQUEST)) == REQUEST
    world.say(b"more")
    assert await world.came(4) == b"more"
    assert world.asked == ["a.example"]


async def test_what_is_denied_is_reset_at_both_ends(asked):
    world = await asked("b.example")
    world.say(REQUEST)
    world.say(b"more")
    await asyncio.sleep(0.01)
    world.run()
    assert world.asked == ["a.example"]
    assert world.guest.was_reset
    assert not world.flows.table
    assert world.flows.allowance == world.allowance
    assert world.far.recv(1) == b""


@pytest.mark.parametrize("may", [True, False])
async def test_one_who_ends_without_a_name_is_judged_as_such(asked, may):
    world = await asked(*([None] if may else []))
    world.say(REQUEST[:20])
    world.guest.wants_end = True
    world.guest.push()
    world.run()
    assert world.asked == [None]
    await asyncio.sleep(0.01)
    world.run()
    assert world.guest.was_reset is not may
    assert await world.came(20 * may) == REQUEST[:20] * may
    assert world.far.recv(1) == b""


async def test_what_was_held_goes_first_also_through_a_slow_socket(asked):
    world = await asked("a.example")
    world.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    filling = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filling += world.near.send(bytes(1000))
    body = bytes(range(256)) * 2000
    world.say(REQUEST + body)
    assert world.asked == ["a.example"]
    world.guest.wants_end = True
    data = b""
    while chunk := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(world.far, 1 << 16), 10):
        data += chunk
        await asyncio.sleep(0)
        world.run()
        world.guest.push()
        world.run()
    assert data[filling:] == REQUEST + body


async def test_a_server_may_speak_first(asked):
    world = await asked()
    world.far.send(b"220 hello\r\n")
    for _ in range(100):
        await asyncio.sleep(0.001)
        world.run()
        if world.guest.came:
            break
    assert bytes(world.guest.came) == b"220 hello\r\n"
    assert world.asked == []
