"""A machine that becomes larger: while it runs where that can be, and at its next start in any case."""

from __future__ import annotations

import os

import pytest
from guests import running_machine

from atoll.errors import ConfigError, UsageError
from atoll.vm.state import StateError

pytestmark = pytest.mark.vm

MIB = 1 << 20
GIB = 1 << 30
NOW, LATER = "now", "at the next start"


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths):
    with running_machine(
        tmp_path_factory.mktemp("data"), paths, disk="256M", memory="256M", cpus=1
    ) as machine:
        yield machine


def output(machine, script):
    return machine.run(["sh", "-c", script], check=True).stdout


def memory(machine):
    return int(output(machine, "grep MemTotal /proc/meminfo").split()[1]) << 10


def test_the_disk_grows_with_the_file_system_on_it(dev):
    output(dev, "head -c 8M /dev/zero > /root/kept")
    assert dev.resize(disk="2G") == {"disk": NOW}
    assert int(output(dev, "df -B1 --output=size / | tail -1")) > 1.8 * GIB
    assert output(dev, "fallocate -l 400M /root/file && rm /root/file; wc -c < /root/kept") == f"{8 * MIB}\n"
    assert dev.spec.disk == 2 * GIB


def test_a_disk_does_not_become_smaller(dev):
    with pytest.raises(UsageError, match="smaller"):
        dev.resize(disk="1G")
    assert dev.spec.disk == 2 * GIB


def test_memory_is_plugged_in_and_out(dev):
    before = memory(dev)
    assert dev.resize(memory="768M") == {"memory": NOW}
    assert memory(dev) == pytest.approx(before + 512 * MIB, abs=MIB)
    assert dev.memory().size == 768 * MIB
    assert output(
        dev, "mount -t tmpfs -o size=600m t /mnt; head -c 300M /dev/zero > /mnt/file; wc -c < /mnt/file"
    )
    output(dev, "umount /mnt")
    assert dev.resize(memory="256M") == {"memory": NOW}
    assert memory(dev) == pytest.approx(before, abs=MIB)
    assert dev.spec.memory == 256 * MIB


def test_the_balloon_counts_what_was_plugged_in(dev):
    dev.resize(memory="512M")
    assert dev.memory("384M").actual == 384 * MIB
    assert dev.memory("512M").actual == 512 * MIB
    with pytest.raises(StateError, match="left 200 MiB"):  # of what was plugged in the balloon takes nothing
        dev.memory("200M")
    dev.resize(memory="256M")


def test_what_cannot_be_now_is_said_and_comes_at_the_next_start(dev):
    assert dev.resize(cpus=2, memory="301M") == {"cpus": LATER, "memory": LATER}
    assert output(dev, "nproc") == "1\n"
    assert (dev.spec.cpus, dev.spec.memory) == (2, 301 * MIB)


def test_wrong_sizes_are_refused_and_nothing_is_recorded(dev):
    for wrong in ({"cpus": 0}, {"memory": "x"}, {"memory": "-1G"}):
        with pytest.raises(ConfigError):
            dev.resize(**wrong)
    with pytest.raises(UsageError):
        dev.resize(disk="x")
    assert (dev.spec.cpus, dev.spec.memory, dev.spec.disk) == (2, 301 * MIB, 2 * GIB)


def test_a_machine_at_rest_has_it_when_it_starts(dev, monkeypatch):
    dev.stop(force=True)
    assert dev.resize(memory="384M", disk="3G") == {"memory": LATER, "disk": LATER}
    monkeypatch.setattr(os, "cpu_count", lambda: 4)  # for the next test
    dev.start()
    assert output(dev, "nproc") == "2\n"
    assert dev.memory().size == 384 * MIB
    assert int(output(dev, "df -B1 --output=size / | tail -1")) > 2.7 * GIB


def test_vcpus_are_plugged_in_where_a_machine_has_several(dev):
    assert dev.resize(cpus=3) == {"cpus": NOW}
    assert output(dev, "nproc") == "3\n"
    assert dev.resize(cpus=9) == {"cpus": LATER}
    assert dev.resize(cpus=2) == {"cpus": LATER}


def test_a_paused_machine_is_resized_at_its_next_start(dev):
    dev.pause()
    assert dev.resize(memory="512M") == {"memory": LATER}
    dev.resume()
    with pytest.raises(StateError):
        dev.memory("700M")
