"""Real machines whose snapshots and ways back are cut off at each stage: by whom, and what is there then.

The command is a process of its own, which stops at a stage; then somebody is killed, and it goes on. Of a
snapshot without a pause it is the supervisor that stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from guests import eventually

import atoll
from atoll import process
from atoll.errors import AtollError, BootError
from atoll.hypervisor.port import find_holder
from atoll.machine.launching import reach
from atoll.snapshot import catalog
from atoll.vm.state import Phase

#: Stages of ``snapshot`` and of ``restore``: a function is called for the first time.
MAKING = (
    "atoll.vm.client.Control.capture",
    "atoll.machine.snapshots._gather",
    "atoll.machine.snapshots.with_memory",
    "atoll.snapshot.catalog.seal",
    "atoll.machine.snapshots.note_base",
)
RESTORING = (
    "atoll.machine.restoring.require_fit",
    "atoll.vm.client.Control.capture",
    "atoll.machine.undoing.exchanging",
    "atoll.vm.client.Control.stop",
    "atoll.machine.undoing.Exchange.carry_out",
    "atoll.machine.undoing._take",
    "atoll.machine.checkpoints.Checkpoints._go_on",
    "atoll.machine.undoing.forget",
)

#: What is tried in ``make test``; all of it in ``make snapshots``.
SHORT = {
    ("snapshot", "command", "atoll.machine.snapshots.with_memory"),
    ("restore", "command", "atoll.machine.undoing._take"),
    ("restore", "supervisor", "atoll.machine.checkpoints.Checkpoints._go_on"),
}
ALL = "SNAPSHOT_ROUNDS" in os.environ

CASES = [
    case
    for what, stages in (("snapshot", MAKING), ("restore", RESTORING))
    for stage in stages
    for who in ("command", "supervisor", "vm")
    if ALL or (what, who, stage) in SHORT
    for case in [(what, who, stage)]
]

#: Stages of ``snapshot --no-pause`` in the supervisor. The guest stands still from ``branch_disk`` on, and
#: goes on after ``resume_or_fail`` has begun, by QEMU itself.
LIVE = (
    "atoll.vm.branching.prepare_branch",
    "atoll.hypervisor.qemu.background._provide",
    "atoll.hypervisor.qemu.plugging.Plugging.branch_disk",
    "atoll.hypervisor.qemu.background.begin",
    "atoll.hypervisor.qemu.migrating.Watch.resume_or_fail",
    "atoll.hypervisor.qemu.migrating.Watch.end",
    "atoll.hypervisor.qemu.background._unpack",
    "atoll.vm.branching.finish_branch",
)

#: What is tried of them in ``make test``: those between which the guest stands still, or is protected.
SHORT_LIVE = {"supervisor": (LIVE[3], LIVE[5]), "vm": (LIVE[5],)}

#: Has a process stand still at a stage until somebody lets it go on.
STOPPING = textwrap.dedent(
    """
    import asyncio, functools, importlib, json, sys

    def at(name):
        parts = name.split(".")
        for count in range(len(parts) - 1, 0, -1):
            try:
                owner = importlib.import_module(".".join(parts[:count]))
            except ImportError:
                continue
            for part in parts[count:-1]:
                owner = getattr(owner, part)
            return owner, parts[-1]

    def stop_at(name):
        owner, attribute = at(name)
        real, calls = getattr(owner, attribute), []

        @functools.wraps(real)
        def stopping(*arguments, **options):
            if not calls:
                calls.append(1)
                print("here", flush=True)
                sys.stdin.read(1)
            return real(*arguments, **options)

        setattr(owner, attribute, stopping)
        for module in list(sys.modules.values()):
            if getattr(module, attribute, None) is real:
                setattr(module, attribute, stopping)
    """
)

#: Does what it is told.
COMMAND = STOPPING + textwrap.dedent(
    """
    from atoll.config import load
    from atoll.errors import AtollError
    from atoll.machine.machine import Machine

    async def main(data, cache, what, stage, name):
        config = load({"data_dir": data, "cache_dir": cache}, environment={}, files=()).config
        stop_at(stage)
        async with Machine("dev", config=config) as machine:
            await (machine.snapshot(name) if what == "snapshot" else machine.restore(name))

    try:
        asyncio.run(main(*sys.argv[1:]))
    except AtollError as error:
        print(json.dumps({"code": error.code, "message": error.message}), flush=True)
        sys.exit(3)
    """
)

#: Looks after a machine. If that is wished, what QEMU writes finds no room behind the first 8 MiB, or QEMU
#: writes as long as it is there.
SUPERVISOR = STOPPING + textwrap.dedent(
    """
    import fcntl, os
    from pathlib import Path

    from atoll.hypervisor.qemu import background
    from atoll.machine.supervise import supervise_at
    from atoll.paths import VmPaths
    import atoll.vm.capturing

    def full(stack, name):
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, fd)
        os.truncate(fd, 8 << 20)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        return fd

    async def endless(watch):
        while True:
            await watch._hear()

    place, stage, room = sys.argv[1:]
    if stage:
        stop_at(stage)
    if room == "full":
        background._file = full
    if room == "endless":
        background.Watch.end = endless
    sys.exit(supervise_at(VmPaths(Path(place)), emit=lambda _: None))
    """
)

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def config(own_config):
    return own_config


@pytest.fixture(scope="module")
def dev(dev):
    mark(dev, "then")
    dev.snapshot("then")
    yield dev
    if not dev.state.active:
        dev.start()


def output(machine, script):
    return machine.run(["sh", "-c", script], check=True).stdout


def mark(machine, text):
    output(machine, f"echo {text} > /dev/shm/ram; echo {text} > /root/disk; sync")


def marks(machine):
    return output(machine, "cat /dev/shm/ram 2> /dev/null || echo -; cat /root/disk").split()


@contextlib.contextmanager
def stopped_command(config, *words):
    """The command, standing still at its stage."""
    argv = [sys.executable, "-c", COMMAND, str(config.data_dir), str(config.cache_dir), *words]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"here\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: process.identify(pid) is None)


def kill_child(child):
    child.kill()
    child.wait()


def vm_of(machine):
    """Its process now; 0 if there is none."""
    found = find_holder(machine.find().place)
    return found.pid if found is not None else 0


def answers(place):
    sock = reach(place)
    if sock is not None:
        sock.close()
    return sock is not None


@contextlib.contextmanager
def own_supervisor(machine, *, stage="", room=""):
    """The machine's supervisor is a process that stands still at a stage; it may be killed."""
    kill(machine.status().supervisor)
    machine.close()
    place = machine.find().place
    place.control.unlink()  # for a moment its threads may have it open still
    argv = [sys.executable, "-c", SUPERVISOR, str(place.directory), stage, room]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        eventually(lambda: answers(place))
        assert machine.status().supervisor == child.pid
        yield child
    finally:
        child.kill()
        child.communicate()
        machine.close()


@contextlib.contextmanager
def live_snapshot(config, name):
    """One that is made in a thread; its error, if it fails."""
    with atoll.Machine("dev", config=config) as same, ThreadPoolExecutor(1) as thread:
        yield thread.submit(same.snapshot, name, pause=False)


def is_protected(pid):
    """Whether somebody would wait who writes to a process's memory (proc(5), ``VmFlags``)."""
    flags = Path(f"/proc/{pid}/smaps").read_text().split("VmFlags:")[1:]
    return any("uw" in line.splitlines()[0].split() for line in flags)


def left_by_snapshots(config):
    return [entry for entry in os.listdir(config.paths.snapshots) if entry.startswith(".")]


def outcome(child):
    """How the command ended that goes on."""
    said = child.communicate(b"x", timeout=60)[0].decode()
    assert child.returncode in {0, 3}, said
    return json.loads(said)["code"] if child.returncode else "ok"


@pytest.mark.parametrize(("what", "who", "stage"), CASES, ids=lambda value: value.rpartition(".")[2])
def test_whoever_is_killed_at_whatever_stage_all_is_whole(dev, config, what, who, stage):
    if not dev.state.active:
        dev.start()
    mark(dev, "now")
    names = {one.manifest.name for one in dev.snapshots()}
    name = f"new-{len(names)}" if what == "snapshot" else "then"
    supervisor = dev.status().supervisor
    with stopped_command(config, what, stage, name) as child:
        victim = {"command": child.pid, "supervisor": supervisor}.get(who) or vm_of(dev)
        if victim:
            kill(victim)
        ended = "killed" if who == "command" else outcome(child)
    found = {one.manifest.name for one in catalog.listed(config.paths)}
    for one in catalog.listed(config.paths):
        catalog.verify(one)
    assert found in (names, names | {name})
    assert (name in found) >= (ended == "ok")
    eventually(lambda: dev.state.phase not in {Phase.STARTING, Phase.STOPPING}, within=30)
    undisturbed = dev.state.active
    if not undisturbed:
        dev.start()
    ram, disk = marks(dev)
    if what == "snapshot":
        assert disk == "now"
    elif ended == "ok":
        assert disk == "then"
    elif ended != "killed":
        assert disk == "now"
    assert ram == disk if undisturbed else ram == "-", (ram, disk, ended)
    dev.snapshot(f"after-{len(found)}", disk_only=True)  # sweeps
    assert [entry for entry in os.listdir(config.paths.snapshots) if entry.startswith(".")] == []
    if ALL:
        dev.restart(force=True)
        assert marks(dev) == ["-", disk]
    if ended != "killed":
        left = os.listdir(dev.find().place.directory)
        kept = ("before", ".partial-before", ".partial-after")
        assert not [entry for entry in left if entry.startswith(kept)]


def test_a_supervisor_that_is_killed_while_the_guest_runs_on_leaves_it_running(dev, config):
    if not dev.state.active:
        dev.start()
    mark(dev, "running")
    names, vm = [one.manifest.name for one in dev.snapshots()], vm_of(dev)
    stages = [(stage, "") for stage in (LIVE if ALL else SHORT_LIVE["supervisor"])]
    # QEMU has failed half-way, and protects the RAM still.
    for stage, room in (*stages, ("atoll.hypervisor.qemu.migrating.why", "full")):
        with own_supervisor(dev, stage=stage, room=room) as child:
            with live_snapshot(config, "never") as making:
                assert child.stdout.readline() == b"here\n"
                assert is_protected(vm) or not room
                kill_child(child)
                dev.close()
                assert isinstance(making.exception(30), AtollError)
            assert marks(dev) == ["running", "running"], stage
        eventually(lambda: not is_protected(vm))
        assert (dev.state.phase, vm_of(dev)) == (Phase.RUNNING, vm)
        assert [one.manifest.name for one in dev.snapshots()] == names
        assert left_by_snapshots(config) == []
    for number, pause in enumerate((False, True)):
        catalog.verify(dev.snapshot(f"whole-{number}", pause=pause))
    assert marks(dev) == ["running", "running"]


@pytest.mark.parametrize("stage", LIVE if ALL else SHORT_LIVE["vm"])
def test_a_qemu_that_is_killed_while_its_guest_runs_on_is_known_to_be_gone(dev, config, stage):
    if not dev.state.active:
        dev.start()
    mark(dev, "now")
    names = [one.manifest.name for one in dev.snapshots()]
    with own_supervisor(dev, stage=stage) as child:
        with live_snapshot(config, "never") as making:
            assert child.stdout.readline() == b"here\n"
            kill(vm_of(dev))
            child.stdin.write(b"x")
            child.stdin.flush()
            failed = making.exception(30)
        eventually(lambda: not dev.state.active)
        found = [one.manifest.name for one in dev.snapshots()]
        # What was written before it was killed is as whole as any.
        assert found == (names if isinstance(failed, AtollError) else [*names, "never"]), failed
        assert left_by_snapshots(config) == []
        for one in dev.snapshots()[len(names) :]:
            catalog.remove(config.paths, one.id)
    dev.start()
    assert marks(dev) == ["-", "now"]


def test_a_machine_whose_snapshot_finds_no_room_while_it_runs_on_does_run_on(dev, config):
    if not dev.state.active:
        dev.start()
    mark(dev, "room")
    names, vm = [one.manifest.name for one in dev.snapshots()], vm_of(dev)
    with own_supervisor(dev, room="full") as child:
        with live_snapshot(config, "never") as making:
            failed = making.exception(30)
        assert isinstance(failed, BootError)
        assert failed.code == "boot.capture"
        assert not is_protected(vm)
        assert marks(dev) == ["room", "room"]
        assert dev.status().supervisor == child.pid
        assert [one.manifest.name for one in dev.snapshots()] == names
        assert left_by_snapshots(config) == []
    assert dev.state.phase is Phase.RUNNING


def files_in_memory(pid):
    """Names of those that a process has open (memfd_create(2))."""
    directory = f"/proc/{pid}/fd"
    found = set()
    for entry in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"{directory}/{entry}"))
    return {name for name in found if name.startswith("/memfd:")}


def test_one_who_waits_no_more_for_a_snapshot_leaves_the_machine_running(dev, config):
    if not dev.state.active:
        dev.start()
    mark(dev, "waited")
    names, vm = [one.manifest.name for one in dev.snapshots()], vm_of(dev)

    async def give_up(child):
        async with atoll.aio.Machine("dev", config=config) as same:
            making = asyncio.create_task(same.snapshot("never", pause=False))
            assert await asyncio.to_thread(child.stdout.readline) == b"here\n"
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making

    with own_supervisor(dev, stage="atoll.hypervisor.qemu.migrating.Watch.end") as child:
        asyncio.run(give_up(child))
        child.stdin.write(b"x")
        child.stdin.flush()
        assert marks(dev) == ["waited", "waited"]
        dev.pause()  # it is done with the capture by then
        dev.resume()
        eventually(lambda: not files_in_memory(child.pid))
        assert not is_protected(vm)
    assert [one.manifest.name for one in dev.snapshots()] == names
    assert left_by_snapshots(config) == []


def test_force_ends_a_machine_at_once_that_is_written_down(dev, config):
    if not dev.state.active:
        dev.start()
    names, vm = [one.manifest.name for one in dev.snapshots()], vm_of(dev)
    with own_supervisor(dev, room="endless") as child:
        with live_snapshot(config, "never") as making:
            eventually(lambda: is_protected(vm))
            dev.stop(force=True)
            assert isinstance(making.exception(30), AtollError)
        assert child.poll() is None
        assert [one.manifest.name for one in dev.snapshots()] == names
    assert dev.state.phase is Phase.STOPPED
    assert left_by_snapshots(config) == []
