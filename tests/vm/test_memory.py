"""The memory of a guest, as it is told and as it goes back to the host."""

from __future__ import annotations

import pytest
from guests import eventually, running_machine

from atoll.errors import UsageError
from atoll.vm.state import StateError

pytestmark = pytest.mark.vm

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(scope="module")
def dev(tmp_path_factory, paths):
    with running_machine(tmp_path_factory.mktemp("data"), paths, disk="256M", memory="1G") as machine:
        machine.run(["mount", "-t", "tmpfs", "-o", "size=900m", "tmpfs", "/mnt"], check=True)
        yield machine


def sh(machine, script):
    return machine.run(["sh", "-c", script])


def total(machine):
    """What the guest's kernel has, in all."""
    return int(sh(machine, "grep MemTotal /proc/meminfo").stdout.split()[1]) << 10


def test_it_is_told_what_the_guest_has_and_what_it_costs_the_host(dev):
    state = dev.memory()
    assert state.size == state.actual == GIB
    assert 0 < state.available <= total(dev)
    assert 0 < state.free <= total(dev)
    assert 64 * MIB < state.host < 512 * MIB


def test_what_the_guest_fills_the_host_gives_and_what_it_frees_the_host_gets_back(dev):
    before = dev.memory()
    assert sh(dev, "fallocate -l 512M /mnt/file").ok
    full = dev.memory()
    assert full.host > before.host + 0.9 * 512 * MIB
    assert full.free < before.free - 0.9 * 512 * MIB
    sh(dev, "rm /mnt/file")
    eventually(lambda: dev.memory().host < full.host - 0.9 * 512 * MIB)


def test_the_balloon_leaves_what_it_is_told_to(dev):
    state = dev.memory("384M")
    assert (state.size, state.actual) == (GIB, 384 * MIB)
    assert state.available < 384 * MIB


def test_a_guest_that_needs_more_than_the_balloon_leaves_takes_it_and_nothing_is_killed(dev):
    wanted = dev.memory().free + 32 * MIB
    assert sh(dev, f"fallocate -l {wanted} /mnt/file && rm /mnt/file").ok
    assert dev.memory().actual > 384 * MIB
    assert "Out of memory" not in sh(dev, "dmesg").stdout


def test_the_balloon_gives_all_back(dev):
    assert dev.memory("1G").actual == GIB
    assert dev.memory().available > 0.75 * GIB


@pytest.mark.parametrize("target", ["1M", "2G"])
def test_what_the_guest_cannot_be_left_is_refused(dev, target):
    with pytest.raises(StateError) as caught:
        dev.memory(target)
    assert caught.value.code == "state.memory"
    assert dev.memory().actual == GIB


def test_a_malformed_size_is_refused(dev):
    with pytest.raises(UsageError):
        dev.memory("much")


def test_a_paused_machine_cannot_be_asked(dev):
    dev.pause()
    with pytest.raises(StateError) as caught:
        dev.memory()
    assert caught.value.code == "state.not_running"
    dev.resume()
