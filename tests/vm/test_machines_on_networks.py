"""VMs on networks that a user made, and a machine that is moved between them while it runs."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from machines import KILL, at_rest, gone, kill_all_at, until
from networks import brief, pid_of

from atoll import runtime
from atoll.aio import Machine, Network, Sandbox, networks
from atoll.config import load
from atoll.errors import NetworkError
from atoll.image import catalog

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

#: Greets each client with who it is.
SERVE = """
perl -MIO::Socket::INET -e '
$s = IO::Socket::INET->new(Listen => 5, LocalPort => 7000, ReuseAddr => 1) or die;
open(my $f, ">", "/tmp/ready"); close $f;
while (my $c = $s->accept) { print $c "hello from ", qx(hostname); close $c }' >/dev/null 2>&1 &
while ! test -e /tmp/ready; do sleep 0.02; done
"""

ADDRESSES = "ip -o addr show dev eth0 scope global; ip route; cat /etc/resolv.conf; ip link show eth0"


def ask(name, port):
    """Ask a server, over IPv4: a guest that has just come has its address of IPv6 some seconds later."""
    found = f"$(timeout 1 getent ahostsv4 {name} | head -n1 | cut -d' ' -f1)"
    return ["bash", "-c", f"exec 3<>/dev/tcp/{found}/{port} && cat <&3"]


async def said_at(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


async def seen(machine, command, text):
    """Wait until a command says that."""
    while text not in (await machine.run(command)).stdout:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(0.1)


async def on(machine):
    """What the guest knows of its network."""
    return (await machine.run(["sh", "-c", ADDRESSES])).stdout


@pytest.fixture
def settings(tmp_path, paths):
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    flags = {"data_dir": tmp_path, "cache_dir": paths.cache, "accel": "tcg"}
    yield load(flags, environment={}, files=()).config
    kill_all_at(tmp_path)


async def ended(machine):
    place = machine.find().place
    await machine.stop(force=True)
    await machine.close()
    await at_rest(place)


async def test_a_machine_is_moved_to_a_network_of_the_user_and_back(settings):  # noqa: PLR0915
    """One machine for all of this: starting one takes most of the time."""
    lab = await Network.create("lab", subnet="10.77.0.0/24", mtu=1400, config=settings)
    brief(settings.paths.network("lab"))
    brief(settings.paths.network("default"))
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    dev = await Machine.create(
        "dev", init="minimal", disk="256M", memory="256M", ports=[f"{port}:7000"], config=settings
    )
    await dev.start()
    await dev.run(["sh", "-c", SERVE])
    assert "10.0.2.15/24" in await on(dev)

    # It is moved while it runs, and is reached by its port as before.
    assert await dev.join_network("lab") == "now"
    found = await on(dev)
    assert "10.77.0.15/24" in found
    assert "10.0.2." not in found
    assert "via 10.77.0.2" in found
    assert "mtu 1400" in found
    assert "nameserver 10.77.0.3" in found
    assert await said_at(port) == "hello from dev\n"
    assert [card.hostname for card in (await lab.info()).cards] == ["dev"]
    prefix = (await lab.info()).ipv6.partition("::")[0]
    await seen(dev, ["sh", "-c", ADDRESSES], prefix)

    # Sandboxes and machines on it know one another by name; a copy of the machine is on it, too.
    async with Sandbox("debian", network="lab", config=settings) as box:
        assert (await box.run(ask("dev", 7000))).stdout == "hello from dev\n"
        await box.run(["sh", "-c", SERVE])
        assert (await dev.run(ask(f"{box.name}.atoll.internal", 7000))).stdout.startswith(
            "hello from sandbox-"
        )
        assert "mtu 1400" in await on(box)
    (twin,) = await dev.fork("twin")
    assert (await twin.run(ask("dev", 7000))).stdout == "hello from dev\n"
    assert (await dev.run(ask("twin", 7000))).stdout == "hello from twin\n"
    with pytest.raises(NetworkError, match="dev, twin"):
        await lab.remove()
    await ended(twin)
    await twin.remove()

    # Whoever is killed, it stays there.
    supervisor, network = (await dev.status()).supervisor, pid_of(settings.paths.network("lab"))
    os.kill(supervisor, KILL)
    os.kill(network, KILL)
    await gone(supervisor)
    await gone(network)
    await until(lambda: dev.control.broken)
    await dev.status()
    await seen(dev, ask("dev.atoll.internal", 7000), "hello from dev")
    assert await said_at(port) == "hello from dev\n"

    # One that is suspended is elsewhere when it goes on, and its guest is told.
    await dev.suspend()
    assert await dev.join_network("default") == "at the next start"
    await dev.start()
    assert "10.0.2.15/24" in await on(dev)
    assert "mtu 65520" in await on(dev)
    assert await said_at(port) == "hello from dev\n"
    await ended(dev)
    await lab.remove()
    assert [one.name for one in await networks(config=settings)] == ["default", "sandboxes"]
