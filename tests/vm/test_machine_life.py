"""A real guest that lives on under supervisors that do not."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from machines import KILL, at_rest, gone, kill_all_at, until

from atoll import runtime
from atoll.config import load
from atoll.guest.messages import ExecOutput, ExecStart, Offset
from atoll.image import catalog
from atoll.machine.machine import Machine
from atoll.vm.state import Cause, Phase

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def dev(tmp_path, paths):
    """A machine that runs, with the agent as its init."""
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    config = load({"data_dir": tmp_path, "cache_dir": paths.cache}, environment={}, files=()).config
    machine = await Machine.create(
        "dev", init="minimal", disk="256M", memory="256M", network=False, accel="tcg", config=config
    )
    await machine.start()
    yield machine
    await machine.close()
    kill_all_at(tmp_path)


async def ended(machine):
    place = machine.find().place
    await machine.stop(force=True)
    await machine.close()
    await at_rest(place)


async def test_a_guest_outlives_its_supervisor_with_what_runs_in_it(dev):
    agent = dev.control.agent
    script = "echo one; while test ! -e /tmp/go; do sleep 0.05; done; echo two"
    execution = agent.start(ExecStart(id="long", argv=("sh", "-c", script)))
    assert await execution.stdout.read() == b"one\n"
    before = await dev.status()
    os.kill(before.supervisor, KILL)
    await gone(before.supervisor)
    execution.close()
    assert dev.state.phase is Phase.RUNNING
    await until(lambda: dev.control.broken)
    await dev.connect()
    await dev.run(["touch", "/tmp/go"])
    after = await dev.status()
    assert (after.vm, after.state.phase) == (before.vm, Phase.RUNNING)
    stream = dev.control._channel.open(ExecOutput(id="long", fd=1, offset=4), end=True)
    assert (await stream.reply(Offset)).offset == 4
    assert await stream.read() == b"two\n"
    stream.cancel()
    await ended(dev)


async def test_how_a_guest_ended_is_known_to_a_supervisor_that_took_it_over(dev):
    status = await dev.status()
    os.kill(status.supervisor, KILL)
    await gone(status.supervisor)
    await until(lambda: dev.control.broken)
    await dev.connect()
    await dev.control.agent.poweroff(grace=0.5)
    state = await dev.wait(Phase.STOPPED, Phase.FAILED, timeout=60)
    assert (state.phase, state.cause) == (Phase.STOPPED, Cause.POWERED_OFF)
    await at_rest(dev.find().place)


async def test_a_guest_that_reboots_comes_up_with_what_it_wrote(dev):
    await dev.run(["sh", "-c", "echo kept > /root/file; sync"], check=True)
    vm = (await dev.status()).vm
    await dev.control.agent.poweroff(reboot=True, grace=0.5)
    await until(lambda: (state := dev.state).cause is Cause.BOOTED and state.vm.pid != vm, within=60)
    assert (await dev.run(["cat", "/root/file"])).stdout == "kept\n"
    await ended(dev)


async def test_a_guest_that_panics_has_failed_and_its_kernel_is_quoted(dev):
    execution = dev.control.agent.start(
        ExecStart(id="panic", argv=("sh", "-c", "echo c > /proc/sysrq-trigger"))
    )
    state = await dev.wait(Phase.FAILED, Phase.STOPPED, timeout=60)
    execution.close()
    assert (state.cause, state.failure.code) == (Cause.PANICKED, "boot.panic")
    assert "sysrq triggered crash" in state.failure.message
    await at_rest(dev.find().place)


async def test_a_hypervisor_that_hangs_is_taken_over_and_ended_by_force(dev):
    status = await dev.status()
    os.kill(status.vm, signal.SIGSTOP)
    os.kill(status.supervisor, KILL)
    await gone(status.supervisor)
    await until(lambda: dev.control.broken)
    async with asyncio.timeout(100):
        stopped = await dev.stop(force=True)
    assert [(step.how, step.ended) for step in stopped.steps] == [("kill", True)]
    assert dev.state.phase is Phase.STOPPED
    await at_rest(dev.find().place)


async def test_a_paused_guest_stays_paused_when_its_supervisor_is_replaced_and_its_clock_is_right_after(dev):
    await dev.pause()
    status = await dev.status()
    os.kill(status.supervisor, KILL)
    await gone(status.supervisor)
    await dev.close()
    await asyncio.sleep(1.5)
    assert (await dev.status()).state.phase is Phase.PAUSED
    await dev.resume()
    before = time.time()
    shown = float((await dev.run(["date", "+%s.%N"])).stdout)
    assert before - 0.2 < shown < time.time() + 0.2
    await ended(dev)
