"""VMs on Atoll's own network: who reaches whom, and what is left of that when processes are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest
from machines import KILL, at_rest, gone, kill_all_at, until
from networks import pid_of

from atoll import runtime, store
from atoll.config import load
from atoll.errors import NetworkError
from atoll.events import AutoPortOpened
from atoll.image import catalog
from atoll.machine.machine import Machine
from atoll.sandbox.sandbox import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

#: Greets each client with a word, and says who it is.
SERVE = """
perl -MIO::Socket::INET -e '
$s = IO::Socket::INET->new(Listen => 5, LocalPort => 7000, ReuseAddr => 1) or die;
open(my $f, ">", "/tmp/ready"); close $f;
while (my $c = $s->accept) { print $c "hello from ", qx(hostname); close $c }' >/dev/null 2>&1 &
while ! test -e /tmp/ready; do sleep 0.02; done
"""

#: Sends without end to each of several connections.
FLOOD = "for i in 1 2 3; do (cat /dev/zero > /dev/tcp/10.0.2.2/%d) >/dev/null 2>&1 & done"


def ask(host, port):
    return ["bash", "-c", f"exec 3<>/dev/tcp/{host}/{port} && cat <&3"]


async def said_at(port):
    """What a server at a port of this host says; empty if there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return ""
    try:
        return (await reader.read()).decode()
    except ConnectionError:
        return ""
    finally:
        writer.close()


def is_replaced(network, pid):
    """Whether another process has taken the place of a network's that was killed."""
    return store.is_held(network.lock) and network.lock.read_text() not in {"", str(pid)}


class Host:
    """This host: a server at its loopback that greets, one that reads all it is sent, and a free port."""

    async def __aenter__(self):
        self._greeting = await asyncio.start_server(self._greet, "127.0.0.1", 0)
        self._reading = await asyncio.start_server(self._read, "127.0.0.1", 0)
        self.greets = self._greeting.sockets[0].getsockname()[1]
        self.reads = self._reading.sockets[0].getsockname()[1]
        self.read = 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.free = free.getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._greeting.close()
        self._reading.close()

    async def _greet(self, _, writer):
        writer.write(b"hello from the host")
        await writer.drain()
        writer.close()

    async def _read(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                self.read += len(data)
        writer.close()


@pytest.fixture
async def host():
    async with Host() as host:
        yield host


@pytest.fixture
def settings(tmp_path, paths, host):
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    ports = [host.greets, host.reads]
    flags = {"data_dir": tmp_path, "cache_dir": paths.cache, "network_host_ports": ports, "accel": "tcg"}
    yield load(flags, environment={}, files=()).config
    kill_all_at(tmp_path)


async def ended(machine):
    place = machine.find().place
    await machine.stop(force=True)
    await machine.close()
    await at_rest(place)


async def test_a_machine_its_ports_and_what_is_killed_below_it(settings, host):
    """One machine for all of this: starting one takes most of the time."""
    network = settings.paths.network("default")
    dev = await Machine.create(
        "dev",
        init="minimal",
        disk="256M",
        memory="256M",
        ports=[f"{host.free}:7000"],
        config=settings,
    )
    await dev.start()
    assert (await dev.run(ask("host.atoll.internal", host.greets))).stdout == "hello from the host"
    assert (await dev.run(ask("10.0.2.2", host.free))).code
    await dev.run(["sh", "-c", SERVE])
    assert await said_at(host.free) == "hello from dev\n"

    # The network is killed while the guest sends as fast as it can, and the supervisor with it.
    await dev.run(["bash", "-c", FLOOD % host.reads])
    await until(lambda: host.read > 10_000_000)
    pid, supervisor = pid_of(network), (await dev.status()).supervisor
    os.kill(pid, KILL)
    os.kill(supervisor, KILL)
    await gone(pid)
    await gone(supervisor)
    await until(lambda: dev.control.broken)
    vm = (await dev.status()).vm
    await until(lambda: is_replaced(network, pid))
    assert (await dev.run(ask("10.0.2.2", host.greets))).stdout == "hello from the host"
    assert await said_at(host.free) == "hello from dev\n"
    assert (await dev.status()).vm == vm

    # A copy has another address and another name; both know each other.
    (twin,) = await dev.fork("twin")
    assert (await twin.run(ask("dev", 7000))).stdout == "hello from dev\n"
    assert (await dev.run(ask("twin.atoll.internal", 7000))).stdout == "hello from twin\n"
    assert "10.0.2.15/24" in (await dev.run(["ip", "addr"])).stdout
    assert "10.0.2.16/24" in (await twin.run(["ip", "addr"])).stdout
    await ended(twin)

    # What goes on from a snapshot has its address and its ports.
    await dev.snapshot("then")
    await dev.restore("then")
    assert (await dev.run(ask("10.0.2.2", host.greets))).stdout == "hello from the host"
    assert await said_at(host.free) == "hello from dev\n"
    await ended(dev)


async def test_a_port_that_another_process_has_is_named_with_it(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dev = await Machine.create(
            "dev",
            init="minimal",
            disk="256M",
            memory="256M",
            ports=[f"{taken.getsockname()[1]}:80"],
            config=settings,
        )
        with pytest.raises(NetworkError, match=rf"is taken by .* \(process {os.getpid()}\)"):
            await dev.start()
    await dev.close()
    await at_rest(dev.find().place)


async def test_sandboxes_reach_the_host_and_not_one_another_also_when_the_network_was_killed(settings, host):
    network = settings.paths.network("sandboxes")
    opened = []

    def listen(event):
        if isinstance(event, AutoPortOpened):
            opened.append(event.host)

    wishes = {"network": True, "config": settings, "auto_ports": "7000", "on_event": listen}
    async with Sandbox("debian", **wishes) as box:
        assert (await box.run(ask("host.atoll.internal", host.greets))).stdout == "hello from the host"
        await box.run(["sh", "-c", SERVE])
        await until(lambda: opened)
        own_port = int(opened[0].rpartition(":")[2])
        assert await said_at(own_port) == f"hello from {(await box.run(['hostname'])).stdout}"
        (copy,) = await box.fork()
        async with copy:
            own = (await copy.run(["hostname", "-I"])).stdout.split()[0]
            others = (await box.run(["hostname", "-I"])).stdout.split()[0]
            assert own != others
            assert (await copy.run(ask(own, 7000))).stdout.startswith("hello from sandbox-")
            assert (await copy.run(ask("10.1.0.2", host.greets))).stdout == "hello from the host"
            assert (await copy.run(["timeout", "1", *ask(others, 7000)])).code
        pid = pid_of(network)
        os.kill(pid, KILL)
        await gone(pid)
        await until(lambda: is_replaced(network, pid))
        assert (await box.run(ask("10.1.0.2", host.greets))).stdout == "hello from the host"
        assert await said_at(own_port)
        assert len(list(network.cards.iterdir())) == 1
    assert not list(network.cards.iterdir())


async def test_where_the_own_network_cannot_start_there_is_still_one(settings):
    events = []
    record = settings.paths.network("sandboxes").record
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    async with Sandbox("debian", network=True, config=settings, on_event=events.append, cold=True) as box:
        assert "default via 10.0.2.2" in (await box.run(["ip", "route"])).stdout
    assert any("network.json" in getattr(event, "message", "") for event in events)
