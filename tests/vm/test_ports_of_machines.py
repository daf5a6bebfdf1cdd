"""Ports of a machine that runs: changed, followed, and there again whatever was killed or restored."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from machines import KILL, at_rest, gone, kill_all_at, until
from networks import pid_of

from atoll import runtime, store
from atoll.config import load
from atoll.errors import ChannelError, NetworkError, UsageError
from atoll.hypervisor.model import Forward
from atoll.image import catalog
from atoll.machine.machine import Machine
from atoll.machine.porting import PortPhase
from atoll.vm.messages import PortsChange
from atoll.vm.ports import ports_changed

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

#: Tells each client its own address and port, and whom it takes it for.
SERVE = """
for at in "$@"; do
    perl -MIO::Socket::INET -e '
    $s = IO::Socket::INET->new(Listen => 5, LocalAddr => $ARGV[0], ReuseAddr => 1) or die;
    while (my $c = $s->accept) { print $c "$ARGV[0] ", $c->peerhost; close $c }' $at >/dev/null 2>&1 &
done
"""


async def said_at(port):
    """What a server at a port of this host says; empty if there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        said = await reader.read()
    except ConnectionError:
        return ""
    writer.close()
    return said.decode()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture
def settings(tmp_path, paths):
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    flags = {"data_dir": tmp_path, "cache_dir": paths.cache, "accel": "tcg"}
    yield load(flags, environment={}, files=()).config
    kill_all_at(tmp_path)


async def ports_of(machine):
    return {port.guest_port: port.port for port in await machine.ports()}


class Servers:
    """What listens in a machine, by the ports there, of which two are forwarded by themselves."""

    def __init__(self, machine):
        self.machine = machine
        self.named, self.other, self.taken, self.local = (free_port() for _ in range(4))
        self.allowed = f"{self.taken},{self.local}"

    async def start(self):
        at = [f"0.0.0.0:{port}" for port in (self.named, self.other, self.taken)]
        await self.machine.run(["sh", "-c", SERVE, "sh", *at, f"127.0.0.1:{self.local}"])

    async def followed(self):
        """The ports of this host that lead to those of the machine, once they have come."""
        while True:
            found = await ports_of(self.machine)
            if {self.taken, self.local} <= set(found):
                return found
            await asyncio.sleep(0.1)

    async def answer(self, found):
        """Whether all answer that are found."""
        for guest, host in found.items():
            at, whom = ("127.0.0.1", "127.0.0.1") if guest == self.local else ("0.0.0.0", "10.0.2.2")
            if await said_at(host) != f"{at}:{guest} {whom}":
                return False
        return True


async def changed_by_one_who_is_killed(machine, guest_port):
    """What was not recorded does not last."""
    lost = free_port()
    request = PortsChange((*machine.spec.forwards, Forward(lost, guest_port)), ())

    async def change():
        async with ports_changed(machine.control, request):
            assert await said_at(lost)
            raise ChannelError("as if it were killed")

    with pytest.raises(ChannelError):
        await change()
    for _ in range(100):
        if not await said_at(lost):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the port stays")


async def killed(network, *others):
    """Kill the process of a network, and others with it; wait until there is another one."""
    pids = (pid_of(network), *others)
    for pid in pids:
        os.kill(pid, KILL)
    for pid in pids:
        await gone(pid)
    return pids[0]


async def test_ports_of_a_machine_while_it_runs(settings):
    """One machine for all of this: starting one takes most of the time."""
    network = settings.paths.network("default")
    dev = Machine("dev", config=settings)
    servers = Servers(dev)
    small = {"init": "minimal", "disk": "256M", "memory": "256M"}
    async with asyncio.timeout(120):
        await Machine.create("dev", **small, auto_ports=servers.allowed, config=settings)
        (first,) = await dev.add_ports(f"0:{servers.named}")
        assert first.state is PortPhase.CLOSED
        await dev.start()
        with socket.create_server(("127.0.0.1", servers.taken)):
            await servers.start()
            with pytest.raises(NetworkError):
                await dev.add_ports(f"{servers.taken}:{servers.named}")
            await dev.add_ports(f"0:{servers.other}")
            assert len(dev.spec.forwards) == 2
            found = await servers.followed()
            assert found[servers.taken] != servers.taken
            assert found[servers.local] == servers.local
            assert await servers.answer(found)
            await changed_by_one_who_is_killed(dev, servers.other)

            pid = await killed(network)
            await until(
                lambda: store.is_held(network.lock) and network.lock.read_text() not in {"", str(pid)}
            )
            assert await ports_of(dev) == found
            status = await dev.status()
            await killed(network, status.supervisor)
            assert await servers.followed() == found
            assert (await dev.status()).vm == status.vm
            assert await servers.answer(found)

            # A snapshot does not bring ports of then back; those of now lead to it.
            await dev.snapshot("then")
            with pytest.raises(UsageError):
                await dev.remove_ports(f"{found[servers.named]}:{servers.other}")
            await dev.remove_ports(str(found.pop(servers.named)))
            await dev.restore("then")
            again = await servers.followed()
            assert again.keys() == found.keys()
            assert again[servers.other] == found[servers.other]
            assert await servers.answer(again)
            await dev.suspend()
            assert [port.state for port in await dev.ports()] == [PortPhase.CLOSED]
            await dev.start()
            assert await servers.answer(await servers.followed())
        await dev.stop(force=True)
        await dev.close()
        await at_rest(dev.find().place)
