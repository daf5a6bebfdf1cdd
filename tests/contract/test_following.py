"""Ports that follow what a guest listens on; the guest is this host, so its ports are always taken here."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from hosted import hosted_agent

from atoll.events import AutoPortClosed, AutoPortOpened
from atoll.guest.file_messages import Records
from atoll.guest.messages import Empty, Listening, NetListening
from atoll.vm.bootplan import AutoPorts
from atoll.vm.following import Following

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


class Told:
    """Events, of which one can be waited for."""

    def __init__(self):
        self._events = asyncio.Queue()

    def __call__(self, event):
        self._events.put_nowait(event)

    async def next(self, kind, port):
        event = await self._events.get()
        assert isinstance(event, kind)
        assert event.port == port
        return event.host.rpartition(":")[2]


async def greeting(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


async def greet(_, writer):
    writer.write(b"hello")
    with contextlib.suppress(ConnectionError):
        await writer.drain()
    writer.close()


@pytest.fixture
async def agent():
    async with asyncio.timeout(60), hosted_agent() as agent:
        yield agent


async def test_the_agent_tells_of_ports_as_they_come_and_go(agent):
    stream = agent.open(NetListening(interval=100), end=True)
    await stream.reply(Empty)
    records = Records(Listening)

    async def told(port):
        while True:
            records.feed(await stream.read())
            for one in records:
                if one.port == port:
                    return one.address

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        assert await told(port) == socket.inet_pton(socket.AF_INET6, "::1")
    assert await told(port) == b""
    stream.cancel()


async def test_a_stream_that_waits_for_ports_is_nothing_under_way(agent):
    stream = agent.listening()
    await stream.reply(Empty)
    assert agent._channel.idle > 0
    other = agent.open(NetListening(), end=True)
    assert agent._channel.idle == 0
    other.cancel()
    stream.cancel()
    await agent.ping()


async def test_a_port_of_the_guest_is_another_one_here_for_as_long_as_it_is_allowed(agent):
    told = Told()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    denied = await asyncio.start_server(greet, "127.0.0.1", 0)
    port, other = (one.sockets[0].getsockname()[1] for one in (server, denied))
    following = Following("dev", lambda: agent, lambda: None, told)
    rule = AutoPorts(((port, port), (other, other)), ((other, other),))
    await following.follow(rule, frozenset())
    host = await told.next(AutoPortOpened, port)
    assert int(host) != port
    assert await greeting(host) == b"hello"
    assert [(state.port, state.forward.guest_port) for state in following.carried] == [(int(host), port)]
    # One that is forwarded by name is not forwarded by itself, too.
    await following.follow(rule, frozenset({port}))
    assert await told.next(AutoPortClosed, port) == host
    await following.follow(AutoPorts(((other, other),)), frozenset())
    assert await greeting(await told.next(AutoPortOpened, other)) == b"hello"
    denied.close()
    await told.next(AutoPortClosed, other)
    await following.follow(rule, frozenset())
    await told.next(AutoPortOpened, port)
    await following.follow(None, frozenset())
    await told.next(AutoPortClosed, port)
    server.close()
    for one in (server, denied):
        await one.wait_closed()
