"""Ports that come and go while a card is plugged in, with the kernel's own stack as the guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat

import pytest
from machines import gone, until
from networks import brief_network, pid_of
from tapguest import tap_guest

from atoll import store
from atoll.errors import NetworkError
from atoll.hypervisor.model import Forward
from atoll.hypervisor.port import listen
from atoll.paths import Paths
from atoll.vm.network.attachment import Attachment, Reverse
from atoll.vm.network.cable import Cable
from atoll.vm.network.porting import Wanted

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

MAC = "02:00:00:00:00:01"
COMMANDS = ("ip addr add 10.0.2.15/24 dev eth0", "ip route add default via 10.0.2.2")

#: Tells each client its port, whom it is taken for, and what it sent up to its end.
SERVE = """
import selectors,socket,sys,threading
def talk(c,whom,port):
    data=b''
    while d:=c.recv(100): data+=d
    c.sendall(f'{port} {whom[0]} {data.decode()}'.encode()); c.close()
def serve(s,port):
    while True:
        c,whom=s.accept(); go(talk,c,whom,port)
def echo(s):
    while True:
        data,whom=s.recvfrom(100); s.sendto(data[::-1],whom)
def go(*call): threading.Thread(target=call[0],args=call[1:],daemon=True).start()
for port in map(int,sys.argv[1:]):
    go(serve,socket.create_server(('0.0.0.0',port)),port)
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); u.bind(('',7000)); go(echo,u)
print('ready',flush=True); sys.stdin.read()
"""


class Plugged:
    """A guest with servers at ports 7000 and 7001, whose card a cable keeps plugged in."""

    def __init__(self, place, directory):
        self.place = place
        self.path = directory / "card.sock"
        self.warned = []
        self._listener = listen(self.path)
        self._listener.setblocking(False)
        attachment = Attachment(network=place.directory, owner="one", hostname="one")
        self.cable = Cable(
            attachment,
            vm="one",
            mac=MAC,
            socket=self.path,
            emit=self.warned.append,
            free=_nothing,
            moved=_nothing,
        )

    @contextlib.asynccontextmanager
    async def guest(self):
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        with tap_guest(COMMANDS, mac=MAC, mtu=65520, sock=sock) as guest:
            server = guest.start(SERVE, 7000, 7001)
            assert await asyncio.to_thread(server.stdout.readline) == b"ready\n"
            yield guest
            await asyncio.to_thread(server.communicate)

    async def close(self):
        await self.cable.close()
        self._listener.close()

    async def have(self, *forwards, reverse=(), **how):
        """The ports of this host that these have then."""
        states = await self.cable.set_ports(Wanted(forwards, reverse), strict=True, **how)
        return [state.port for state in states]


async def _nothing(*_):
    pass


@pytest.fixture
async def plugged(tmp_path):
    place = Paths(tmp_path, tmp_path).network("default")
    brief_network(place)
    plugged = Plugged(place, tmp_path)
    async with asyncio.timeout(60):
        plugged.cable.begin(fresh=True)
        yield plugged
        await plugged.close()
    await until(lambda: not store.is_held(place.lock), what=place.log.read_text())


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


async def said(where, text=b""):
    """What a server says at a port of this host, or at a path; empty if it says nothing."""
    opened = (
        asyncio.open_unix_connection(where) if isinstance(where, str) else asyncio.open_connection(*where)
    )
    try:
        reader, writer = await opened
    except (ConnectionError, FileNotFoundError):
        return ""
    try:
        writer.write(text)
        writer.write_eof()
        return (await reader.read()).decode()
    finally:
        writer.close()


async def test_ports_of_each_kind_lead_to_the_guest(plugged, tmp_path):
    path = str(tmp_path / "guest.sock")
    async with plugged.guest():
        forwards = (Forward(0, 7000), Forward(0, 7001, address="::1"), Forward(0, 7000, path=path))
        four, six, none = await plugged.have(*forwards)
        assert none == 0
        assert await said(("127.0.0.1", four), b"half") == "7000 10.0.2.2 half"
        assert await said(("::1", six)) == "7001 10.0.2.2 "
        assert await said(path, b"x") == "7000 10.0.2.2 x"
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        (udp,) = await plugged.have(Forward(0, 7000, "udp"))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(("127.0.0.1", udp))
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(sock, b"abc")
            assert await loop.sock_recv(sock, 100) == b"cba"
        assert await said(("127.0.0.1", four)) == await said(path) == ""
        assert not (tmp_path / "guest.sock").is_socket()


async def test_a_port_that_cannot_be_had_changes_nothing(plugged):
    one, other = free_port(), free_port()
    async with plugged.guest():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            await plugged.have(Forward(one, 7000))
            wanted = (Forward(other, 7000), Forward(taken.getsockname()[1], 7000))
            with pytest.raises(NetworkError, match=rf"is taken by .* \(process {os.getpid()}\)") as caught:
                await plugged.have(*wanted)
            assert caught.value.code == "network.port"
            assert await said(("127.0.0.1", one)) == "7000 10.0.2.2 "
            assert await said(("127.0.0.1", other)) == ""
            # Who does not insist gets what there is, and the rest when it is to be had.
            states = await plugged.cable.set_ports(Wanted(wanted))
            assert [bool(state.refused) for state in states] == [False, True]
        while any(state.refused for state in states):
            await asyncio.sleep(0.05)
            states = await plugged.cable.ports()
        assert await said(("127.0.0.1", wanted[1].host_port)) == "7000 10.0.2.2 "


async def test_a_socket_takes_the_place_of_one_that_nobody_serves_and_of_nothing_else(plugged, tmp_path):
    served, file, deserted = tmp_path / "served", tmp_path / "file", tmp_path / "deserted"
    file.touch()
    listen(deserted).close()
    async with plugged.guest():
        with listen(served):
            for path in (served, file, tmp_path / "missing" / "x"):
                with pytest.raises(NetworkError, match=str(path)) as caught:
                    await plugged.have(Forward(0, 7000, path=str(path)))
                assert caught.value.code == "network.port"
        assert served.is_socket()
        assert file.is_file()
        await plugged.have(Forward(0, 7000, path=str(deserted)))
        assert await said(str(deserted)) == "7000 10.0.2.2 "
        # Another one's in its place is left alone.
        deserted.unlink()
        deserted.touch()
        await plugged.have()
        assert deserted.exists()


async def test_a_port_leads_elsewhere_and_who_is_connected_stays_so_unless_it_is_to_end(plugged):
    port = free_port()
    async with plugged.guest():
        await plugged.have(Forward(port, 7000))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"before")
        await plugged.have(Forward(port, 7001))
        assert await said(("127.0.0.1", port)) == "7001 10.0.2.2 "
        await plugged.have()
        assert await said(("127.0.0.1", port)) == ""
        writer.write_eof()
        assert await reader.read() == b"7000 10.0.2.2 before"
        writer.close()
        await plugged.have(Forward(port, 7000))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"before")
        await plugged.have(close=True)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_the_gateway_leads_one_guest_to_ports_and_sockets_of_the_host(plugged, tmp_path):
    async def greet(_, writer):
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    local = await asyncio.start_unix_server(greet, tmp_path / "server.sock")
    ask = """
import socket,sys
for port in map(int,sys.argv[1:]):
    s=socket.socket(); e=s.connect_ex(('10.0.2.2',port)); print(e or s.recv(9).decode(),end=' ')
"""

    async def asked(guest, *ports):
        process = guest.start(ask, *ports)
        out, error = await asyncio.to_thread(process.communicate)
        assert not process.returncode, error
        return out.decode().split()

    async with plugged.guest() as guest:
        port = server.sockets[0].getsockname()[1]
        reverse = (
            Reverse(80, port),
            Reverse(81, path=str(tmp_path / "server.sock")),
            Reverse(82, path=str(tmp_path / "nobody")),
        )
        await plugged.have(reverse=reverse)
        assert await asked(guest, 80, 81, 82, port) == ["hello", "hello", "111", "111"]
        await plugged.have(reverse=reverse[:1])
        assert await asked(guest, 80, 81) == ["hello", "111"]
    for one in (server, local):
        one.close()
        await one.wait_closed()


async def test_what_the_guest_listens_on_gets_the_same_port_or_another(plugged):
    taken = free_port()
    async with plugged.guest():
        (same, other) = await plugged.cable.set_ports(
            found=(Forward(free_port(), 7001), Forward(taken, 7000))
        )
        assert same.found
        assert same.port == same.forward.host_port
        # What is asked for by name gets its port from what was not.
        await plugged.have(Forward(taken, 7001))
        assert await said(("127.0.0.1", taken)) == "7001 10.0.2.2 "
        moved = [state for state in await plugged.cable.ports() if state.found]
        assert [state.forward.guest_port for state in moved] == [7001, 7000]
        assert moved[1].port not in {0, taken}
        assert other.port == taken
        assert await said(("127.0.0.1", moved[1].port)) == "7000 10.0.2.2 "
        await plugged.cable.set_ports(found=())
        assert [state.found for state in await plugged.cable.ports()] == [False]


async def test_all_of_it_is_there_again_when_the_process_was_killed(plugged, tmp_path):
    path = str(tmp_path / "guest.sock")
    forwards = (Forward(0, 7000), Forward(0, 7001), Forward(0, 7000, path=path))
    async with plugged.guest():
        before = await plugged.have(*forwards)
        await plugged.cable.set_ports(found=(Forward(free_port(), 7001),))
        automatic = (await plugged.cable.ports())[-1]
        os.kill(pid := pid_of(plugged.place), signal.SIGKILL)
        await gone(pid)
    async with plugged.guest():
        states = await plugged.cable.ports()
        assert [state.port for state in states] == [*before, automatic.port]
        assert await said(("127.0.0.1", before[1])) == "7001 10.0.2.2 "
        assert await said(path) == "7000 10.0.2.2 "
        # A cable that takes the card over brings its own orders, and leaves what follows the guest alone.
        await plugged.cable.close()
        other = Cable(
            Attachment(network=plugged.place.directory, owner="one", hostname="one", forwards=forwards[:1]),
            vm="one",
            mac=MAC,
            socket=plugged.path,
            emit=plugged.warned.append,
            free=_nothing,
            moved=_nothing,
        )
        other.begin(fresh=False)
        await other.plugged()
        states = await other.ports()
        assert [(state.port, state.found) for state in states] == [(before[0], False), (automatic.port, True)]
        assert not (tmp_path / "guest.sock").is_socket()
        await other.close()
