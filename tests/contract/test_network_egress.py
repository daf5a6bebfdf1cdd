"""What guests may reach, with kernels' own stacks as guests and as the outside."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import socket
import ssl
from functools import partial

import dnslib
import pytest
from machines import until
from outside import GREETS, needs_root, outside
from tapguest import tap_guest

from atoll.network.addressing import Addressing
from atoll.network.audit import Decided, Ended, Resolved, decode
from atoll.network.destinations import Destinations
from atoll.network.dns.upstreams import Resolvers, Upstream, parse_hosts
from atoll.network.forwards import Forwarded, StreamForward, listen
from atoll.network.lan import Lan
from atoll.network.leases import Lease
from atoll.network.policy.parsing import parse_policy
from atoll.network.tcp import flow
from atoll.network.wire.ethernet import parse_mac

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers"), needs_root]

ADDRESSING = Addressing(ipaddress.ip_network("10.0.2.0/24"), ipaddress.ip_network("fd00:a701::/64"))


@pytest.fixture(scope="module")
def far():
    with outside() as far:
        yield far


@pytest.fixture
async def lan():
    lan = Lan(ADDRESSING, Destinations(ADDRESSING), mtu=65520, is_shared=True, domain="atoll.internal")
    async with asyncio.timeout(60):
        yield lan
    lan.close()


@contextlib.contextmanager
def plugged(lan, number=0, name="dev"):
    """A guest, and its card."""
    mac = f"02:00:00:00:00:{number + 1:02x}"
    four, six = ADDRESSING.machine(number)
    commands = (
        f"ip addr add {four}/24 dev eth0",
        "ip route add default via 10.0.2.2",
        f"ip -6 addr add {six}/64 dev eth0 nodad",
        "ip -6 route add default via fd00:a701::2 dev eth0",
    )
    with tap_guest(commands, mac=mac, mtu=65520) as guest:
        guest.card = lan.plug(Lease(parse_mac(mac), four, six, name), guest.sock, lambda: None)
        guest.four, guest.six = str(four), str(six)
        lan.resolver.names.add(name, name, [four, six])
        guest.programs = []
        try:
            yield guest
        finally:
            for program in guest.programs:
                program.kill()
                program.communicate()


@pytest.fixture
async def guest(lan):
    with plugged(lan) as guest:
        yield guest


def follow(guest, *lines):
    guest.card.follow(parse_policy(lines) if lines else None)


def records(lan, kind):
    found = [decode(line) for line in lan.trail.take().splitlines()]
    return [each for each in found if isinstance(each, kind)]


def start(guest, source, *words):
    """A program that runs in the guest, for as long as that is there."""
    guest.programs.append(guest.start(PRELUDE + source, *words))
    return guest.programs[-1]


async def run(guest, source, *words):
    """What a program printed that ran in the guest."""
    process = start(guest, source, *words)
    out, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, error.decode()
    return out.decode().strip()


PRELUDE = """
import socket, sys
a = sys.argv[1:]
def connect(host, port, said=b"", count=5):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET); s.settimeout(10)
    if s.connect_ex((host, int(port))): return "refused"
    if said: s.sendall(said)
    try: data = s.recv(count)
    except ConnectionResetError: return "reset"
    s.close()
    return "passed" if data else "ended"
def ask(name, kind=1, tcp=False):
    q = b"\\x12\\x34\\1\\0\\0\\1" + bytes(6)
    q += b"".join(bytes([len(p)]) + p for p in name.encode().split(b".")) + b"\\0" + bytes([0, kind, 0, 1])
    if tcp:
        s = socket.create_connection(("10.0.2.3", 53)); s.sendall(len(q).to_bytes(2) + q)
        r = s.recv(2000)[2:]
    else:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.sendto(q, ("10.0.2.3", 53))
        r = s.recv(2000)
    return r[3] & 15
def send(host, port, size=1):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    s.connect((host, int(port))); s.send(bytes(size))
    try: return "passed" if len(s.recv(70000)) == size else "?"
    except OSError as error: return "lost" if isinstance(error, TimeoutError) else "refused"
"""


class NameServer(asyncio.DatagramProtocol):
    """A name server of the host's, which says that every name is at the addresses it is told."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.asked = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, whom):
        query = dnslib.DNSRecord.parse(data)
        self.asked.append(str(query.q.qname).rstrip("."))
        reply = query.reply()
        for address in self.addresses:
            is_6 = ":" in address
            if query.q.qtype == (28 if is_6 else 1):
                record = dnslib.AAAA(address) if is_6 else dnslib.A(address)
                reply.add_answer(dnslib.RR(query.q.qname, query.q.qtype, rdata=record, ttl=60))
        self.transport.sendto(reply.pack(), whom)


@contextlib.asynccontextmanager
async def names_at(lan, *addresses):
    transport, upstream = await asyncio.get_running_loop().create_datagram_endpoint(
        partial(NameServer, addresses), local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    lan.resolver._forwarder.follow(Resolvers((Upstream("127.0.0.1", port),)), parse_hosts(""))
    try:
        yield upstream
    finally:
        transport.close()


def hello(name):
    """What a client of TLS says first, of OpenSSL's own making."""
    away, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(away, back, server_hostname=name).do_handshake()
    return back.read()


async def test_without_a_policy_everything_is_reached_and_written_down(lan, guest, far):
    program = "print(connect(a[0], 22), connect(a[1], 22), send(a[0], 9000), connect('127.0.0.2', 22))"
    assert await run(guest, program, far.four, far.six) == "passed passed passed refused"
    (four, six, datagram) = records(lan, Decided)
    assert (four.guest, four.protocol, four.address, four.port) == ("dev", "tcp", far.four, GREETS)
    assert (four.verdict, four.rule) == ("allow", "default")
    assert (six.address, datagram.protocol, datagram.port) == (far.six, "udp", 9000)


async def test_what_passed_is_counted_when_it_is_over(lan, guest, far):
    program = """
s = socket.create_connection((a[0], 9000)); data = bytes(3_000_000)
import threading; threading.Thread(target=s.sendall, args=(data,)).start()
n = 0
while n < len(data): n += len(s.recv(1 << 20))
print("open", flush=True); sys.stdin.readline()
s.close()
"""
    process = start(guest, program, far.four)
    assert await asyncio.to_thread(process.stdout.readline) == b"open\n"
    await until(lambda: [(each.sent, each.received) for each in lan.flows] == [(3_000_000, 3_000_000)])
    assert await asyncio.to_thread(process.communicate, b"\n")
    await until(lambda: not guest.card.flows.table)
    (ended,) = records(lan, Ended)
    assert (ended.sent, ended.received, ended.why) == (3_000_000, 3_000_000, "ended")
    assert not lan.flows


async def test_by_name_there_is_no_way_round_it(lan, guest, far):
    """SNI and Host that lie, other addresses, other ports, other protocols, and IPv6."""
    follow(guest, "allow tcp good.example:80,443", "allow tcp good.example:9000")
    request = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
    program = """
good, bad, silent, lies = (bytes.fromhex(word) for word in a[4:8])
print(ask("bad.example"), ask("bad.example", 28), ask("bad.example", tcp=True), ask("good.example.evil"))
print(connect(a[0], 443, good))
print(ask("good.example"), ask("good.example", tcp=True))
print(connect(a[0], 443, good), connect(a[0], 443, bad), connect(a[0], 443, silent))
print(connect(a[0], 80, b"GET / HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n"), connect(a[0], 80, lies))
print(connect(a[0], 9000, b"x"), connect(a[1], 443, good), connect(a[2], 443, good), connect(a[0], 22))
print(send(a[0], 443), send(a[0], 9000))
"""
    hellos = [hello("good.example"), hello("bad.example"), b"\0not TLS\r\n\r\n", request % b"bad.example"]
    async with names_at(lan, far.four) as upstream:
        said = await run(guest, program, far.four, far.other, far.six, "-", *(each.hex() for each in hellos))
    assert said.splitlines() == [
        "3 3 3 3",
        "refused",
        "0 0",
        "passed reset reset",
        "passed reset",
        "passed refused refused refused",
        "refused refused",
    ]
    assert set(upstream.asked) == {"good.example"}
    found = [decode(line) for line in lan.trail.take().splitlines()]
    assert [each.name for each in found if isinstance(each, Resolved)] == [
        *["bad.example"] * 3,
        "good.example.evil",
    ]
    lied = [each for each in found if isinstance(each, Decided) and each.name == "bad.example"]
    assert [(each.port, each.verdict) for each in lied] == [(443, "deny"), (80, "deny")]
    ends = {(each.port, each.why) for each in found if isinstance(each, Ended)}
    assert {(443, "denied"), (80, "denied")} <= ends


async def test_a_name_that_is_allowed_leads_neither_to_this_host_nor_to_neighbours(lan, guest, far):
    follow(guest, "allow *.example")
    with plugged(lan, 1, "other") as other:
        server = start(other, SERVE)
        assert await asyncio.to_thread(server.stdout.readline) == b"ready\n"
        async with names_at(lan, "127.0.0.1", other.four, "169.254.169.254", far.host, other.six):
            program = "print(ask('a.example'), ask('a.example', 28), *(connect(each, 7000) for each in a))"
            places = (other.four, "169.254.169.254", far.host, other.six)
            assert await run(guest, program, *places) == "0 0 refused refused refused refused"
        await asyncio.to_thread(server.communicate)
    stripped = records(lan, Resolved)
    assert {each.verdict for each in stripped} == {"strip"}


SERVE = """
import socket,sys,threading
l=socket.create_server(('',7000),family=socket.AF_INET6,dualstack_ipv6=True)
u=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)
u.setsockopt(41,26,0); u.bind(('',7001)); print('ready',flush=True)
def talk():
    while True:
        c,_=l.accept(); c.sendall(b'hello'); c.close()
def echo():
    while True:
        d,w=u.recvfrom(70000); u.sendto(d,w)
for each in (talk,echo): threading.Thread(target=each,daemon=True).start()
sys.stdin.read()
"""


async def test_neighbours_are_reached_by_rule_alone_and_may_begin_themselves(lan, guest):
    with plugged(lan, 1, "other") as other:
        servers = [start(each, SERVE) for each in (guest, other)]
        for server in servers:
            assert await asyncio.to_thread(server.stdout.readline) == b"ready\n"
        program = "print(*(connect(each, 7000) for each in a), *(send(each, 7001, 9000) for each in a))"
        ends = (other.four, other.six)
        assert await run(guest, program, *ends) == "passed passed passed passed"
        follow(guest, "none")
        assert await run(guest, program, *ends) == "refused refused refused refused"
        # What a neighbour begins goes on: connections, and datagrams in fragments.
        assert await run(other, program, guest.four, guest.six) == "passed passed passed passed"
        follow(guest, "allow tcp other.atoll.internal:7000")
        program = (
            "print(connect(a[0], 7000), ask('other.atoll.internal'), connect(a[0], 7000), send(a[0], 7001))"
        )
        assert await run(guest, program, other.four) == "refused 0 passed refused"
        follow(guest)
        assert await run(guest, program, other.four) == "passed 0 passed passed"
        for server in servers:
            await asyncio.to_thread(server.communicate)


async def test_a_change_counts_for_what_is_open_and_not_for_who_came_in(lan, guest, far):
    program = """
s = socket.create_connection((a[0], 22)); assert s.recv(5) == b"hello"; s.settimeout(10)
t = socket.create_connection((a[1], 22)); assert t.recv(5) == b"hello"; t.settimeout(10)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(10)
u.sendto(b"x", (a[0], 9000)); u.recv(9)
l = socket.create_server(("", 7000)); print("open", flush=True); c, _ = l.accept(); print("came", flush=True)
sys.stdin.readline()
try: print(s.recv(1))
except ConnectionResetError: print("reset")
t.sendall(b"still"); print(t.recv(9)); c.sendall(b"too"); c.close()
u.connect((a[0], 9000))
try: u.send(b"x"); u.recv(9)
except TimeoutError: print("lost")
except OSError: print("refused")
print(connect(a[0], 22), flush=True)
sys.stdin.readline()
print(connect(a[0], 22))
"""
    process = start(guest, program, far.four, far.other)
    assert await asyncio.to_thread(process.stdout.readline) == b"open\n"
    sock = listen(Forwarded("127.0.0.1", 0, 7000))
    forward = StreamForward(sock, guest.card, lambda _: socket.inet_aton(guest.four), 7000, ADDRESSING)
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    assert await asyncio.to_thread(process.stdout.readline) == b"came\n"
    lan.trail.take()
    follow(guest, f"allow tcp {far.other}:22")
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert await reader.read() == b"too"
    writer.close()
    lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(4)]
    assert lines == [b"reset\n", b"b'still'\n", b"refused\n", b"refused\n"]
    ended = [each for each in records(lan, Ended) if each.why == "denied"]
    assert {(each.protocol, each.address) for each in ended} == {("tcp", far.four), ("udp", far.four)}
    follow(guest)
    out, error = await asyncio.to_thread(process.communicate, b"\n")
    assert out == b"passed\n", error.decode()
    forward.close()


async def test_a_connection_that_has_said_whom_it_wants_keeps_that_name_when_rules_change(lan, guest, far):
    follow(guest, "allow *.example")
    program = """
ask("a.example"); ask("b.example"); both = []
for word in a[1:]:
    s = socket.create_connection((a[0], 443)); s.settimeout(10); both.append(s)
    s.sendall(bytes.fromhex(word)); s.recv(1 << 16)
print("open", flush=True); sys.stdin.readline()
for s in both:
    try: s.sendall(b"x"); print(len(s.recv(9)))
    except OSError: print("reset")
"""
    async with names_at(lan, far.four):
        words = [hello(name).hex() for name in ("a.example", "b.example")]
        process = start(guest, program, far.four, *words)
        assert await asyncio.to_thread(process.stdout.readline) == b"open\n"
        follow(guest, "deny a.example", "allow *.example")
        out, error = await asyncio.to_thread(process.communicate, b"\n")
    assert out == b"reset\n1\n", error.decode()


async def test_a_rate_comes_and_goes_and_nothing_is_lost(guest, far):
    program = """
import hashlib, threading
s = socket.create_connection((a[0], 9000)); data = bytes(range(256)) * 8192
def write():
    for at in range(0, len(data), 65536):
        s.sendall(data[at:at + 65536])
        if at == 1 << 19: print("half", flush=True)
    s.shutdown(1)
threading.Thread(target=write).start()
h = hashlib.sha256()
while more := s.recv(1 << 20): h.update(more)
print(h.hexdigest())
"""
    follow(guest, "limit rate 6M")
    process = start(guest, program, far.four)
    assert await asyncio.to_thread(process.stdout.readline) == b"half\n"
    follow(guest)
    follow(guest, "limit rate 8M")
    out, error = await asyncio.to_thread(process.communicate)
    digest = hashlib.sha256(bytes(range(256)) * 8192).hexdigest()
    assert out.decode().split() == [digest], error.decode()
    assert guest.card.guard.pacer is not None


async def test_connections_that_come_too_fast_come_later(lan, guest, far):
    follow(guest, "limit connections 3")
    assert await run(guest, "print(*(connect(a[0], 22) for _ in range(5)))", far.four) == " ".join(
        ["passed"] * 5
    )
    assert len(records(lan, Decided)) == 5


async def test_who_floods_the_log_is_counted(lan, guest, far):
    follow(guest, "none")
    program = """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for at in range(5000):
    try: s.sendto(b"x", (a[0], 1000 + at))
    except OSError: pass
print(connect(a[0], 22))
"""
    assert await run(guest, program, far.four) == "refused"
    assert len(records(lan, Decided)) < 3000


async def test_many_who_do_not_say_whom_they_want_hold_no_more_than_there_is_room_for(
    lan, guest, far, monkeypatch
):
    monkeypatch.setattr(flow, "MOST_HELD", 200 * 20)
    follow(guest, "allow a.example")
    program = """
ask("a.example"); many = []
for _ in range(50):
    s = socket.create_connection((a[0], 443)); many.append(s)
    s.sendall(bytes.fromhex(a[1])[:200])
print("held", flush=True); sys.stdin.readline()
"""
    flows = guest.card.flows
    async with names_at(lan, far.four):
        before = flows.allowance
        process = start(guest, program, far.four, hello("a.example").hex())
        assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
        await until(lambda: len(flows.table) == 20)
        assert flows.held == 200 * 20
        await asyncio.to_thread(process.communicate, b"\n")
        await until(lambda: not flows.table)
        assert (flows.held, flows.allowance) == (0, before)
