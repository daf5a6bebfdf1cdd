"""What holds for every hypervisor backend, the shipped fake included."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from atoll.errors import ChannelError
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.hypervisor.port import Position

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def vm(backend):
    hypervisor, machine = backend
    vm = hypervisor.spawn(machine)
    vm.console.watch()
    yield vm
    await vm.close()


@pytest.fixture
async def agent(vm):
    channel = Channel(vm.take_channel())
    async with asyncio.timeout(60):
        await channel.ready()
    yield Agent(channel)
    channel.close()


async def test_the_guest_answers_on_the_channel(agent):
    assert await agent.ping(b"hello") < 60
    assert (await agent.info()).protocol == 1


async def test_the_process_is_there_until_close_and_gone_after_it(vm, agent):
    os.kill(vm.process.pid, 0)
    await vm.close()
    with pytest.raises(ProcessLookupError):
        os.kill(vm.process.pid, 0)


async def test_closing_twice_is_fine(vm):
    await vm.close()
    await vm.close()


async def test_a_vm_that_was_never_talked_to_can_be_closed(vm):
    pass


async def test_a_killed_hypervisor_is_noticed_on_the_channel_and_by_its_status(vm, agent):
    waiting = asyncio.create_task(vm.wait())
    os.kill(vm.process.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        assert await waiting == -signal.SIGKILL
        with pytest.raises(ChannelError) as caught:
            await agent.ping()
    assert caught.value.code == "channel.gone"


async def test_a_guest_that_powers_off_is_an_exit_with_status_0(vm, agent):
    async with asyncio.timeout(60):
        await agent.poweroff(grace=0.1)
        assert await vm.wait() == 0


async def test_any_number_may_wait_for_the_end(vm, agent):
    waiting = [asyncio.create_task(vm.wait()) for _ in range(3)]
    vm.process.kill()
    async with asyncio.timeout(60):
        assert len(set(await asyncio.gather(*waiting))) == 1


async def test_the_console_is_kept_after_the_end(vm, agent):
    await vm.close()
    assert "atoll" in vm.console.text()


async def test_the_position_of_a_guest_is_told_or_said_to_be_unknown(vm, agent):
    assert await vm.position() in set(Position)


async def test_many_vms_live_side_by_side(backend):
    hypervisor, machine = backend
    vms = [hypervisor.spawn(machine) for _ in range(4)]
    try:
        agents = [Agent(Channel(vm.take_channel())) for vm in vms]
        async with asyncio.timeout(90):
            await asyncio.gather(*(agent.ping() for agent in agents))
    finally:
        for vm in vms:
            await vm.close()
        for agent in agents:
            agent._channel.close()


async def test_a_vm_can_be_discarded_without_an_event_loop_and_leaves_nothing(backend):
    hypervisor, machine = backend
    vm = await asyncio.to_thread(hypervisor.spawn, machine)
    await asyncio.to_thread(vm.discard)
    with pytest.raises(ProcessLookupError):
        os.kill(vm.process.pid, 0)
