"""What leaves a network, at a server behind another link: this host's part is played by a namespace."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from machines import until
from networks import brief_network
from plugged import plugged_guest, run

from atoll import store
from atoll.paths import Paths

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

#: Runs as root of a namespace in the host's place: a server in another one, and the network's process.
HOST = """
import os, subprocess, sys
data, name, server = sys.argv[1:4]
there = subprocess.Popen(['unshare', '--net', sys.executable, '-c', server], stdin=subprocess.PIPE)
def ip(words, *prefix): subprocess.run([*prefix, 'ip', *words.split()], check=True)
while os.readlink(f'/proc/{there.pid}/ns/net') == os.readlink('/proc/self/ns/net'): pass
inside = ('nsenter', f'--net=/proc/{there.pid}/ns/net')
ip('link set lo up'); ip('link set lo up', *inside)
ip(f'link add v0 type veth peer name v1 netns {there.pid}')
for device, last, prefix in (('v0', 1, ()), ('v1', 2, inside)):
    ip(f'addr add 198.51.100.{last}/24 dev {device}', *prefix)
    ip(f'addr add 2001:db8::{last}/64 dev {device} nodad', *prefix)
    ip(f'link set {device} up', *prefix)
open('/proc/sys/net/ipv4/ping_group_range', 'w').write('0 0')
there.stdin.write(b'go\\n'); there.stdin.flush()
try: subprocess.run([sys.executable, '-P', '-m', 'atoll.vm.network.serving', data, name])
finally: there.kill(); there.wait()
"""

#: Sends back what it is sent, and says from where that came.
SERVER = """
import select, socket
input()
streams = [socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True)]
datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); datagrams.bind(('::', 7000))
while True:
    for sock in select.select([*streams, datagrams], [], [])[0]:
        if sock is datagrams:
            data, whom = sock.recvfrom(70000); sock.sendto(data + b' from ' + whom[0].encode(), whom)
        else:
            client, whom = sock.accept()
            data = b''
            while piece := client.recv(1 << 20): data += piece
            client.sendall(data + b' from ' + whom[0].encode()); client.close()
"""

ASK = """
import socket, struct, sys
address = sys.argv[1]
family = socket.AF_INET6 if ':' in address else socket.AF_INET
s = socket.create_connection((address, 7000), 10)
s.sendall(bytes(3_000_000)); s.shutdown(1); came = b''
while piece := s.recv(1 << 20): came += piece
assert came.startswith(bytes(3_000_000)); print('tcp', came[3_000_000:].decode())
assert socket.socket(family).connect_ex((address, 7001)) == 111
d = socket.socket(family, socket.SOCK_DGRAM); d.settimeout(10); d.sendto(b'x' * 1400, (address, 7000))
print('udp', d.recv(2000)[1400:].decode())
d = socket.socket(family, socket.SOCK_DGRAM); d.settimeout(10); d.connect((address, 7001)); d.send(b'x')
try: d.recv(1)
except ConnectionRefusedError: print('refused')
kind, protocol = (128, 58) if ':' in address else (8, 1)
p = socket.socket(family, socket.SOCK_RAW, protocol); p.settimeout(10)
message = bytearray(struct.pack('>BBHHH', kind, 0, 0, 7, 1) + b'ping')
if kind == 8: message[2:4] = struct.pack('>H', 0xffff - sum(struct.unpack('>6H', message)) % 0xffff)
p.sendto(message, (address, 0))
while not (came := p.recv(2000)).endswith(b'ping') or (came[20] if kind == 8 else came[0]) == kind: pass
print('ping')
"""


@pytest.fixture
def host(tmp_path):
    """Where a network's process believes to be on a host of its own."""
    place = Paths(tmp_path, tmp_path).network("default")
    place.directory.mkdir(parents=True)
    brief_network(place)
    words = (sys.executable, "-c", HOST, str(tmp_path), "default", SERVER)
    with (tmp_path / "host").open("wb") as log:
        process = subprocess.Popen(["unshare", "--map-root-user", "--net", *words], stderr=log)
    yield place
    assert process.wait(30) == 0
    assert not store.is_held(place.lock)


@pytest.fixture
async def place(host, tmp_path):
    """The network, when it serves."""
    await until(host.control.exists, what=(tmp_path / "host").read_text())
    return host


async def test_guests_talk_to_servers_elsewhere_as_this_host_does(place):
    commands = (
        "sysctl -qw net.ipv6.conf.eth0.accept_ra=2",
        "ip addr add 10.0.2.15/24 dev eth0",
        "ip route add default via 10.0.2.2",
    )
    async with asyncio.timeout(60), plugged_guest(place, commands=commands) as there:
        guest = there.guest
        said = await run(guest, ASK, "198.51.100.2")
        assert said.splitlines() == [
            "tcp  from ::ffff:198.51.100.1",
            "udp  from ::ffff:198.51.100.1",
            "refused",
            "ping",
        ]
        address = guest.command(
            ["ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global", "-tentative"]
        )
        for _ in range(200):
            if (await asyncio.to_thread(subprocess.run, address, check=True, capture_output=True)).stdout:
                break
            await asyncio.sleep(0.05)
        said = await run(guest, ASK, "2001:db8::2")
        assert said.splitlines() == ["tcp  from 2001:db8::1", "udp  from 2001:db8::1", "refused", "ping"]
