"""The link to a guest, whose kernel is a namespace's, when somebody has made it worse than it is."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import socket
import subprocess

import pytest
from machines import until
from plugged import MAC, STATIC, plugged_guest, run
from tapguest import tap_guest

from atoll import store
from atoll.errors import NetworkError
from atoll.network.addressing import Addressing
from atoll.network.destinations import Destinations
from atoll.network.lan import Lan
from atoll.network.leases import Lease
from atoll.network.shaping import Shape
from atoll.network.wire.ethernet import parse_mac
from atoll.paths import Paths
from atoll.vm.network.shape import Lane, Lanes, ShapeRequest, ask_shape, shape_order

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

ADDRESSING = Addressing(ipaddress.ip_network("10.0.2.0/24"), ipaddress.ip_network("fd00:a701::/64"))

#: Sends so many bytes, reads as many, and says what both were.
BOTH_WAYS = """
import hashlib, os, socket, sys
s = socket.create_connection(('10.0.2.2', int(sys.argv[1])), 100); size = int(sys.argv[2])
data = os.urandom(size); s.sendall(data); s.shutdown(1); came = hashlib.sha256()
while piece := s.recv(1 << 20): came.update(piece)
print(hashlib.sha256(data).hexdigest(), came.hexdigest())
"""

#: Says in how many seconds an answer was there, or that there was none.
ASK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(float(sys.argv[2]))
began = time.monotonic(); s.sendto(b'x', ('10.0.2.2', int(sys.argv[1])))
try: s.recv(9); print(time.monotonic() - began)
except TimeoutError: print('none')
"""


@pytest.fixture
async def lan():
    destinations = Destinations(ADDRESSING, host_ports=frozenset(range(1, 65536)))
    lan = Lan(ADDRESSING, destinations, mtu=65520, is_shared=True, domain="atoll.internal")
    async with asyncio.timeout(120):
        yield lan
    lan.close()


@pytest.fixture
async def guest(lan):
    with tap_guest(STATIC, mac=MAC, mtu=65520) as guest:
        four, six = ADDRESSING.machine(0)
        lan.plug(Lease(parse_mac(MAC), four, six, "guest"), guest.sock, lambda: None)
        yield guest


@pytest.fixture
def line(lan, guest):
    (card,) = lan._guests.values()
    return card.line


class BothWays:
    """A server that reads all and then sends as much; it knows what both were."""

    def __init__(self, size):
        self._size = size
        self.digests = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _talk(self, reader, writer):
        self.digests.append(hashlib.sha256(await reader.read(-1)).hexdigest())
        data = os.urandom(self._size)
        writer.write(data)
        self.digests.append(hashlib.sha256(data).hexdigest())
        await writer.drain()
        writer.close()


@pytest.fixture
async def echo():
    """The port of a server on this host that sends datagrams back."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), lambda: sock.sendto(*sock.recvfrom(9)))
        yield sock.getsockname()[1]
        loop.remove_reader(sock.fileno())


@pytest.mark.parametrize(
    ("inward", "outward"),
    [
        (Shape(loss=0.02), Shape(loss=0.02)),
        (Shape(latency=0.03, jitter=0.02), Shape(latency=0.03, jitter=0.02)),
        (Shape(rate=2e6, latency=0.01), Shape(rate=2e6)),
    ],
    ids=["lossy", "long", "narrow"],
)
async def test_transfers_arrive_as_they_were_sent(guest, line, inward, outward):
    size = 1_000_000
    command = guest.command(["ip", "link", "set", "eth0", "mtu", "1500" if inward.loss else "65520"])
    await asyncio.to_thread(subprocess.run, command, check=True)
    line.shape_to_guest(inward)
    line.shape_from_guest(outward)
    async with BothWays(size) as server:
        said = await run(guest, BOTH_WAYS, server.port, size)
    assert said.split() == server.digests
    assert bool(line.to_guest.lost) == bool(inward.loss)
    assert bool(line.from_guest.lost) == bool(outward.loss)
    assert not line.to_guest.dropped  # whoever sends to a guest waits for its link


async def test_a_link_can_be_made_worse_and_better_while_it_is_used(guest, line, lan, echo):
    (card,) = lan._guests.values()
    direct = card.frame, card.transmit, card.flows.transmit, card.station.transmit
    await run(guest, ASK, echo, 10)
    line.shape_from_guest(Shape(latency=0.1))
    line.shape_to_guest(Shape(latency=0.15))
    assert float(await run(guest, ASK, echo, 10)) >= 0.25
    line.shape_to_guest(Shape(loss=1.0))
    assert await run(guest, ASK, echo, 0.3) == "none"
    assert line.to_guest.lost
    line.shape_to_guest(None)
    line.shape_from_guest(None)
    assert (card.frame, card.transmit, card.flows.transmit, card.station.transmit) == direct
    assert await run(guest, ASK, echo, 10) != "none"


async def test_what_is_held_is_let_go_when_the_link_is_as_it_was(guest, line, echo):
    line.shape_from_guest(Shape(latency=60.0))
    asking = asyncio.create_task(run(guest, ASK, echo, 30))
    await until(lambda: line.from_guest.passed)
    line.shape_from_guest(None)
    assert await asking != "none"


async def test_a_narrow_link_has_senders_wait_and_lets_others_through(guest, line, lan):
    """Beside a transfer that fills the link a short one gets its turn."""
    line.shape_to_guest(Shape(rate=4e6))
    async with BothWays(4_000_000) as much, BothWays(10) as little:
        filling = asyncio.create_task(run(guest, BOTH_WAYS, much.port, 10))
        await until(lambda: line.to_guest.passed > 10)
        (card,) = lan._guests.values()
        said = await run(guest, BOTH_WAYS, little.port, 10)
        assert said.split() == little.digests
        assert not filling.done()
        assert line._to_guest.shaper.held < 2 << 20
        assert (await filling).split() == much.digests
        assert not line.to_guest.dropped
        assert not card.link.is_full


async def test_a_guest_that_goes_takes_what_is_held_with_it(lan, guest, line, echo):
    line.shape_from_guest(Shape(latency=0.2))
    line.shape_to_guest(Shape(latency=0.2))
    asking = asyncio.create_task(run(guest, ASK, echo, 0.5))
    await until(lambda: line.from_guest.passed)
    (card,) = lan._guests.values()
    card.close()
    assert await asking == "none"
    assert not lan._guests


async def test_a_network_s_process_is_asked_for_a_shape(tmp_path):
    place = Paths(tmp_path, tmp_path).network("default")
    with pytest.raises(NetworkError, match=r"^dev: ") as caught:
        await ask_shape(place, "dev", ShapeRequest(owner="one"))
    assert caught.value.code == "network.unplugged"
    slow = Shape(latency=0.01, rate=1e6)
    async with asyncio.timeout(60), plugged_guest(place) as there:
        assert await ask_shape(place, "dev", ShapeRequest(owner="one")) == Lanes()
        lanes = await ask_shape(place, "dev", shape_order("one", slow, "both"))
        assert lanes == Lanes(inward=Lane(slow, 0, 0, 0), outward=Lane(slow, 0, 0, 0))
        lanes = await ask_shape(place, "dev", shape_order("one", Shape(), "in"))
        assert (lanes.inward, lanes.outward.shape) == (None, slow)
        await run(there.guest, ASK, 9, 0.1)
        lanes = await ask_shape(place, "dev", ShapeRequest(owner="one"))
        assert lanes.outward.passed
        with pytest.raises(NetworkError, match=r"^ci: ") as caught:
            await ask_shape(place, "ci", ShapeRequest(owner="two"))
        assert caught.value.code == "network.unplugged"
    await until(lambda: not store.is_held(place.lock))
