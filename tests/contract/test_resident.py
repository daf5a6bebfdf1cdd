"""What holds for every hypervisor backend whose VMs outlive the program that starts them."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest
from machines import gone, kill_all_at, processes_at

from atoll import store
from atoll.errors import BootError, ChannelError
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.hypervisor.model import Port
from atoll.hypervisor.port import Departure
from atoll.paths import VmPaths

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


class Settled:
    """A VM at its place, and what talks to it."""

    def __init__(self, hypervisor, machine, place):
        self.hypervisor = hypervisor
        self.machine = machine
        self.place = place
        self.handles = []
        self.channels = []

    def settle(self):
        vm = self.hypervisor.settle(self.machine, self.place)
        self.handles.append(vm)
        return vm

    def adopt(self):
        vm = self.hypervisor.adopt(self.place)
        if vm is not None:
            self.handles.append(vm)
        return vm

    async def agent(self, vm):
        channel = Channel(vm.connect(Port.CHANNEL))
        self.channels.append(channel)
        async with asyncio.timeout(60):
            await channel.ready()
        return Agent(channel)

    @property
    def runs(self):
        return store.is_held(self.place.vm_lock)

    async def close(self):
        for channel in self.channels:
            channel.close()
        for vm in self.handles:
            await vm.leave()
        kill_all_at(self.place.directory)


@pytest.fixture
async def home(backend, tmp_path):
    hypervisor, machine = backend
    parameters = tuple(item for item in machine.cmdline if item != "atoll.lifeline=1")
    machine = msgspec.structs.replace(machine, cmdline=parameters)  # it is to outlive its channel
    place = VmPaths(tmp_path / "dev")
    place.directory.mkdir()
    home = Settled(hypervisor, machine, place)
    yield home
    await home.close()


async def test_nothing_is_adopted_where_nothing_runs(home):
    assert home.adopt() is None
    assert not home.runs


async def test_a_vm_runs_answers_and_holds_its_lock_until_it_is_closed(home):
    vm = home.settle()
    assert home.runs
    agent = await home.agent(vm)
    assert await agent.ping(b"hello") < 60
    await vm.close()
    assert not home.runs
    assert not processes_at(home.place.directory)
    with pytest.raises(ChannelError):
        await agent.ping()
    await vm.close()
    assert [path.name for path in home.place.directory.iterdir() if path.is_socket()] == []


async def test_a_second_vm_is_refused_and_the_first_can_be_adopted_all_the_same(home):
    vm = home.settle()
    with pytest.raises(BootError) as caught:
        home.settle()
    assert caught.value.code == "boot.spawn"
    assert home.adopt().process.pid == vm.process.pid
    await home.agent(vm)
    await vm.close()


async def test_a_vm_that_was_left_goes_on_and_answers_whoever_adopts_it(home):
    vm = home.settle()
    pid = vm.process.pid
    agent = await home.agent(vm)
    await vm.attach()
    home.channels[-1].close()
    await vm.leave()
    assert home.runs
    for _ in range(3):
        adopted = home.adopt()
        assert adopted.process.pid == pid
        await adopted.attach()
        agent = await home.agent(adopted)
        assert await agent.ping() < 60
        home.channels[-1].close()
        await adopted.leave()
    last = home.adopt()
    await last.close()
    await gone(pid)
    assert home.adopt() is None


async def test_a_vm_can_be_adopted_at_once(home):
    vm = home.settle()
    adopted = home.adopt()
    assert adopted.process.pid == vm.process.pid
    await home.agent(adopted)
    await adopted.close()
    assert not home.runs


async def test_a_paused_vm_stands_still_until_it_is_resumed(home):
    vm = home.settle()
    agent = await home.agent(vm)
    assert await vm.paused() is False
    await vm.pause()
    assert await vm.paused() is True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await agent.ping()
    await vm.resume()
    assert await vm.paused() is False
    assert await agent.ping() < 60
    await vm.close()


async def test_a_vm_that_is_told_to_quit_ends_and_says_so(home):
    vm = home.settle()
    await home.agent(vm)
    await vm.quit()
    async with asyncio.timeout(60):
        await vm.wait()
    assert vm.departure is Departure.QUIT
    assert not home.runs


async def test_a_paused_vm_that_is_told_to_quit_ends(home):
    vm = home.settle()
    await home.agent(vm)
    await vm.pause()
    await vm.quit()
    async with asyncio.timeout(60):
        await vm.wait()


@pytest.mark.parametrize(("reboot", "departure"), [(False, Departure.SHUTDOWN), (True, Departure.RESET)])
async def test_a_guest_that_ends_itself_is_told_apart_from_one_that_reboots(home, reboot, departure):
    vm = home.settle()
    agent = await home.agent(vm)
    await vm.attach()
    async with asyncio.timeout(60):
        await agent.poweroff(reboot=reboot, grace=0.1)
        await vm.wait()
    assert vm.departure is departure
    assert not home.runs
    await vm.close()


async def test_a_killed_vm_is_lost_and_frees_its_lock(home):
    vm = home.settle()
    agent = await home.agent(vm)
    await vm.attach()
    waiting = [asyncio.create_task(vm.wait()) for _ in range(3)]
    os.kill(vm.process.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        assert set(await asyncio.gather(*waiting)) == {-signal.SIGKILL}
        with pytest.raises(ChannelError):
            await agent.ping()
    assert vm.departure is Departure.LOST
    assert not home.runs
    await vm.close()
    again = home.settle()
    await home.agent(again)
    await again.close()


async def test_a_dead_vm_takes_orders_without_harm(home):
    vm = home.settle()
    await home.agent(vm)
    os.kill(vm.process.pid, signal.SIGKILL)
    await vm.wait()
    for order in (vm.pause, vm.resume, vm.quit, vm.press_power_button):
        try:
            await order()
        except BootError as error:
            assert error.code == "boot.spawn"  # noqa: PT017 - it may refuse, and then so
    await vm.position()
    await vm.close()


async def test_a_stale_pid_file_names_nobody(home):
    home.place.pid_file.write_text(str(os.getpid()))
    assert home.adopt() is None
    vm = home.settle()
    assert home.adopt().process.pid == vm.process.pid
    await vm.close()


async def test_a_lock_without_its_vm_names_nobody(home, monkeypatch):
    monkeypatch.setattr("atoll.hypervisor.port._PID_WAIT", 0.05)
    lock = store.hold(home.place.vm_lock)  # as a helper of the VM would that inherited it
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    home.place.pid_file.write_text(str(stranger.pid))
    with pytest.raises(BootError):
        home.adopt()
    assert stranger.returncode is None
    os.close(lock)
    stranger.kill()
    await stranger.wait()
    assert home.adopt() is None
