"""Cgroups on this host, as far as it lets this process make any; more in tests/vm/test_bounds.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from traces import cgroups

from atoll import process
from atoll.hypervisor import confinement
from atoll.hypervisor.cgroups import Bounds
from atoll.hypervisor.cgroups import name as cgroup_name
from atoll.hypervisor.confinement import confine

BOUNDS = Bounds(memory=256 << 20, tasks=20)

needs_cgroups = pytest.mark.skipif(not confinement.survey().homes, reason="no cgroup may be made here")


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_in(pid, directory):
    return f"{pid}" in (directory / "cgroup.procs").read_text().split()


@needs_cgroups
def test_a_process_enters_before_it_begins():
    made = confine("vm", BOUNDS)
    script = f"cat {made.directories[0]}/cgroup.procs; echo $$"
    read, write = os.pipe()
    child = process.spawn(["/bin/sh", "-c", script], output=write, entering=made.entries)
    os.close(write)
    with os.fdopen(read) as stream:
        *inside, itself = stream.read().split()
    child.close()
    assert itself == f"{child.pid}"
    assert itself in inside
    made.remove()
    assert not cgroups()


@needs_cgroups
def test_of_fifty_that_come_and_go_none_is_left():
    children = []
    for _ in range(25):
        for vm in ("one", "two"):
            made = confine(vm, BOUNDS)
            children.append((process.spawn(["sleep", "60"], entering=made.entries), made))
    assert len(cgroups()) == 50 * len(made.directories)
    for child, made in children:
        child.close()
        made.remove()
        made.remove()
    assert not cgroups()


OWNER = """
import time
from atoll import process
from atoll.hypervisor.cgroups import Bounds
from atoll.hypervisor.confinement import confine

for vm in ("one", "two"):
    made = confine(vm, Bounds(memory=256 << 20, tasks=20))
    child = process.spawn(["sleep", "60"], entering=made.entries)
    while open(f"/proc/{child.pid}/comm").read() != "sleep\\n":
        time.sleep(0.005)
print(child.pid, made.directories[0], flush=True)
time.sleep(60)
"""


@needs_cgroups
def test_those_of_a_killed_program_are_swept_by_the_next_and_those_of_one_that_lives_are_not():
    init = process.identify(1)
    homes = [home.directory for home in confinement.survey().homes]
    of_others = [home / cgroup_name(1, init.started, f"of-{os.getpid()}") for home in homes]
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE) as program:
        child, directory = program.stdout.readline().split()
        assert is_in(int(child), Path(os.fsdecode(directory)))
        assert len(cgroups([program.pid])) == 2 * len(homes)  # once it is dead, anybody may sweep them
        program.kill()
    try:
        for other in of_others:
            other.mkdir()
        wait_until(lambda: not Path(f"/proc/{int(child)}").exists())
        confine("next", BOUNDS).remove()
        assert not cgroups([program.pid])
        assert all(other.exists() for other in of_others)
    finally:
        for other in of_others:
            other.rmdir()


OTHER_USER = """
import os
from atoll.hypervisor import confinement
from atoll.hypervisor.cgroups import Bounds

os.setgid(65534)
os.setuid(65534)
found = confinement.survey()
made = confinement.confine("vm", Bounds(memory=256 << 20, tasks=20))
print(found.homes, made, all("cannot be written" in reason for _, reason in found.refusals))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_may_not_write_there_has_none():
    done = subprocess.run([sys.executable, "-c", OTHER_USER], capture_output=True, text=True, check=True)
    assert done.stdout == "() None True\n"


@needs_cgroups
def test_a_process_that_cannot_enter_begins_all_the_same(tmp_path):
    read, write = os.pipe()
    nowhere = [tmp_path / "nonsuch" / "tasks", tmp_path]
    child = process.spawn(["/bin/echo", "here"], output=write, entering=nowhere)
    os.close(write)
    with os.fdopen(read) as stream:
        assert stream.read() == "here\n"
    assert child.wait(60) == 0
    child.close()


@needs_cgroups
def test_one_that_ends_by_itself_leaves_a_cgroup_that_can_be_removed():
    made = confine("vm", BOUNDS)
    child = process.spawn(["sleep", "60"], entering=made.entries)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    made.remove()
    assert not cgroups()
    child.close()
