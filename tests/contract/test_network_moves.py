"""Several networks, and cards that are moved between them, with the kernel's own stack as the guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
from machines import gone, until
from networks import brief, pid_of
from tapguest import tap_guest

from atoll import store
from atoll.errors import NetworkError
from atoll.hypervisor.model import Forward
from atoll.hypervisor.port import listen
from atoll.paths import Paths
from atoll.vm.network import catalog
from atoll.vm.network.attachment import Attachment
from atoll.vm.network.cable import Cable
from atoll.vm.network.catalog import Activity, Wish
from atoll.vm.network.managing import pull
from atoll.vm.network.reaching import ensure
from atoll.vm.network.records import Leases, Network

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

MACS = {"one": "02:00:00:00:00:01", "two": "02:00:00:00:00:02"}

CONNECT = """
import socket,sys
s=socket.socket();s.settimeout(float(sys.argv[3]) if sys.argv[3:] else 9)
try: s.connect((sys.argv[1],int(sys.argv[2])));print(s.recv(99).decode())
except OSError as e: print(type(e).__name__, e.errno)
"""

ASK = """
import socket,sys
n=b''.join(bytes([len(p)])+p.encode() for p in sys.argv[2].split('.'))+b'\\0'
q=b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0'+n+b'\\0\\1\\0\\1'
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(5)
s.sendto(q,(sys.argv[1],53));a=s.recv(512)
print(a[3]&15, socket.inet_ntoa(a[-4:]) if a[7] else '')
"""

GREET = """
import socket
s=socket.create_server(('',7000));print('ready',flush=True)
while True:
    c,_=s.accept();c.sendall(b'hello from a guest');c.close()
"""


@pytest.fixture
async def paths(tmp_path):
    paths = Paths(tmp_path, tmp_path)
    yield paths
    for name in ("lab", "other"):
        place = paths.network(name)
        await until(lambda place=place: not place.lock.exists() or not store.is_held(place.lock))


def make(paths, name, **wish):
    """A network whose process ends soon after it was used."""
    network = catalog.create(paths, name, Wish(**wish))
    brief(paths.network(name))
    return paths.network(name), network.addressing


class Guest:
    """A guest, and in the place of its supervisor what keeps its card plugged in."""

    def __init__(self, paths, name):
        self.name = name
        self.path = paths.data / f"{name}.sock"
        self._listener = listen(self.path)
        self._listener.setblocking(False)
        self.told = []
        self.warned = []
        self._stack = contextlib.ExitStack()
        self._processes = []

    def cable(self, place, **rest):
        async def free():
            pass

        async def moved(plugged):
            self.told.append(plugged)

        attachment = Attachment(network=place.directory, owner=self.name, hostname=self.name, **rest)
        return Cable(
            attachment,
            vm=self.name,
            mac=MACS[self.name],
            socket=self.path,
            emit=self.warned.append,
            free=free,
            moved=moved,
        )

    async def accept(self):
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        return sock

    async def begin(self, plugged):
        """Have a kernel's stack behind the card, with the addresses that it was told of."""
        commands = [f"ip addr add {plugged.address} dev eth0"]
        if plugged.gateway:
            commands.append(f"ip route add default via {plugged.gateway}")
        sock = await self.accept()
        self.tap = self._stack.enter_context(
            tap_guest(commands, mac=MACS[self.name], mtu=plugged.mtu, sock=sock)
        )
        return plugged.address.partition("/")[0]

    async def run(self, source, *words):
        process = self.tap.start(source, *words)
        out, error = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, error.decode()
        return out.decode().strip()

    async def serve(self):
        process = self.tap.start(GREET)
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        self._processes.append(process)

    def close(self):
        for process in self._processes:
            process.kill()
            process.communicate()
        self._stack.close()
        self._listener.close()


@contextlib.asynccontextmanager
async def guests(paths, *names):
    made = [Guest(paths, name) for name in names]
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        for guest in made:
            guest.close()


async def plugged_in(guest, place, **rest):
    cable = guest.cable(place, **rest)
    cable.begin(fresh=True)
    plugged = await cable.plugged()
    await guest.begin(plugged)
    return cable, plugged


def address_of(plugged):
    return plugged.address.partition("/")[0]


async def test_guests_of_one_network_see_one_another_and_those_of_another_do_not(paths):
    lab, addressing = make(paths, "lab")
    other, _ = make(paths, "other")
    async with guests(paths, "one", "two") as (one, two):
        first, at_one = await plugged_in(one, lab)
        second, at_two = await plugged_in(two, lab)
        assert at_one.address == f"{addressing.ipv4[15]}/24"
        await one.serve()
        assert await two.run(ASK, at_two.resolver, "one.atoll.internal") == f"0 {address_of(at_one)}"
        assert await two.run(CONNECT, address_of(at_one), 7000) == "hello from a guest"
        assert {card.hostname for card in (await asyncio.to_thread(catalog.find, paths, "lab")).cards} == {
            "one",
            "two",
        }

        # Moved to another network, as a supervisor does it; what it had on the former one is gone.
        await second.close()
        await pull(lab, two.path)
        moved = two.cable(other)
        moved.begin(fresh=False, freed=True)
        elsewhere = await moved.plugged()
        assert elsewhere.gateway != at_two.gateway
        await two.begin(elsewhere)
        assert await two.run(ASK, elsewhere.resolver, "one.atoll.internal") == "3"
        assert await two.run(CONNECT, address_of(at_one), 7000, 0.5) != "hello from a guest"
        assert [len(one.cards) for one in await asyncio.to_thread(catalog.listed, paths)] == [0, 0, 1, 1]
        await moved.close()
        await first.close()
    assert not two.warned


async def test_guests_of_an_isolated_network_do_not_see_one_another(paths):
    lab, _ = make(paths, "lab", isolated=True)
    async with guests(paths, "one", "two") as (one, two):
        first, at_one = await plugged_in(one, lab)
        second, at_two = await plugged_in(two, lab)
        await one.serve()
        assert await two.run(ASK, at_two.resolver, "one.atoll.internal") == "3"
        assert await two.run(CONNECT, address_of(at_one), 7000, 0.5) != "hello from a guest"
        await first.close()
        await second.close()


async def test_an_internal_network_leads_to_guests_and_open_ports_alone_and_asks_nobody(paths):
    lab, _ = make(paths, "lab", internal=True, mtu=1400)

    async def greet(_, writer):
        writer.write(b"hello from the host")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as unused:
        free = unused.getsockname()[1]
    async with guests(paths, "one") as (one,):
        cable, plugged = await plugged_in(one, lab, host_ports=(port,), forwards=(Forward(free, 7000),))
        assert (plugged.gateway, plugged.mtu) == ("", 1400)
        assert await one.run(CONNECT, plugged.resolver, 80) == "ConnectionRefusedError 111"
        gateway = str(store.read_record(lab.record, Network).addressing.gateway)
        assert await one.run(CONNECT, gateway, port) == "hello from the host"
        assert await one.run(CONNECT, "192.0.2.1", 80) == "OSError 101"  # there is no route
        assert await one.run(ASK, plugged.resolver, "debian.org") == "3"
        assert await one.run(ASK, plugged.resolver, "host.atoll.internal") == f"0 {gateway}"
        await one.serve()
        reader, writer = await asyncio.open_connection("127.0.0.1", free)
        assert await reader.read() == b"hello from a guest"
        writer.close()
        await cable.close()
    server.close()
    await server.wait_closed()


async def test_a_card_whose_supervisor_was_killed_on_its_way_is_where_the_plan_says(paths):
    lab, _ = make(paths, "lab")
    other, _ = make(paths, "other")
    async with guests(paths, "one") as (one,):
        cable, plugged = await plugged_in(one, lab)
        await cable.close()  # the supervisor is gone; the card stays plugged in
        again = one.cable(other)
        again.begin(fresh=False)
        elsewhere = await again.plugged()
        (await one.accept()).close()
        await until(lambda: one.told)
        assert one.told == [elsewhere]
        assert elsewhere.address != plugged.address
        assert not (await asyncio.to_thread(catalog.find, paths, "lab")).cards
        await again.close()


async def test_a_network_with_a_card_stays_and_one_without_goes_with_its_process(paths):
    lab, _ = make(paths, "lab")
    async with guests(paths, "one") as (one,):
        cable, _ = await plugged_in(one, lab)
        with pytest.raises(NetworkError, match="cards are plugged in") as caught:
            await asyncio.to_thread(catalog.remove, paths, "lab", tuple)
        assert caught.value.code == "network.in_use"
        assert len((await asyncio.to_thread(catalog.find, paths, "lab")).cards) == 1
        await cable.close()
        await pull(lab, one.path)
        pid = pid_of(lab)
        await asyncio.to_thread(catalog.remove, paths, "lab", tuple)
        await gone(pid)
        assert os.listdir(paths.networks) == [".lock"]
        lost = one.cable(lab)
        lost.begin(fresh=True)
        with pytest.raises(NetworkError) as caught:
            await lost.plugged()
        assert caught.value.code == "network.unknown"
        assert os.listdir(paths.networks) == [".lock"]


async def test_a_machine_that_is_removed_leaves_its_address_to_others_while_the_network_is_in_use(paths):
    lab, addressing = make(paths, "lab")
    async with guests(paths, "one", "two") as (one, two):
        cable, _ = await plugged_in(one, lab)
        await cable.close()
        await asyncio.to_thread(catalog.forget_machine, paths, "one")
        assert store.read_record(lab.leases, Leases).numbers == {"one": 0}  # its card is there
        await pull(lab, one.path)
        await asyncio.to_thread(catalog.forget_machine, paths, "one")
        assert store.read_record(lab.leases, Leases).numbers == {}
        second, plugged = await plugged_in(two, lab)
        assert address_of(plugged) == str(addressing.ipv4[15])
        await second.close()


async def test_a_process_that_was_stopped_is_told_with_its_number_at_once(paths):
    lab, _ = make(paths, "lab")
    await asyncio.to_thread(ensure, lab)
    pid = pid_of(lab)
    os.kill(pid, signal.SIGSTOP)
    try:
        await until(lambda: b") T " in Path(f"/proc/{pid}/stat").read_bytes())
        found = await asyncio.to_thread(catalog.find, paths, "lab")
        assert (found.activity, found.pid) == (Activity.STUCK, pid)
        assert f"kill -9 {pid}" in found.hint
        with pytest.raises(NetworkError) as caught:
            await asyncio.to_thread(catalog.remove, paths, "lab", tuple)
        assert caught.value.code == "network.stuck"
    finally:
        os.kill(pid, signal.SIGKILL)
    await gone(pid)
    await asyncio.to_thread(catalog.remove, paths, "lab", tuple)
    assert os.listdir(paths.networks) == [".lock"]
