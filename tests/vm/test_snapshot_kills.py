"""Real machines whose snapshots and ways back are cut off at each stage: by whom, and what is there then.

The command is a process of its own, which stops at a stage; then somebody is killed, and it goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from guests import eventually, running_machine

from atoll import process
from atoll.config import load
from atoll.hypervisor.port import find_holder
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

#: Does what it is told, and stands still at a stage until somebody lets it go on.
COMMAND = textwrap.dedent(
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

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def config(data, paths):
    return load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config


@pytest.fixture(scope="module")
def dev(data, paths):
    with running_machine(data, paths, disk="256M", memory="256M", cpus=1) as machine:
        mark(machine, "then")
        machine.snapshot("then")
        yield machine
        if not machine.state.active:
            machine.start()


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


def vm_of(machine):
    """Its process now; 0 if there is none."""
    found = find_holder(machine.find().place)
    return found.pid if found is not None else 0


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
