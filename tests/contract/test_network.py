"""The network path with the kernel's own stack as the guest, and servers on this host's loopback."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import signal
import socket
import struct
import sys

import pytest
from machines import until
from tapguest import tap_guest

from atoll.network.addressing import Addressing
from atoll.network.destinations import Destinations
from atoll.network.lan import Lan
from atoll.network.leases import Lease
from atoll.network.wire.ethernet import parse_mac

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

ADDRESSING = Addressing(ipaddress.ip_network("10.0.2.0/24"), ipaddress.ip_network("fd00:a701::/64"))
MAC = "02:00:00:00:00:01"
COMMANDS = (
    "ip addr add 10.0.2.15/24 dev eth0",
    "ip route add default via 10.0.2.2",
    "ip -6 addr add fd00:a701::f/64 dev eth0 nodad",
    "ip -6 route add default via fd00:a701::2 dev eth0",
)


def every_port():
    return Destinations(ADDRESSING, host_ports=frozenset(range(1, 65536)))


@pytest.fixture
async def lan():
    lan = Lan(ADDRESSING, every_port(), mtu=65520, is_shared=True, domain="atoll.internal")
    async with asyncio.timeout(60):
        yield lan
    lan.close()


@pytest.fixture
async def guest(lan):
    with tap_guest(COMMANDS, mac=MAC, mtu=65520) as guest:
        four, six = ADDRESSING.machine(0)
        lan.plug(Lease(parse_mac(MAC), four, six, "guest"), guest.sock, lambda: None)
        yield guest


class Server:
    """A server on the host's loopback; ``talk`` is given each connection's reader and writer."""

    def __init__(self, talk):
        self._talk = talk

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()


async def run(guest, source, *words):
    """What a program printed that ran in the guest."""
    process = guest.start(source, *words)
    out, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error.decode()
    return out.decode().strip()


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


CONNECT = "import socket,sys,hashlib,os;s=socket.create_connection((sys.argv[1],int(sys.argv[2])));"


async def test_a_connection_is_there_and_back(guest):
    async with Server(echo) as server:
        said = await run(guest, CONNECT + "s.sendall(b'hello');print(s.recv(9))", "10.0.2.2", server.port)
    assert said == "b'hello'"


async def test_large_transfers_arrive_as_they_were_sent(guest):
    size = 64 << 20
    digests = []

    async def talk(reader, writer):
        came = hashlib.sha256()
        while data := await reader.read(1 << 20):
            came.update(data)
        digests.append(came.hexdigest())
        sent = hashlib.sha256()
        for _ in range(size >> 20):
            data = os.urandom(1 << 20)
            sent.update(data)
            writer.write(data)
            await writer.drain()
        digests.append(sent.hexdigest())
        writer.close()

    program = (
        CONNECT
        + """
h = hashlib.sha256()
for _ in range(int(sys.argv[3]) >> 20):
    data = os.urandom(1 << 20); h.update(data); s.sendall(data)
s.shutdown(1)
r = hashlib.sha256()
while data := s.recv(1 << 20): r.update(data)
print(h.hexdigest(), r.hexdigest())
"""
    )
    async with Server(talk) as server:
        said = await run(guest, program, "10.0.2.2", server.port, size)
    assert said.split() == digests


async def test_who_reads_slowly_holds_up_the_writer_alone(guest, lan):
    async def talk(_, writer):
        for _ in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
        writer.close()

    program = (
        CONNECT
        + """
import time
time.sleep(0.5)
n = 0
while data := s.recv(100000): n += len(data)
print(n)
"""
    )
    async with Server(talk) as server, Server(echo) as other:
        slow = asyncio.create_task(run(guest, program, "10.0.2.2", server.port))
        quick = await run(guest, CONNECT + "s.sendall(b'x');print(s.recv(1))", "10.0.2.2", other.port)
        assert quick == "b'x'"
        assert await slow == str(64 << 20)


async def test_a_host_s_program_that_reads_slowly_holds_up_its_guest_alone(guest):
    digests = []

    async def talk(reader, writer):
        came = hashlib.sha256()
        await asyncio.sleep(0.3)
        while data := await reader.read(1 << 16):
            came.update(data)
            await asyncio.sleep(0)
        digests.append(came.hexdigest())
        writer.write(b"all")
        await writer.drain()
        writer.close()

    program = (
        CONNECT
        + """
data = os.urandom(1 << 20) * 24
s.sendall(data); s.shutdown(1); assert s.recv(9) == b'all'
print(hashlib.sha256(data).hexdigest())
"""
    )
    async with Server(talk) as server, Server(echo) as other:
        slow = asyncio.create_task(run(guest, program, "10.0.2.2", server.port))
        quick = await run(guest, CONNECT + "s.sendall(b'x');print(s.recv(1))", "10.0.2.2", other.port)
        assert quick == "b'x'"
        assert [await slow] == digests


LISTEN = """
import socket
l=socket.create_server(('127.0.0.1',0)); print(l.getsockname()[1],flush=True); s,_=l.accept()
"""
POUR = """
try:
    while True: s.sendall(bytes(1 << 16))
except OSError as error: print(type(error).__name__)
"""


@pytest.mark.parametrize("killed", ["the guest's program", "the host's program"])
async def test_a_program_that_is_killed_in_the_midst_of_it_resets_the_other(guest, lan, killed):
    """Both send as fast as they can, and read nothing."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LISTEN + POUR, stdout=asyncio.subprocess.PIPE
    )
    port = int(await server.stdout.readline())
    client = guest.start(CONNECT + "print(os.getpid(),flush=True)" + POUR, "10.0.2.2", port)
    pid = int(await asyncio.to_thread(client.stdout.readline))
    (card,) = lan._guests.values()
    await until(lambda: any(flow._inbox.waiting for flow in card.flows.table.values()))
    if killed == "the guest's program":
        os.kill(pid, signal.SIGKILL)
        said = (await server.communicate())[0]
        await asyncio.to_thread(client.communicate)
    else:
        server.kill()
        await server.communicate()
        said = (await asyncio.to_thread(client.communicate))[0]
    assert said.decode().strip() in {"ConnectionResetError", "BrokenPipeError"}
    await until(lambda: not card.flows.table)
    assert not card.flows.kept


async def test_a_refusal_reaches_the_guest(guest):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    said = await run(
        guest, "import socket,sys;s=socket.socket();print(s.connect_ex(('10.0.2.2',int(sys.argv[1]))))", port
    )
    assert said == "111"


async def test_a_reset_reaches_the_guest(guest):
    async def talk(reader, writer):
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()

    program = (
        CONNECT
        + """
s.sendall(b'x')
try: print(s.recv(1))
except ConnectionResetError: print('reset')
"""
    )
    async with Server(talk) as server:
        assert await run(guest, program, "10.0.2.2", server.port) == "reset"


async def test_the_reset_of_a_guest_reaches_the_host(guest):
    ended = asyncio.Event()

    async def talk(reader, writer):
        await reader.read(1)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        ended.set()
        writer.close()

    program = (
        CONNECT
        + """
import struct
s.sendall(b'x')
import time; time.sleep(.1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
"""
    )
    async with Server(talk) as server:
        await run(guest, program, "10.0.2.2", server.port)
        await ended.wait()


async def test_many_connections_one_after_the_other(guest, lan):
    program = """
import socket,sys
for _ in range(2000):
    s=socket.create_connection(('10.0.2.2',int(sys.argv[1])));s.sendall(b'x');assert s.recv(1)==b'x';s.close()
"""
    async with Server(echo) as server:
        await run(guest, program, server.port)
        (card,) = lan._guests.values()
        await until(lambda: not card.flows.table)


async def test_many_connections_at_once(guest):
    program = """
import socket,sys
many=[socket.create_connection(('10.0.2.2',int(sys.argv[1]))) for _ in range(500)]
for s in many: s.sendall(b'x'*5000)
for s in many:
    n=0
    while n<5000: n+=len(s.recv(5000))
print(len(many))
"""
    async with Server(echo) as server:
        assert await run(guest, program, server.port) == "500"


async def test_datagrams(guest):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()

        def answer():
            data, whom = sock.recvfrom(70000)
            sock.sendto(data[::-1], whom)

        loop.add_reader(sock.fileno(), answer)
        program = """
import socket,sys
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(5)
for size in (1,1000,65000,65507):
    data=bytes(range(256))*256; data=data[:size]
    s.sendto(data,('10.0.2.2',int(sys.argv[1])));got,whom=s.recvfrom(70000);assert got==data[::-1],size
print(whom[0])
"""
        assert await run(guest, program, sock.getsockname()[1]) == "10.0.2.2"
        loop.remove_reader(sock.fileno())


async def test_the_guest_is_told_of_a_port_without_a_server(guest):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    program = """
import socket,sys
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.connect(('10.0.2.2',int(sys.argv[1])));s.settimeout(5);s.send(b'x')
try: s.recv(1)
except ConnectionRefusedError: print('refused')
"""
    assert await run(guest, program, port) == "refused"


async def test_names_of_the_network(guest, lan):
    lan.resolver.names.add("db", "db", [ipaddress.ip_address("10.0.2.20")])
    program = """
import socket,struct
q=b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2db\\5atoll\\x08internal\\0\\0\\1\\0\\1'
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(5)
s.sendto(q,('10.0.2.3',53));a=s.recv(512)
t=socket.create_connection(('10.0.2.3',53));t.sendall(struct.pack('>H',len(q))+q);n,=struct.unpack('>H',t.recv(2));b=t.recv(n)
print(socket.inet_ntoa(a[-4:]) , socket.inet_ntoa(b[-4:]), a[:2]==b[:2]==q[:2])
"""
    assert await run(guest, program) == "10.0.2.20 10.0.2.20 True"


async def test_connections_over_ipv6(guest):
    async with Server(echo) as server:
        said = await run(guest, CONNECT + "s.sendall(b'hello');print(s.recv(9))", "fd00:a701::2", server.port)
    assert said == "b'hello'"


async def test_a_host_whose_ports_are_closed(guest, lan):
    lan.destinations = Destinations(ADDRESSING)
    for card in lan._guests.values():
        card.outside.destinations = lan.destinations
    async with Server(echo) as server:
        program = "import socket,sys;print(socket.socket().connect_ex((sys.argv[1],int(sys.argv[2]))))"
        assert await run(guest, program, "10.0.2.2", server.port) == "111"
        assert await run(guest, program, "127.0.0.1", server.port) == "111"
