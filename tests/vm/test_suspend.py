"""Machines that are suspended, by hand or by themselves, and go on where they were."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest
from guests import eventually, running_machine

from atoll.blocking.core import wait_for
from atoll.errors import StoreError
from atoll.vm.state import Phase, StateError

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture(scope="module", autouse=True)
def loop():
    """The event loop of the blocking interface stays: it is nothing that a test leaves."""
    wait_for(asyncio.sleep(0))


@pytest.fixture
def dev(tmp_path, paths):
    with running_machine(tmp_path / "data", paths, disk="256M", memory="256M") as machine:
        yield machine


def output(machine, script):
    return machine.run(["sh", "-c", script], check=True).stdout


def begin(machine):
    """Have something be in its memory that no disk has."""
    counting = "while :; do n=$((n + 1)); echo $n > /run/count; sleep 0.1; done"
    output(machine, f"echo kept > /run/kept; echo kept > /root/kept; ({counting}) > /dev/null 2>&1 &")


def assert_goes_on(machine):
    assert output(machine, "cat /run/kept /root/kept") == "kept\nkept\n"
    before = int(output(machine, "cat /run/count"))
    eventually(lambda: int(output(machine, "cat /run/count")) > before)


def test_it_goes_on_with_its_memory_and_its_processes(dev, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("of the host\n")
    dev.share(tmp_path / "shared", "/mnt")
    begin(dev)
    for _ in range(2):
        dev.suspend()
        state = dev.state
        assert (state.phase, state.vm) == (Phase.SUSPENDED, None)
        with pytest.raises(StateError) as caught:
            dev.resize(disk="512M")
        assert caught.value.code == "state.suspended"
        dev.start()
        assert_goes_on(dev)
        assert output(dev, "cat /mnt/file") == "of the host\n"
    assert not dev.find().place.suspended.exists()


def test_what_it_was_is_verified_and_can_be_discarded(dev):
    begin(dev)
    dev.suspend()
    (pack,) = dev.find().place.suspended.glob("*.pack")
    damaged = bytearray(pack.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    pack.write_bytes(damaged)
    with pytest.raises(StoreError) as caught:
        dev.start()
    assert caught.value.code == "store.corrupt"
    assert dev.state.phase is Phase.SUSPENDED
    dev.start(discard=True)
    assert output(dev, "cat /root/kept; test ! -e /run/kept && echo gone") == "kept\ngone\n"
    assert not dev.find().place.suspended.exists()


def test_the_disk_of_a_snapshot_takes_the_place_of_what_it_was(dev):
    begin(dev)
    dev.snapshot("before")
    output(dev, "echo later > /root/kept; sync")
    dev.suspend()
    assert dev.restore("before", disk_only=True).phase is Phase.STOPPED
    dev.start()
    assert output(dev, "cat /root/kept; test ! -e /run/kept && echo gone") == "kept\ngone\n"


def test_one_that_does_nothing_is_suspended_and_goes_on_in_the_foreground(tmp_path, paths, environment):
    with running_machine(tmp_path / "data", paths, disk="256M", memory="256M", idle_suspend="2s") as machine:
        output(machine, "echo kept > /run/kept")
        machine.close()
        eventually(lambda: machine.state.phase is Phase.SUSPENDED, within=30)
        command = [sys.executable, "-m", "atoll", "supervise", "dev"]
        told = {**environment, "ATOLL_DATA_DIR": str(tmp_path / "data")}
        with subprocess.Popen(command, env=told, stderr=subprocess.DEVNULL) as supervisor:
            eventually(lambda: machine.state.phase is Phase.RUNNING)
            assert output(machine, "cat /run/kept") == "kept\n"
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(30) == 0
        assert machine.state.phase is Phase.STOPPED
