"""A machine whose disk is branched while it runs and at rest, and that is then copied, moved and resized."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess

import pytest
from guests import eventually

from atoll import blocking, process, store
from atoll.image import disk
from atoll.image.extents import ZEROES, read_range
from atoll.machine import archive, editing, registry
from atoll.machine.supervise import _hypervisor, read_plan
from atoll.vm.branching import branch_live, prepare_branch
from atoll.vm.chain import PLAIN, files_of, opened, read_chain, used_by
from atoll.vm.folding import compact

pytestmark = pytest.mark.vm

MIB = 1 << 20


@pytest.fixture(scope="module")
def config(own_config):
    return own_config


def output(machine, script):
    return machine.run(["sh", "-c", script], check=True).stdout


def write(machine, name):
    """A file that cannot be told from noise; its digest."""
    output(machine, f"head -c 2M /dev/urandom > /root/{name}; sync")
    return digest(machine, name)


def digest(machine, *names):
    return output(machine, f"cat {' '.join(f'/root/{name}' for name in names)} | sha256sum").split()[0]


def without_supervisor(machine):
    """Kill the machine's supervisor; where it was."""
    status, place = machine.status(), machine.find().place
    os.kill(status.supervisor, signal.SIGKILL)
    eventually(lambda: process.identify(status.supervisor) is None)
    eventually(lambda: not store.is_held(place.supervisor_lock))
    return place


def branch(machine):
    """Branch the disk of a running machine, as its supervisor would."""
    place = without_supervisor(machine)

    async def act():
        vm = _hypervisor(read_plan(place)).adopt(place)
        try:
            return await branch_live(place, vm.plugging), await vm.plugging.disk_file("data")
        finally:
            await vm.leave()

    chain, top = asyncio.run(act())
    assert top == place.directory / chain.active.name
    return chain


def flat(place):
    """The digest of what the disk of a machine at rest holds."""
    found = hashlib.sha256()
    with opened(place, read_chain(place).files) as held:
        for one in held.extents:
            data = read_range(held.files, one, 0, one.length)
            if one.source != ZEROES and any(data):
                found.update(one.at.to_bytes(8, "big") + data)
    return found.digest()


def open_files(machine):
    pid = machine.status().vm
    return {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}


def test_a_running_machine_is_branched_twice_and_notices_nothing(dev):
    place = dev.find().place
    digests = [write(dev, "one")]
    for name in ("two", "three"):
        chain = branch(dev)
        assert digest(dev, "one") == digests[0]
        digests.append(write(dev, name))
    assert [file.format for file in chain.files] == ["raw", "qcow2", "qcow2"]
    assert not place.data.exists()
    assert [digest(dev, name) for name in ("one", "two", "three")] == digests
    frozen = [path.read_bytes() for path in files_of(place, chain)[:2]]
    write(dev, "four")
    assert [path.read_bytes() for path in files_of(place, chain)[:2]] == frozen
    assert dev.stats().disk == used_by(place, chain)


def test_what_is_deleted_leaves_the_file_on_top(dev):
    place = dev.find().place
    top = files_of(place, read_chain(place))[-1]
    output(dev, "head -c 64M /dev/urandom > /root/large; sync")
    full = top.stat().st_blocks * 512
    output(dev, "rm /root/large; sync; fstrim / 2>/dev/null || true")
    eventually(lambda: top.stat().st_blocks * 512 < full - (60 << 20))


def test_a_branched_disk_grows_while_it_runs(dev):
    assert dev.resize(disk="512M") == {"disk": "now"}
    assert int(output(dev, "df -B1 --output=size / | tail -1")) > 400 * MIB


def test_a_branch_that_was_cut_short_before_the_switch_is_finished_by_the_next_supervisor(dev):
    place = without_supervisor(dev)
    before, late = read_chain(place), prepare_branch(place)
    wrote = write(dev, "late")  # its own command brings the next supervisor
    top = str(place.directory / late.after.active.name)
    eventually(lambda: top in open_files(dev))
    eventually(lambda: not (place.directory / before.active.name).exists())
    assert read_chain(place) == late.after
    after = write(dev, "after")
    assert (digest(dev, "late"), digest(dev, "after")) == (wrote, after)


def test_a_machine_starts_again_from_its_chain_also_after_a_record_that_nobody_followed(dev):
    place = without_supervisor(dev)
    prepare_branch(place)
    names = ("one", "two", "three", "late", "after")
    os.kill(int(place.pid_file.read_text()), signal.SIGKILL)
    eventually(lambda: not store.is_held(place.vm_lock))
    dev.start()
    assert len(read_chain(place).files) == 5
    assert output(dev, f"cd /root && ls {' '.join(names)} | wc -l") == f"{len(names)}\n"
    dev.stop()


def test_at_rest_it_is_cloned_without_a_copy_and_nothing_written_is_shared(dev, config):
    place = dev.find().place
    eventually(lambda: not store.is_held(place.supervisor_lock))
    before = flat(place)
    with registry.change(config.paths, "dev") as machine:
        editing.clone(config.paths, machine, "twin")
    with registry.change(config.paths, "dev") as machine:
        editing.grow_disk(machine, "768M")
    twin = config.paths.machine("twin")
    assert flat(place) == flat(twin) == before
    assert used_by(twin, read_chain(twin)) - used_by(place, read_chain(place)) < MIB
    with blocking.Machine("twin", config=config) as other:
        other.start()
        assert digest(other, "one", "two") == (dev.start() and digest(dev, "one", "two"))
        assert write(other, "own") != write(dev, "own")
        assert "768" in output(dev, "cat /sys/class/block/vd?/size | awk '{print $1 / 2048}'")
        ours, theirs = files_of(place, read_chain(place)), files_of(twin, read_chain(twin))
        assert [path.stat().st_ino for path in ours[:-1]] == [path.stat().st_ino for path in theirs[:-1]]
        assert ours[-1].stat().st_ino != theirs[-1].stat().st_ino
        other.stop()
    dev.stop()
    eventually(lambda: not store.is_held(place.supervisor_lock))
    assert flat(twin) != flat(place)


def compare(one, other):
    """As qemu-img reads both."""
    command = ["qemu-img", "compare", "-F", "raw", "-f", one.suffix[1:].replace("img", "raw"), one, other]
    subprocess.run(command, check=True, capture_output=True)


def test_as_a_file_and_when_folded_it_is_one_disk_without_faults(dev, config, tmp_path):
    with registry.change(config.paths, "dev") as machine:
        archive.export_machine(machine, tmp_path / "dev.atoll")
        place = machine.place
    archive.import_machine(config.paths, tmp_path / "dev.atoll", "moved")
    moved = config.paths.machine("moved")
    compare(files_of(place, read_chain(place))[-1], moved.data)
    with registry.change(config.paths, "twin") as machine:
        registry.forget(config.paths, machine)
    assert compact(place) == PLAIN
    compare(place.data, moved.data)
    disk.check(place.data)
