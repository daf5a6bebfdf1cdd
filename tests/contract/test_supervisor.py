"""One supervisor, one machine: what is asked for, what is killed, and what the next command finds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time

import pytest
from machines import (
    KILL,
    at_rest,
    enter,
    gone,
    hosted_spec,
    is_stopped,
    kill_all_at,
    processes_at,
    recorded,
    run,
    supervised,
    true_state,
    until,
)
from msgspec.structs import replace

from atoll import aio, store
from atoll.config import load
from atoll.errors import AtollError, BootError, ChannelError
from atoll.guest.messages import ExecOutput, ExecStart, Offset
from atoll.machine import registry
from atoll.machine.launching import reach
from atoll.vm.bootplan import Probe, Setup
from atoll.vm.client import Control
from atoll.vm.messages import Stopped
from atoll.vm.restart import Policy
from atoll.vm.state import Cause, Phase, StateError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def make(tmp_path, monkeypatch):
    """Machines, whose processes are gone after the test whatever it did, and whose logs have no complaint."""
    monkeypatch.setenv("PYTHONDEVMODE", "1")  # forgotten tasks and sockets, slow callbacks
    controls = []

    class Made:
        def __init__(self, **wishes):
            self.place = enter(tmp_path, **wishes)

        async def connect(self) -> Control:
            control = await supervised(self.place)
            controls.append(control)
            return control

        async def started(self) -> Control:
            control = await self.connect()
            async with asyncio.timeout(60):
                await control.start()
            return control

        @property
        def state(self):
            return recorded(self.place)

        @property
        def phase(self):
            return true_state(self.place).phase

    yield Made
    for control in controls:
        control.close()
    kill_all_at(tmp_path)
    said = "".join(path.read_text() for path in tmp_path.glob("machines/*/logs/supervisor.log"))
    complaints = [line for line in said.splitlines() if not line.startswith("Executing <")]
    assert complaints == [], said


@pytest.fixture
async def dev(make):
    return make()


async def ended(machine):
    """Stop it and see that nothing is left."""
    control = await machine.connect()
    await control.stop(force=True)
    control.close()
    await at_rest(machine.place)


async def waiting_for(control, *phases):
    """A task that waits already for what is about to happen: a phase may pass, and the supervisor leave."""
    waiting = asyncio.create_task(control.wait_for(*phases))
    await asyncio.sleep(0)
    await control.status()  # is answered after the wait has begun
    return waiting


async def killed(control):
    """Kill the hypervisor; the state once that has been noticed."""
    failing = await waiting_for(control, Phase.FAILED)
    os.kill((await control.status()).vm, KILL)
    return (await failing).state


async def deaf(control):
    """Run a command that ends two seconds after it was told to."""
    execution = control.agent.start(ExecStart(id="deaf", argv=("sh", "-c", "trap '' TERM; echo; sleep 60")))
    assert await execution.stdout.read()
    execution.close()


async def test_a_machine_starts_runs_commands_and_stops(dev):
    control = await dev.started()
    assert dev.state.phase is Phase.RUNNING
    assert await run(control, "echo", "hello") == b"hello\n"
    stopped = await control.stop()
    assert [(step.how, step.ended) for step in stopped.steps] == [("agent", True)]
    assert (dev.state.phase, dev.state.cause, dev.state.vm) == (Phase.STOPPED, Cause.STOPPED, None)
    control.close()
    await at_rest(dev.place)


async def test_the_supervisor_leaves_when_the_machine_is_at_rest_although_a_client_stays(dev):
    control = await dev.started()
    await control.stop(force=True)
    await at_rest(dev.place)
    with pytest.raises(ChannelError):
        await control.status()


async def test_a_client_that_was_just_let_in_is_not_left_before_it_can_ask(dev):
    control = await dev.connect()
    await asyncio.sleep(0.3)
    assert (await control.start()).state.phase is Phase.RUNNING
    await ended(dev)


async def test_a_client_that_never_asks_does_not_hold_the_supervisor_for_long(dev):
    began = time.monotonic()
    control = await dev.connect()
    await at_rest(dev.place)
    assert time.monotonic() - began > 0.5
    assert control.broken or reach(dev.place) is None


async def test_two_clients_that_start_it_at_once_both_find_it_running(dev):
    one, other = await dev.connect(), await dev.connect()
    answers = await asyncio.gather(one.start(), other.start(), one.start())
    assert len({answer.vm for answer in answers}) == 1
    assert {answer.state.phase for answer in answers} == {Phase.RUNNING}
    await ended(dev)


async def test_starts_that_wait_for_a_stop_all_succeed_afterwards(dev):
    control = await dev.started()
    first = (await control.status()).vm
    await deaf(control)
    stopping = asyncio.create_task(control.stop())
    await until(lambda: dev.state.phase is Phase.STOPPING)
    starts = await asyncio.gather(*(control.start() for _ in range(3)))
    await stopping
    assert {answer.state.phase for answer in starts} == {Phase.RUNNING}
    assert {answer.vm for answer in starts} & {first} == set()
    await ended(dev)


async def test_two_commands_that_summon_a_supervisor_at_once_share_one(dev):
    one, other = await asyncio.gather(dev.connect(), dev.connect())
    assert (await one.status()).supervisor == (await other.status()).supervisor
    await asyncio.gather(one.start(), other.start())
    await ended(dev)


async def test_pause_holds_commands_and_resume_lets_them_go_on(dev):
    control = await dev.started()
    await control.pause()
    assert dev.state.phase is Phase.PAUSED
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await control.agent.ping()
    with pytest.raises(StateError) as caught:
        await control.pause()
    assert caught.value.code == "state.not_running"
    await control.resume()
    assert dev.state.phase is Phase.RUNNING
    assert await run(control, "echo", "on") == b"on\n"
    await ended(dev)


async def test_a_paused_machine_stops_in_order(dev):
    control = await dev.started()
    await control.pause()
    stopped = await control.stop()
    assert [step.how for step in stopped.steps] == ["agent"]
    assert dev.state.phase is Phase.STOPPED


async def test_a_guest_is_told_before_it_is_ended_in_order_but_not_by_force(make, tmp_path):
    told = tmp_path / "told"
    dev = make(setup=Setup(farewell=f"kill -0 $PPID && sleep 0.1 && echo x >> '{told}'; exit 1"))
    control = await dev.started()
    await control.stop(force=True)
    control.close()
    await at_rest(dev.place)
    assert not told.exists()
    control = await dev.started()
    stopped = await control.stop()
    assert [(step.how, step.ended) for step in stopped.steps] == [("agent", True)]
    control.close()
    await at_rest(dev.place)
    assert told.read_text() == "x\n"


async def test_a_guest_that_does_not_come_to_the_end_of_it_is_ended_all_the_same(make):
    dev = make(setup=Setup(farewell="sleep 60"))
    control = await dev.started()
    stopped = await control.stop(timeout=0.4)
    assert (stopped.steps[0].how, stopped.steps[0].ended) == ("agent", False)
    assert stopped.steps[-1].ended
    control.close()
    await at_rest(dev.place)


async def test_a_paused_machine_stops_by_force_at_once(dev):
    control = await dev.started()
    await control.pause()
    stopped = await control.stop(force=True)
    assert stopped.steps[0].how == "quit"
    assert dev.state.phase is Phase.STOPPED


async def test_a_client_that_leaves_in_the_middle_of_a_pause_leaves_the_record_true(dev):
    for _ in range(5):
        control = await dev.started()
        pausing = asyncio.create_task(control.pause())
        await asyncio.sleep(0)
        control.close()
        with contextlib.suppress(ChannelError):
            await pausing
        control = await dev.connect()
        status = await control.status()
        await asyncio.sleep(0.05)
        for _ in range(2):
            await until(lambda: is_stopped(status.vm) is (dev.state.phase is Phase.PAUSED))  # noqa: B023 - at once
            with contextlib.suppress(StateError):
                await control.resume()
        assert dev.state.phase is Phase.RUNNING
    await ended(dev)


async def test_what_is_asked_of_a_machine_at_rest_is_refused_by_name(dev):
    control = await dev.connect()
    asked = (control.pause(), control.resume(), control.agent.ping(), control.stop(), control.stop())
    *refused, one, other = await asyncio.gather(*asked, return_exceptions=True)  # it leaves in a moment
    assert [type(error) for error in refused] == [StateError] * 3
    assert one == other == Stopped(())
    control.close()
    await at_rest(dev.place)


async def test_a_killed_supervisor_leaves_the_machine_running_and_the_next_command_takes_it_over(dev):
    control = await dev.started()
    execution = control.agent.start(
        ExecStart(
            id="long",
            argv=("sh", "-c", "echo one; while test ! -e go; do sleep 0.01; done; echo two"),
            cwd=str(dev.place.directory),
        )
    )
    await execution.started()
    assert await execution.stdout.read() == b"one\n"
    before = await control.status()
    os.kill(before.supervisor, KILL)
    await gone(before.supervisor)
    execution.close()
    assert dev.phase is Phase.RUNNING

    control = await dev.connect()
    after = await control.status()
    assert (after.vm, after.state.phase) == (before.vm, Phase.RUNNING)
    assert after.supervisor != before.supervisor
    assert [(found.id, found.running) for found in await control.agent.executions()] == [("long", True)]
    (dev.place.directory / "go").touch()
    stream = control._channel.open(ExecOutput(id="long", fd=1, offset=4), end=True)
    assert (await stream.reply(Offset)).offset == 4
    assert await stream.read() == b"two\n"
    stream.cancel()
    await ended(dev)


async def test_a_supervisor_killed_again_and_again_never_loses_the_machine(dev):
    control = await dev.started()
    vm = (await control.status()).vm
    for _ in range(4):
        os.kill((await control.status()).supervisor, KILL)
        control.close()
        control = await dev.connect()
        assert (await control.status()).vm == vm
        assert await run(control, "echo", "here") == b"here\n"
    await ended(dev)


async def left(dev, phase, cause):
    """Have a machine be left by its supervisor while its vCPUs stand still; its VM."""
    control = await dev.started()
    await control.pause()
    status = await control.status()
    os.kill(status.supervisor, KILL)
    await gone(status.supervisor)
    control.close()
    store.write_record(dev.place.state, replace(dev.state, phase=phase, cause=cause))
    return status.vm


async def test_a_machine_that_was_held_goes_on_when_its_supervisor_was_killed(dev, tmp_path):
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    for phase, cause in ((Phase.PAUSED, Cause.HELD), (Phase.RUNNING, Cause.BOOTED)):
        vm = await left(dev, phase, cause)
        async with aio.Machine("dev", config=config) as machine:
            assert (await machine.run(["echo", "on"])).stdout == "on\n"
            status = await machine.status()
        assert (status.vm, status.state.phase) == (vm, Phase.RUNNING)
    await ended(dev)


async def test_a_machine_that_was_paused_stays_so_when_its_supervisor_was_killed(dev, tmp_path):
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    vm = await left(dev, Phase.PAUSED, Cause.PAUSED)
    async with aio.Machine("dev", config=config) as machine:
        with pytest.raises(StateError) as caught:
            await machine.run(["echo", "on"])
        assert caught.value.code == "state.paused"
        assert is_stopped(vm)
        await machine.resume()
        assert (await machine.run(["echo", "on"])).stdout == "on\n"
    await ended(dev)


@pytest.mark.parametrize("first", ["pause", "shares"])
async def test_what_is_asked_first_waits_until_a_killed_supervisors_work_is_put_right(dev, first):
    await left(dev, Phase.PAUSED, Cause.HELD)
    control = await dev.connect()
    await getattr(control, first)()
    if first == "pause":
        assert dev.state.cause is Cause.PAUSED
    assert (await control.wait_for(*Phase)).state.phase is (
        Phase.PAUSED if first == "pause" else Phase.RUNNING
    )
    await ended(dev)


async def test_a_suspend_whose_supervisor_was_killed_is_carried_out(dev):
    vm = await left(dev, Phase.STOPPING, Cause.SUSPEND_ASKED)
    (await dev.connect()).close()
    await at_rest(dev.place)
    assert (dev.state.phase, dev.state.vm) == (Phase.SUSPENDED, None)
    await gone(vm)


async def test_nothing_is_suspended_that_was_not_written_down(dev):
    control = await dev.started()
    for phase in (Phase.RUNNING, Phase.PAUSED):
        with pytest.raises(StateError) as caught:
            await control.stop(force=True, suspended=True)
        assert (caught.value.code, dev.state.phase) == ("state.not_held", phase)
        if phase is Phase.RUNNING:
            await control.pause()
    await ended(dev)


async def test_a_killed_hypervisor_is_a_failure_that_names_the_signal(dev):
    control = await dev.started()
    state = await killed(control)
    assert (state.cause, state.failure.code) == (Cause.HYPERVISOR_DIED, "state.hypervisor")
    assert "SIGKILL" in state.failure.message
    await at_rest(dev.place)
    assert dev.state == state


async def test_a_killed_hypervisor_is_noticed_by_a_supervisor_that_took_it_over(dev):
    control = await dev.started()
    status = await control.status()
    os.kill(status.supervisor, KILL)
    control = await dev.connect()
    assert (await killed(control)).cause is Cause.HYPERVISOR_DIED
    await at_rest(dev.place)


async def test_a_machine_whose_processes_were_all_killed_is_known_to_have_failed_and_starts_again(dev):
    control = await dev.started()
    status = await control.status()
    os.kill(status.supervisor, KILL)
    os.kill(status.vm, KILL)
    await gone(status.supervisor)
    await gone(status.vm)
    seen = true_state(dev.place)
    assert (seen.phase, seen.cause, seen.failure.code) == (Phase.FAILED, Cause.KILLED, "state.killed")
    control = await dev.started()
    assert await run(control, "echo", "again") == b"again\n"
    assert dev.state.failure is None
    await ended(dev)


async def test_a_supervisor_killed_while_the_machine_starts_is_replaced_by_one_that_goes_on(make, tmp_path):
    go_on = tmp_path / "go on"
    dev = make(setup=Setup(script=f"until test -e '{go_on}'; do sleep 0.05; done"))
    control = await dev.connect()
    starting = asyncio.create_task(control.start())
    await until(lambda: dev.state.vm)
    os.kill((await control.status()).supervisor, KILL)
    with pytest.raises(ChannelError):
        await starting
    go_on.touch()
    control = await dev.connect()
    assert (await control.start()).state.phase is Phase.RUNNING
    await ended(dev)


async def test_a_supervisor_killed_while_the_machine_stops_is_replaced_by_one_that_stops_it(dev):
    control = await dev.started()
    status = await control.status()
    await deaf(control)
    stopping = asyncio.create_task(control.stop())
    await until(lambda: dev.state.phase is Phase.STOPPING)
    os.kill(status.supervisor, KILL)
    with pytest.raises(ChannelError):
        await stopping
    control = await dev.connect()
    assert (await control.wait_for(Phase.STOPPED)).state.phase is Phase.STOPPED
    await at_rest(dev.place)


async def test_a_stop_of_what_another_command_keeps_at_rest_summons_no_supervisor(dev, tmp_path):
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    machine = registry.find(config.paths, "dev")
    with registry.at_rest(machine, "looked at"):
        assert registry.find(config.paths, "dev").supervised
        async with aio.Machine("dev", config=config) as resting:
            assert (await resting.stop(force=True)).steps == ()
    assert not dev.place.log("supervisor").exists()


async def test_a_guest_that_powers_off_has_stopped_by_itself(dev):
    control = await dev.started()
    stopping = await waiting_for(control, Phase.STOPPED)
    await control.agent.poweroff(grace=0.1)
    assert (await stopping).state.cause is Cause.POWERED_OFF
    await at_rest(dev.place)


async def test_a_guest_that_reboots_comes_up_again_under_the_same_supervisor(dev):
    control = await dev.started()
    before = await control.status()
    await control.agent.poweroff(reboot=True, grace=0.1)
    await until(lambda: (state := dev.state).cause is Cause.BOOTED and state.vm.pid != before.vm)
    after = await control.status()
    assert after.supervisor == before.supervisor
    assert await run(control, "echo", "up") == b"up\n"
    await ended(dev)


async def test_a_guest_that_fails_is_started_again_with_growing_pauses(make):
    dev = make(policy=Policy.ON_FAILURE)
    control = await dev.started()
    for count, pause in ((1, 0.5), (2, 1.0)):
        failed = await killed(control)
        await control.wait_for(Phase.RUNNING)
        state = dev.state
        assert state.restarts == count
        assert state.since - failed.since > 0.95 * pause
    stopping = await waiting_for(control, Phase.STOPPED)
    await control.agent.poweroff(grace=0.1)
    await stopping
    await at_rest(dev.place)


async def test_a_guest_that_is_always_to_run_comes_back_from_its_own_power_off_but_not_from_a_stop(make):
    dev = make(policy=Policy.ALWAYS)
    control = await dev.started()
    stopping = await waiting_for(control, Phase.STOPPED)
    await control.agent.poweroff(grace=0.1)
    await stopping
    await control.wait_for(Phase.RUNNING)
    await control.stop()
    await at_rest(dev.place)
    assert dev.state.phase is Phase.STOPPED


async def test_a_restart_that_is_due_is_called_off_by_a_stop_and_overtaken_by_a_start(make):
    dev = make(policy=Policy.ON_FAILURE)
    while True:
        control = await dev.started()
        await killed(control)
        await control.stop()
        await at_rest(dev.place)
        if dev.state.restarts == 0:  # else the restart came before the stop did
            break
    assert dev.state.phase is Phase.FAILED

    control = await dev.started()
    while True:
        await killed(control)
        await control.start()
        if dev.state.restarts == 0:  # else the restart came before the start did: the next takes longer
            break
    vm = (await control.status()).vm
    await asyncio.sleep(0.8)
    assert (await control.status()).vm == vm
    await ended(dev)


async def test_a_start_that_fails_by_policy_is_tried_again(make, tmp_path):
    marker = tmp_path / "broken"
    dev = make(policy=Policy.ON_FAILURE, setup=Setup(script=f"test ! -e {marker}"))
    control = await dev.started()
    marker.touch()
    os.kill((await control.status()).vm, KILL)
    await until(lambda: (state := dev.state).restarts >= 2 and state.cause is Cause.NOT_BOOTED)
    marker.unlink()
    await control.wait_for(Phase.RUNNING)
    await ended(dev)


@pytest.mark.parametrize("policy", list(Policy))
@pytest.mark.parametrize(
    ("setup", "code"),
    [
        (Setup(script="echo no such luck; exit 3"), "boot.setup"),
        (Setup(script="kill -9 $PPID; sleep 9"), "boot.command"),
    ],
    ids=["setup-fails", "agent-dies"],
)
async def test_a_start_by_hand_that_fails_rolls_back_and_keeps_its_log(make, setup, code, policy):
    dev = make(setup=setup, policy=policy)
    control = await dev.connect()
    with pytest.raises(BootError) as caught:
        await control.start()
    assert caught.value.code == code
    state = dev.state
    assert (state.phase, state.cause, state.vm) == (Phase.CREATED, Cause.NOT_BOOTED, None)
    assert state.failure.code == code
    assert dev.place.log("hypervisor").exists()
    await at_rest(dev.place)


async def test_a_start_that_takes_too_long_is_given_up(make):
    dev = make(setup=Setup(probe=Probe(command=("false",))), boot_timeout=0.6)
    control = await dev.connect()
    with pytest.raises(BootError):
        await control.start()
    assert dev.state.phase is Phase.CREATED
    await at_rest(dev.place)


async def test_a_start_without_a_plan_fails_and_does_not_stay_starting(dev):
    control = await dev.connect()
    dev.place.boot.write_text("{")
    with pytest.raises(AtollError) as caught:
        await control.start()
    assert caught.value.code == "store.corrupt"
    assert (dev.state.phase, dev.state.failure.code) == (Phase.CREATED, "store.corrupt")
    await at_rest(dev.place)


async def test_a_machine_that_starts_can_be_stopped(make):
    dev = make(setup=Setup(script="sleep 60"))
    control, other = await dev.connect(), await dev.connect()
    starting = asyncio.create_task(control.start())
    await until(lambda: dev.state.vm)
    await other.stop(timeout=2.0)  # the guest's own part would take a minute
    with pytest.raises(StateError) as caught:
        await starting
    assert caught.value.code == "state.stopped"
    assert dev.state.phase is Phase.STOPPED
    await at_rest(dev.place)


async def test_stops_and_starts_in_any_order_end_in_one_state(dev):
    for seed in range(6):
        control = await dev.started()  # the supervisor of a round that ended at rest has left
        asked = [control.stop(force=True), control.start(), control.stop(timeout=3.0), control.start()]
        asked = asked[seed % 4 :] + asked[: seed % 4]
        await asyncio.gather(*asked, return_exceptions=True)
        phase = dev.state.phase
        assert phase in {Phase.RUNNING, Phase.STOPPED}
        await until(lambda: store.is_held(dev.place.vm_lock) is (phase is Phase.RUNNING))  # noqa: B023 - at once
    await ended(dev)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_to_the_supervisor_ends_the_guest_in_order(dev, number):
    control = await dev.started()
    os.kill((await control.status()).supervisor, number)
    await at_rest(dev.place)
    assert (dev.state.phase, dev.state.cause) == (Phase.STOPPED, Cause.STOPPED)


async def test_a_signal_to_the_supervisor_ends_a_start(make):
    dev = make(setup=Setup(script="sleep 60"))
    control = await dev.connect()
    starting = asyncio.create_task(control.start())
    await until(lambda: dev.state.vm)
    os.kill((await control.status()).supervisor, signal.SIGTERM)
    with pytest.raises(AtollError):
        await starting
    await at_rest(dev.place)
    assert dev.state.phase is Phase.STOPPED


async def test_events_are_told_after_the_record_says_so(dev):
    control = await dev.connect()
    begun = asyncio.Event()
    seen = []

    async def follow():
        with contextlib.suppress(ChannelError):
            async for event in control.events(begun):
                name = type(event).__name__
                if name == "StateChanged":
                    seen.append(event.phase)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)  # it has asked; who waited for the answer might find that the supervisor left
    await control.start()
    await control.stop()
    await at_rest(dev.place)
    await following
    assert seen == ["starting", "running", "stopping", "stopped"]


async def test_a_second_supervisor_at_the_same_place_leaves_at_once(dev):
    from atoll.machine.launching import summon

    control = await dev.started()
    other = Control(summon(dev.place))
    with pytest.raises(ChannelError):
        await other.status()
    other.close()
    assert (await control.status()).state.phase is Phase.RUNNING
    await ended(dev)


async def test_a_client_that_waits_for_what_may_never_come_does_not_hold_the_supervisor(dev):
    control = await dev.started()
    waiting = asyncio.create_task(control.wait_for(Phase.PAUSED))
    await control.stop()
    await at_rest(dev.place)
    with pytest.raises(ChannelError):
        await waiting


async def test_nobody_but_the_guest_and_the_supervisor_runs_for_a_machine(dev):
    control = await dev.started()
    status = await control.status()
    await until(lambda: set(processes_at(dev.place.directory)) == {status.vm, status.supervisor})
    await ended(dev)


async def test_a_machine_whose_directory_was_removed_ends_and_does_not_come_back(dev):
    control = await dev.started()
    status = await control.status()
    shutil.rmtree(dev.place.directory)
    for pid in (status.vm, status.supervisor):
        await gone(pid)
    assert not dev.place.directory.exists()


async def test_what_a_killed_supervisor_left_is_gone_once_the_machine_is_known_to_rest(dev):
    control = await dev.started()
    status = await control.status()
    os.kill(status.supervisor, KILL)
    await gone(status.supervisor)
    os.kill(status.vm, KILL)
    await gone(status.vm)
    assert dev.place.control.exists()
    machine = registry.Named("dev", dev.place, hosted_spec(), dev.state, supervised=False)
    with registry.at_rest(machine, "looked at"):
        assert not dev.place.control.exists()
