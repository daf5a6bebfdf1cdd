"""The channel against a peer that lies: every waiter gets an error, none hangs, nothing else is raised."""

from __future__ import annotations

import asyncio
import socket

import pytest
from reference_guest import frame

from atoll.errors import GuestError, ProtocolError
from atoll.guest.channel import Channel
from atoll.guest.messages import Ping, Pong

pytestmark = pytest.mark.anyio

DEEP = b"\x81\xa1x" + b"\x91" * 5000 + b"\xc0"


@pytest.fixture
async def peer():
    """A channel that was answered HELLO, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    sent = b""
    while len(sent) < 32_781 + 37:
        sent += await loop.sock_recv(theirs, 65_536)
    await loop.sock_sendall(theirs, sent[32_781:])
    await channel.ready()
    yield channel, theirs
    channel.close()
    theirs.close()


async def ask(peer, answer):
    channel, theirs = peer
    asking = asyncio.create_task(channel.call(Ping(), Pong))
    await asyncio.sleep(0)
    await asyncio.get_running_loop().sock_sendall(theirs, answer)
    async with asyncio.timeout(60):
        return await asking


async def test_a_deeply_nested_reply_is_a_protocol_error(peer):
    with pytest.raises(ProtocolError):
        await ask(peer, frame(3, 1, DEEP, flags=1))


async def test_a_deeply_nested_reset_is_a_protocol_error(peer):
    with pytest.raises(ProtocolError):
        await ask(peer, frame(5, 1, DEEP))


async def test_a_reset_carries_its_code_to_the_caller(peer):
    with pytest.raises(GuestError) as caught:
        await ask(peer, frame(5, 1, b"\x82\xa4code\xa7invalid\xa7message\xa3why"))
    assert (caught.value.reason, caught.value.message) == ("invalid", "why")


async def test_frames_for_streams_that_were_never_opened_are_ignored(peer):
    assert await ask(peer, frame(4, 99, b"x") + frame(3, 1, b"\x80", flags=1)) == Pong()
