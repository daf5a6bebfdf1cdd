"""UDP servers of a guest on ports of the host. A hosted agent runs on this host, and so do the servers."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest
from hosted import hosted_agent
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import GuestError, UsageError
from atoll.guest import datagrams
from atoll.guest.datagrams import LONGEST, Unframer, forward, frame
from atoll.guest.messages import Empty

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def agent():
    async with hosted_agent() as agent, asyncio.timeout(30):
        yield agent


class Echo(asyncio.DatagramProtocol):
    """Answers each with what came, and who sent it is noted."""

    def __init__(self):
        self.seen = []
        self.closed = asyncio.Event()

    def connection_lost(self, _):
        self.closed.set()

    def datagram_received(self, data, address):
        self.seen.append(address)
        self.sock.sendto(data[::-1], address)


@pytest.fixture
async def server():
    sock = client()
    sock.bind(("127.0.0.1", 0))
    transport, echo = await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=sock)
    echo.sock = sock
    echo.address = sock.getsockname()
    yield echo
    transport.close()
    await echo.closed.wait()


def client():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    return sock


async def asked(sock, forwarded, data):
    loop = asyncio.get_running_loop()
    await loop.sock_sendto(sock, data, (forwarded.host, forwarded.port))
    return await loop.sock_recv(sock, 65_536)


@given(packets=st.lists(st.binary(max_size=300), max_size=8), size=st.integers(1, 400))
def test_a_stream_gives_the_datagrams_back_however_it_is_cut(packets, size):
    unframer = Unframer()
    stream = b"".join(map(frame, packets))
    found = [packet for at in range(0, len(stream), size) for packet in unframer.feed(stream[at : at + size])]
    assert found == packets


async def test_each_client_has_its_answers_and_a_socket_of_its_own(agent, server):
    async with await forward(agent, server.address, host="127.0.0.1", port=0) as forwarded:
        with client() as one, client() as other:
            assert await asked(one, forwarded, b"abc") == b"cba"
            assert await asked(other, forwarded, b"xy") == b"yx"
            assert await asked(one, forwarded, b"") == b""
            big = bytes(range(256)) * 200
            assert await asked(one, forwarded, big) == big[::-1]
    assert len(set(server.seen)) == 2
    assert len(server.seen) == 4


async def test_a_guest_that_is_lost_gives_its_port_back(server):
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with hosted_agent() as agent:
        forwarded = await forward(agent, server.address, host="127.0.0.1", port=0)
        with client() as sock:
            assert await asked(sock, forwarded, b"abc") == b"cba"
            agent._channel.close()
            for _ in range(3):
                sock.sendto(b"lost", (forwarded.host, forwarded.port))
            async with asyncio.timeout(10):
                await forwarded._relay._unbound.wait()
        with client() as sock:
            sock.bind((forwarded.host, forwarded.port))
        await forwarded.close()
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


@pytest.mark.parametrize(("inside", "port"), [(0, 0), (70_000, 0), (53, 65_536), (53, -1)])
async def test_what_is_no_port_is_told_of(agent, inside, port):
    with pytest.raises(UsageError) as caught:
        await forward(agent, ("127.0.0.1", inside), host="127.0.0.1", port=port)
    assert caught.value.code == "usage.expose"


async def test_a_port_is_free_again_and_one_that_is_taken_is_told_of(agent, server):
    forwarded = await forward(agent, server.address, host="127.0.0.1", port=0)
    with pytest.raises(UsageError) as taken:
        await forward(agent, server.address, host="127.0.0.1", port=forwarded.port)
    assert taken.value.code == "usage.expose"
    await forwarded.close()
    async with await forward(agent, server.address, host="127.0.0.1", port=forwarded.port):
        pass


async def test_a_new_client_takes_the_place_of_the_one_that_was_silent_for_longest(
    agent, server, monkeypatch
):
    monkeypatch.setattr(datagrams, "_CLIENTS", 2)
    async with await forward(agent, server.address, host="127.0.0.1", port=0) as forwarded:
        with client() as one, client() as two, client() as three:
            for sock in (one, two, one, three, one):
                assert await asked(sock, forwarded, b"ab") == b"ba"
            assert len(set(server.seen)) == 3
            assert await asked(two, forwarded, b"ab") == b"ba"  # forgotten, and known again
            assert len(set(server.seen)) == 4


async def test_one_that_is_silent_is_forgotten(agent, server, monkeypatch):
    monkeypatch.setattr(datagrams, "_IDLE", 0.05)
    async with await forward(agent, server.address, host="127.0.0.1", port=0) as forwarded:
        with client() as one:
            assert await asked(one, forwarded, b"ab") == b"ba"
            while forwarded._relay._clients:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.02)
            assert await asked(one, forwarded, b"ab") == b"ba"
    assert len(set(server.seen)) == 2


async def test_what_is_longer_than_any_datagram_is_refused(agent, server):
    stream = agent.datagrams(*server.address)
    await stream.reply(Empty)
    await stream.write((LONGEST + 1).to_bytes(2, "little"))
    with pytest.raises(GuestError):
        await stream.fetch()
