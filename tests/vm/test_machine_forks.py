"""Machines that go on where another one was: with all it had, and as somebody else."""

from __future__ import annotations

import contextlib

import pytest
from guests import running_machine

from atoll.errors import StoreError
from atoll.vm.state import StateError

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]

MIB = 1 << 20

#: Counts in memory as long as nobody ends it; its variable is nowhere else.
COUNTING = "n=0; while :; do n=$((n + 1)); echo $n > /run/count; sleep 0.1; done"

#: Everything by which machines are told apart.
WHO = "hostname; cat /etc/machine-id /sys/class/net/eth0/address; head -c 16 /dev/urandom | od -An -tx1"


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    place = tmp_path_factory.mktemp("host")
    (place / "file").write_text("of the host\n")
    return place


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths, host):
    with running_machine(
        tmp_path_factory.mktemp("data"), paths, disk="256M", memory="256M", mounts=[f"{host}:/mnt/host"]
    ) as machine:
        yield machine


@contextlib.contextmanager
def copied(machine, *names):
    copies = machine.fork(*names)
    try:
        yield copies
    finally:
        for copy in copies:
            copy.remove(force=True)
            copy.close()


def output(machine, script):
    return machine.run(["sh", "-c", script], check=True).stdout


def test_copies_have_memory_processes_and_disk_and_go_on_apart(dev):
    output(dev, "echo kept > /root/before; echo unsynced > /root/cached; cp /root/before /dev/shm/before")
    output(dev, f"({COUNTING}) > /dev/null 2>&1 & echo $! > /run/pid")
    with copied(dev, "one", "two") as copies:
        every = (dev, *copies)
        for machine in every:
            assert (
                output(machine, "cat /root/before /root/cached /dev/shm/before") == "kept\nunsynced\nkept\n"
            )
            assert output(machine, "cat /mnt/host/file") == "of the host\n"
            before = int(output(machine, "kill -0 $(cat /run/pid) && cat /run/count"))
            assert int(output(machine, "sleep 0.3; cat /run/count")) > before
        facts = [output(machine, WHO).splitlines() for machine in every]
        assert [name for name, *_ in facts] == ["dev", "one", "two"]
        for fact in zip(*facts, strict=True):
            assert len(set(fact)) == 3
        for number, machine in enumerate(every):
            output(machine, f"echo {number} > /root/own; sync")
        assert [output(machine, "cat /root/own") for machine in every] == ["0\n", "1\n", "2\n"]
        one = copies[0]
        one.restart()
        assert output(one, "cat /root/before /root/own; hostname") == "kept\n1\none\n"
    output(dev, "kill $(cat /run/pid)")


def test_what_was_plugged_in_is_in_the_copy_and_a_copy_can_be_copied(dev):
    dev.resize(memory="384M")
    output(dev, "mkdir -p /mnt/m; mount -t tmpfs -o size=300m m /mnt/m; head -c 10M /dev/urandom > /mnt/m/1")
    output(dev, "cd /mnt/m; for i in $(seq 20); do cat 1; done > many")
    with copied(dev, "one") as (one,), copied(one, "two") as (two,):
        dev.pause()
        same = "cd /mnt/m; for i in $(seq 0 19); do cmp -n 10M -i 0:${i}0M 1 many || exit; done; echo same"
        assert output(two, same) == "same\n"
        assert two.memory().size == 384 * MIB
        assert two.resize(memory="448M") == {"memory": "now"}
    dev.resume()
    output(dev, "umount /mnt/m")


def test_a_paused_machine_stays_paused_and_its_copy_runs(dev, host):
    dev.unshare("/mnt/host")
    dev.pause()
    with copied(dev, "one") as (one,):
        assert (dev.state.phase, one.state.phase) == ("paused", "running")
        assert output(one, "hostname") == "one\n"
    dev.resume()
    assert output(dev, "hostname") == "dev\n"
    dev.share(host, "/mnt/host")


def test_what_cannot_be_is_refused_and_nothing_is_left(dev):
    here = sorted(path.name for path in dev.find().place.directory.parent.iterdir())
    with pytest.raises(StoreError) as caught:
        dev.fork("one", "dev")
    assert caught.value.code == "store.already_exists"
    with dev.start_process(["sleep", "60"], cwd="/mnt/host"), pytest.raises(StateError) as caught:
        dev.fork("one")
    assert caught.value.code == "state.share_busy"
    assert output(dev, "cat /mnt/host/file") == "of the host\n"
    dev.stop()
    with pytest.raises(StateError):
        dev.fork("one")
    assert sorted(path.name for path in dev.find().place.directory.parent.iterdir()) == here
