"""The Docker socket with a real guest behind it, whose server is one of a few lines."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import pytest
from guests import eventually, running_machine
from machines import gone, processes_at, until

from atoll.blocking.core import wait_for
from atoll.containers import launching
from atoll.containers.demand import Stage
from atoll.containers.listener import Timing

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths):
    wait_for(asyncio.sleep(0))
    data = tmp_path_factory.mktemp("docker") / "data"
    with running_machine(data, paths, disk="256M", memory="256M") as machine:
        yield machine
        machine.stop(force=True)
        eventually(lambda: not processes_at(data))


@pytest.fixture
def config(dev, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    yield dev._async._config
    place = dev._async._config.paths.docker
    asyncio.run(launching.stop(place, grace=0.0))
    assert not place.socket.exists()


async def running(config, **timing):
    return await launching.running(config, Timing(**timing), backend="guest_engines:GuestEngine")


async def dial(config):
    return await asyncio.open_unix_connection(config.paths.docker.socket)


async def ask(config, command, data=b""):
    """What the server answers to ``command`` and what follows it, up to its end."""
    async with asyncio.timeout(120):
        reader, writer = await dial(config)

        async def send():
            writer.write(command + b"\n" + data)
            await writer.drain()
            writer.write_eof()

        _, answer = await asyncio.gather(send(), reader.read())
        writer.close()
        return answer


async def test_bytes_pass_both_ways_at_once_and_hundreds_are_served(config):
    found = await running(config, idle=0.0)
    data = os.urandom(8 << 20)
    assert await ask(config, b"sha256sum", data) == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()
    assert await ask(config, b"echo", data) == data
    answers = await asyncio.gather(*(ask(config, b"echo", b"%d" % n * 1000) for n in range(200)))
    assert answers == [b"%d" % n * 1000 for n in range(200)]
    assert await ask(config, b"exec < /dev/null; sleep 0.2; echo late") == b"late\n"
    reader, writer = await dial(config)
    writer.write(b"exec 0< /dev/null; cat /proc/sys/kernel/random/boot_id; exec sleep 1000\n")
    assert len(await reader.readline()) == 37
    writer.transport.abort()
    status = await running(config)
    assert (status.pid, status.stage) == (found.pid, Stage.READY)


async def test_a_killed_listener_and_a_killed_supervisor_leave_the_engine_as_it_was(config, dev):
    first = await running(config, idle=0.0)
    await ask(config, b"echo $$ > /run/kept")
    reader, writer = await dial(config)
    writer.write(b"echo\nx")
    assert await reader.readexactly(1) == b"x"
    os.kill(first.pid, signal.SIGKILL)
    assert await reader.read() == b""
    writer.close()
    await gone(first.pid)
    second = await running(config, idle=0.0)
    assert second.pid != first.pid
    kept = await ask(config, b"cat /run/kept")
    assert kept
    reader, writer = await dial(config)
    writer.write(b"echo\nx")
    assert await reader.readexactly(1) == b"x"
    supervisor = await asyncio.to_thread(lambda: dev.status().supervisor)
    os.kill(supervisor, signal.SIGKILL)
    assert await reader.read() == b""
    writer.close()
    assert await ask(config, b"cat /run/kept") == kept
    assert (await running(config)).pid == second.pid


async def test_it_is_suspended_when_nobody_uses_it_and_goes_on_for_the_next(config):
    await running(config, idle=0.5)
    await ask(config, b"echo was here > /run/before")
    place = config.paths.docker

    async def stage():
        return (await launching.status(place)).stage

    while await stage() is not Stage.RESTING:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(0.05)
    answers = await asyncio.gather(*(ask(config, b"cat /run/before") for _ in range(10)))
    assert answers == [b"was here\n"] * 10
    await until(lambda: "was suspended" in place.log.read_text())
