"""Captures of a guest's card: what other programs make of them, and when they end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from machines import gone, until
from networks import pid_of
from plugged import MAC, plugged_guest, run
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.utils import PcapNgReader

from atoll import store
from atoll.errors import NetworkError, StoreError
from atoll.hypervisor.model import Forward
from atoll.network import pcapng
from atoll.paths import Paths
from atoll.vm.network.capture import Frames
from atoll.vm.network.saving import CaptureFile, begin_capture

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

TSHARK = shutil.which("tshark")

#: What no frame may be: whatever is wrong with it, its checksums, or with what came before it.
WRONG = " || ".join(
    (
        "_ws.malformed",
        "_ws.expert.severity == error",
        *(f'{what}.checksum.status == "Bad"' for what in ("ip", "tcp", "udp", "icmp", "icmpv6")),
        "tcp.analysis.retransmission",
        "tcp.analysis.out_of_order",
        "tcp.analysis.lost_segment",
        "tcp.analysis.ack_lost_segment",
    )
)

#: Everything that guests do, one after the other; prints what came of it.
TRAFFIC = """
import hashlib, socket, struct, sys, time
port, closed, datagrams = map(int, sys.argv[1:4])
gateway6 = sys.argv[4]
def talk(address, size):
    s = socket.create_connection((address, port), 10)
    s.sendall(struct.pack('>I', size)); data = bytes(range(256)) * (size // 256); s.sendall(data)
    s.shutdown(1); came = b''
    while piece := s.recv(1 << 20): came += piece
    assert came == data, (address, len(came))
talk('10.0.2.2', 3 << 20); talk(gateway6, 3 << 20); talk('10.0.2.2', 256)
assert socket.socket().connect_ex(('10.0.2.2', closed)) == 111
for family, gateway in ((socket.AF_INET, '10.0.2.2'), (socket.AF_INET6, gateway6)):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(10)
    for size in (1, 1400, 60000):
        s.sendto(bytes(size), (gateway, datagrams)); assert len(s.recv(70000)) == size
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(10); s.connect((gateway, closed)); s.send(b'x')
    try: s.recv(1)
    except ConnectionRefusedError: pass
def question(kind):
    head = struct.pack('>HHHHHH', 0x1234, 0x100, 1, 0, 0, 0)
    return head + b'\\3dev\\5atoll\\x08internal\\0' + struct.pack('>HH', kind, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10)
for kind in (1, 28):
    s.sendto(question(kind), ('10.0.2.3', 53)); assert s.recv(512)[:2] == b'\\x12\\x34'
q = question(1)
t = socket.create_connection(('10.0.2.3', 53), 10); t.sendall(struct.pack('>H', len(q)) + q)
assert len(t.recv(512)) > 2; t.close()
four, six = (socket.AF_INET, 1, 8, '10.0.2.2'), (socket.AF_INET6, 58, 128, gateway6)
for family, protocol, kind, gateway in (four, six):
    s = socket.socket(family, socket.SOCK_RAW, protocol); s.settimeout(10)
    message = bytearray(struct.pack('>BBHHH', kind, 0, 0, 7, 1) + bytes(56))
    if kind == 8:
        total = sum(struct.unpack('>32H', message)); total = (total & 0xffff) + (total >> 16)
        message[2:4] = struct.pack('>H', 0xffff - total)
    s.sendto(message, (gateway, 0))
    while True:
        came = s.recv(2000)
        if (came[20] if kind == 8 else came[0]) == (0 if kind == 8 else 129): break
print('done')
"""

#: What scapy makes of asking for an address; prints what it was lent.
LEASES = """
from scapy.all import *
conf.verb, conf.checkIPaddr = 0, False
mac = sys.argv[1]
ether = Ether(src=mac, dst='ff:ff:ff:ff:ff:ff')
head = ether / IP(src='0.0.0.0', dst='255.255.255.255') / UDP(sport=68, dport=67)
def ask(*options):
    boot = BOOTP(chaddr=bytes.fromhex(mac.replace(':', '')), xid=77, flags='B')
    return srp1(head / boot / DHCP(options=[*options, 'end']), iface='eth0', timeout=10)
offer = ask(('message-type', 'discover'))
got = offer[BOOTP].yiaddr
server = dict(o for o in offer[DHCP].options if isinstance(o, tuple) and len(o) == 2)['server_id']
ack = ask(('message-type', 'request'), ('requested_addr', got), ('server_id', server))
kind = dict(o for o in ack[DHCP].options if isinstance(o, tuple) and len(o) == 2)['message-type']
print(got, kind)
"""


@pytest.fixture
async def place(tmp_path):
    place = Paths(tmp_path, tmp_path).network("default")
    yield place
    await until(lambda: not store.is_held(place.lock), what=place.log.read_text())


class Servers:
    """On this host's loopback: what sends back what it is sent, over TCP and UDP, and a port without one."""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._echo, "127.0.0.1", 0)
        self.tcp = self._server.sockets[0].getsockname()[1]
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.setblocking(False)
        self.udp = self._sock.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._answer)
        with socket.create_server(("127.0.0.1", 0)) as unused:
            self.closed = unused.getsockname()[1]
        return self

    async def __aexit__(self, *_):
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._server.close()
        await self._server.wait_closed()

    @property
    def ports(self):
        return (self.tcp, self.udp, self.closed)

    async def _echo(self, reader, writer):
        size = int.from_bytes(await reader.readexactly(4))
        writer.write(await reader.readexactly(size))
        await writer.drain()
        writer.close()

    def _answer(self):
        data, whom = self._sock.recvfrom(70000)
        self._sock.sendto(data, whom)


def free_port(kind):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def frames_of(place, **rest):
    return Frames(place, [("one", "dev")], **{"snap": pcapng.LARGEST, **rest})


#: A server in the guest, which answers each client, and each datagram, with what it got.
REACHED = """
import socket, threading
t = socket.create_server(('', 7000)); u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('', 7000))
def datagrams():
    while True:
        data, whom = u.recvfrom(70000); u.sendto(data, whom)
threading.Thread(target=datagrams, daemon=True).start()
print('ready', flush=True)
c, _ = t.accept(); c.sendall(c.recv(100)); c.close()
input()
"""


async def be_reached(guest, tcp, udp):
    """From this host, by ports that are forwarded."""
    process = guest.start(REACHED)
    assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", tcp)
    writer.write(b"over TCP")
    assert await reader.read() == b"over TCP"
    writer.close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        for data in (b"x", bytes(3000), b"y" * 60_000):
            await loop.sock_sendto(sock, data, ("127.0.0.1", udp))
            assert await loop.sock_recv(sock, 70_000) == data
    await asyncio.to_thread(process.communicate, b"\n")


def told(file, *words):
    """What tshark says of a capture, with all checksums verified."""
    checked = [f"{what}.check_checksum:TRUE" for what in ("ip", "tcp", "udp")]
    options = [word for option in checked for word in ("-o", option)]
    result = subprocess.run(
        [TSHARK, "-n", *options, "-r", str(file), *words], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


async def test_all_that_guests_do_is_captured_and_well_formed(place, tmp_path):
    """What the network itself sends is judged by tshark, where that is installed, and read by scapy."""
    tcp, udp = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    forwards = (Forward(tcp, 7000), Forward(udp, 7000, protocol="udp"))
    file = tmp_path / "all.pcapng"
    commands = ("sysctl -qw net.ipv6.conf.eth0.accept_ra=2", "ip route add default dev eth0")
    async with (
        asyncio.timeout(60),
        Servers() as servers,
        plugged_guest(place, commands=commands, host_ports=servers.ports, forwards=forwards) as there,
        await begin_capture(frames_of(place), file) as capture,
    ):
        guest = there.guest
        assert await run(guest, LEASES, MAC) == "10.0.2.15 5"
        await has_made_itself_an_address(guest)
        for command in ("addr add 10.0.2.15/24 dev eth0", "route replace default via 10.0.2.2"):
            await ip(guest, command)
        gateway6 = ipaddress.ip_interface(there.plugged.address6).network[2]
        said = await run(guest, TRAFFIC, servers.tcp, servers.closed, servers.udp, gateway6)
        assert said == "done"
        await be_reached(guest, tcp, udp)
    assert capture.frames > 100
    assert not capture.dropped
    with PcapNgReader(str(file)) as packets:
        read = list(packets)
    assert len(read) == capture.frames
    assert {TCP, UDP, ICMP} <= {kind for packet in read for kind in packet.layers()}
    if TSHARK is None:
        pytest.skip("tshark is not installed")
    assert told(file, "-Y", WRONG) == []
    seen = {word for line in told(file, "-T", "fields", "-e", "frame.protocols") for word in line.split(":")}
    assert {"arp", "ip", "ipv6", "tcp", "udp", "icmp", "icmpv6", "dns", "dhcp"} <= seen


async def ip(guest, words):
    argv = guest.command(["ip", *words.split()])
    result = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, text=True)
    return result.stdout


async def has_made_itself_an_address(guest):
    """Wait until its kernel has one of IPv6, of the prefix that a router told it."""
    for _ in range(200):
        if await ip(guest, "-6 -o addr show dev eth0 scope global -tentative"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it has none")


#: Sends so many bytes to a server that reads them all, and says how many that were.
POUR = """
import socket, sys
s = socket.create_connection(('10.0.2.2', int(sys.argv[1])), 10)
s.sendall(bytes(int(sys.argv[2]))); s.shutdown(1)
print(int(s.recv(100)))
"""


@contextlib.asynccontextmanager
async def pouring():
    """A server that counts."""

    async def count(reader, writer):
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
        writer.write(str(total).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def read_all(frames):
    """All blocks up to the end of the capture."""
    found = []
    while blocks := await frames.read():
        found += blocks
    frames.close()
    return found


def packets_of(blocks):
    return [packet for block in blocks if (packet := pcapng.parse_packet(block)) is not None]


async def test_who_reads_too_slowly_misses_frames_and_holds_up_nobody(place):
    async with asyncio.timeout(60), pouring() as port, plugged_guest(place, host_ports=(port,)) as there:
        slow, short = frames_of(place), frames_of(place, snap=60, count=3)
        await slow.open()
        await short.open()
        assert await run(there.guest, POUR, port, 40_000_000) == "40000000"
        first = await read_all(short)
        assert len(packets_of(first)) == 3
        assert max(len(packet.frame) for packet in packets_of(first)) <= 60
        assert short.captured.dropped == 0
        assert not short.was_asked
        await slow.end()
        read = packets_of(await read_all(slow))
        assert slow.captured.dropped > 100
        assert len(read) == slow.captured.frames - slow.captured.dropped
        assert sum(len(packet.frame) for packet in read) < 10_000_000


async def test_a_capture_ends_when_the_card_is_pulled_and_is_complete(place, tmp_path):
    file = tmp_path / "pulled.pcapng"
    async with asyncio.timeout(60):
        async with plugged_guest(place) as there:
            assert await run(there.guest, "print(1)") == "1"
            capture = await begin_capture(frames_of(place), file)
            lone = frames_of(place)
            await lone.open()
        assert pcapng.parse_statistics((await read_all(lone))[-1]) is not None
        assert not lone.was_asked
        await capture.close()
        await capture.close()
    blocks = pcapng.Blocks().feed(file.read_bytes())
    assert pcapng.parse_statistics(blocks[-1]).received == capture.frames == len(packets_of(blocks))


async def test_a_capture_of_a_network_that_is_killed_can_be_read_so_far(place, tmp_path):
    file = tmp_path / "killed.pcapng"
    async with asyncio.timeout(60), pouring() as port, plugged_guest(place, host_ports=(port,)) as there:
        capture = await begin_capture(frames_of(place), file)
        assert await run(there.guest, POUR, port, 1000) == "1000"
        await until(lambda: b"1000" in file.read_bytes())
        pid = pid_of(place)
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        with pytest.raises(NetworkError) as caught:
            await capture.close()
        assert caught.value.code == "network.gone"
    assert len(packets_of(pcapng.Blocks().feed(file.read_bytes()))) > 5


async def test_what_is_not_plugged_in_cannot_be_captured(place, tmp_path):
    file = tmp_path / "none.pcapng"
    file.write_bytes(b"as it was")
    with pytest.raises(NetworkError, match=r"^dev: ") as caught:
        await begin_capture(frames_of(place), file)
    assert caught.value.code == "network.unplugged"
    async with asyncio.timeout(60), plugged_guest(place):
        with pytest.raises(NetworkError, match=r"^ci: its card is not plugged in") as caught:
            await begin_capture(Frames(place, [("one", "dev"), ("two", "ci")], snap=60), file)
        assert caught.value.code == "network.unplugged"
        assert file.read_bytes() == b"as it was"
        with pytest.raises(StoreError):
            await begin_capture(frames_of(place), tmp_path / "no" / "such")


def test_a_file_that_cannot_grow_has_whole_blocks(tmp_path):
    import resource

    path = tmp_path / "full.pcapng"
    path.touch(0o644)
    file = CaptureFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    head = [pcapng.section("test"), pcapng.interface("dev")]
    file.write(head)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(StoreError):
            file.write([pcapng.packet(0, 1, bytes(1000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.close()
    assert pcapng.Blocks().feed(path.read_bytes()) == head
    full = CaptureFile(Path("/dev/full"))
    with pytest.raises(StoreError) as caught:
        full.write(head)
    assert caught.value.code == "store.full"
    full.close()
