"""Snapshots of machines on disk: no kill and no full disk leaves half of one, or half of a machine.

The machines have no VM; what would be captured of one is held by this process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from kills import copy_tree, each_kill, killed_at
from machines import hosted_machine, hosted_spec
from msgspec.structs import replace

from atoll import store
from atoll.cli import snapshot as command
from atoll.config import load
from atoll.errors import StoreError
from atoll.hypervisor.model import Disk as VmDisk
from atoll.image import qcow2
from atoll.image.extents import Extent, read_range
from atoll.image.manifest import ImageManifest
from atoll.image.qcow2 import CLUSTER
from atoll.machine import registry, undoing
from atoll.machine.checkpoints import _disk_at_rest, _fill_before
from atoll.machine.machine import Machine
from atoll.machine.restoring import add_from, fill_from
from atoll.machine.snapshots import Wish, base_of, make
from atoll.paths import Paths
from atoll.snapshot import catalog, storing
from atoll.vm.bootplan import BootPlan
from atoll.vm.branching import prepare_branch
from atoll.vm.chain import opened, read_chain
from atoll.vm.messages import Captured, Files
from atoll.vm.tidying import tidy

SIZE = 16 * CLUSTER
PAGE = 4096


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """A process that is killed loses nothing that the kernel has: tests need not wait for the host's disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def at(world):
    return Paths(world, world)


def settings(world):
    return load({"data_dir": world, "cache_dir": world}, environment={}, files=()).config


def machine(world, name="dev"):
    return registry.find(at(world), name)


def content(world, name="dev"):
    """What a guest would read on its disk."""
    place = machine(world, name).place
    with opened(place, read_chain(place).files) as disk:
        data = bytearray(disk.size)
        for one in disk.extents:
            data[one.at : one.end] = read_range(disk.files, one, 0, one.length)
    return bytes(data)


def scribble(world, text, cluster):
    """As if a VM had written to the disk of the machine, whose active file is empty."""
    place = machine(world).place
    chain = read_chain(place)
    path, below = place.directory / chain.active.name, chain.frozen[-1]
    fd = os.memfd_create("source")
    try:
        os.write(fd, text.encode().ljust(CLUSTER, b"."))
        path.unlink()
        runs = [Extent(cluster * CLUSTER, CLUSTER, 0, 0)]
        qcow2.write(path, SIZE, below.name, below.format, runs, [fd])
    finally:
        os.close(fd)


@contextlib.contextmanager
def captured(text):
    """What a supervisor would hold of a VM with little in its memory."""
    with contextlib.ExitStack() as stack:
        fds = []
        for name, size in (("state", 100), ("ram", 1 << 20)):
            fd = os.memfd_create(name)
            stack.callback(os.close, fd)
            os.write(fd, f"{name} {text}".encode())
            os.truncate(fd, size)
            fds.append(fd)
        files = Files(pid=os.getpid(), state=fds[0], ram=fds[1])
        yield Captured(files=files, layers=(), size=SIZE, vcpus=1, memory=1 << 20, stopped=0.0)


def keep(world, name, *, ram=True):
    """Make a snapshot."""
    with registry.change(at(world), "dev") as named, contextlib.ExitStack() as stack:
        found = stack.enter_context(captured(name)) if ram else None
        return make(at(world), named, Wish(name=name), _disk_at_rest(named), found)


def fill(place):
    """A machine with a root, an image, a plan and a disk."""
    place.root.write_bytes(b"root" * 1000)
    image = ImageManifest(
        name="none",
        architecture="x86_64",
        distribution="none",
        suite="none",
        digest="",
        size=4000,
        created=1.0,
    )
    store.write_record(place.image, image)
    disks = (VmDisk(place.root, "root", read_only=True), VmDisk(place.data, "data"))
    plan = BootPlan(machine=replace(hosted_machine("dev"), disks=disks), host=None)
    store.write_record(place.boot, plan)
    with place.data.open("wb") as file:
        file.truncate(SIZE)
        file.write(b"base")


@pytest.fixture
def place():
    """A directory in memory, where there is one: hundreds of copies come and go."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        yield Path(place)


@pytest.fixture
def world(place):
    """A machine that was written to since its second snapshot, at the root of all that Atoll keeps."""
    world = place / "world"
    registry.add(at(world), "dev", hosted_spec(), fill)
    for number, name in enumerate(("one", "two")):
        keep(world, name)
        scribble(world, name, number + 1)
    return world


def snapshots(world):
    """The names of all snapshots, each of which is whole."""
    every = catalog.listed(at(world))
    for one in every:
        catalog.verify(one)
    return [one.manifest.name for one in every]


def settled(world):
    """Have the next command see to the machine; what it is then."""
    named = machine(world)
    with registry.at_rest(named, "started"):
        undoing.settle(named)
        tidy(named.place, 0)
    return content(world), base_of(named.place)


def test_a_name_that_another_took_meanwhile_is_refused_and_nothing_is_left(world):
    before = sorted(os.listdir(at(world).snapshots))
    with pytest.raises(StoreError) as caught:
        keep(world, "two")  # past the first look, as one that was imported while it was written
    assert caught.value.code == "store.already_exists"
    assert sorted(os.listdir(at(world).snapshots)) == before
    assert base_of(machine(world).place) == catalog.find(at(world), "two").id


def leftovers(world):
    """What nobody needs; a record that was about to be replaced is swept by the next of its name."""
    place = machine(world).place
    needed = {file.name for file in read_chain(place).files}
    mine = {
        name
        for name in os.listdir(place.directory)
        if name.startswith(("layer-", "active-", "data", "before", ".")) and name not in needed
    }
    others = {
        name
        for directory in (at(world).snapshots, at(world).machines)
        for name in os.listdir(directory)
        if name.startswith(".")
    }
    return {name for name in mine | others if ".json-" not in name}


def back(world, name="one"):
    """Go back to a snapshot's disk."""
    config = load({"data_dir": world, "cache_dir": world}, environment={}, files=()).config
    asyncio.run(Machine("dev", config=config).restore(name, disk_only=True))


def there(world, name="one"):
    """What it is that ``back`` goes to."""
    copy = world.with_name(f"{world.name}-there-{os.urandom(2).hex()}")
    copy_tree(world, copy)
    back(copy, name)
    return content(copy), catalog.find(at(copy), name).id


class TestKills:
    def test_a_snapshot_is_whole_or_not_there_whenever_its_maker_is_killed(self, world):
        before, seen = settled(world), set()
        for left in each_kill(lambda at: keep(at, "new"), world):
            found = tuple(snapshots(left))
            seen.add(found)
            assert settled(left)[0] == before[0]
            keep(left, "next", ram=False)
            assert snapshots(left) == [*found, "next"]
            assert leftovers(left) == set()
        assert seen == {("one", "two"), ("one", "two", "new")}

    def test_whoever_goes_back_is_killed_the_disk_is_one_of_the_two(self, world):
        before, after, seen = settled(world), there(world), set()
        assert before[0] != after[0]
        for left in each_kill(back, world):
            assert content(left) in {before[0], after[0]}
            seen.add(found := settled(left))
            assert found in {before, after}
            assert leftovers(left) == set()
            assert snapshots(left) == ["one", "two"]
        assert seen == {before, after}
        assert settled(left) == after  # nothing killed the last one
        back(left, "two")
        assert settled(left) == there(world, "two")

    def test_the_way_back_is_gone_whenever_it_is_killed(self, world):
        before = settled(world)
        cut_off(world)
        for left in each_kill(settled, world):
            assert settled(left) == before
            assert leftovers(left) == set()

    def test_a_change_that_has_held_is_not_undone_whenever_that_is_killed(self, world):
        after = there(world)
        cut_off(world)
        place = machine(world).place
        store.write_record(place.state, replace(machine(world).state, booted=7.0))
        for left in each_kill(settled, world):
            assert settled(left) == after
            assert leftovers(left) == set()

    def test_a_snapshot_is_removed_or_whole_and_others_are_whole(self, world):
        keep(world, "three")
        before = settled(world)
        every = [one.id for one in catalog.listed(at(world))]

        def remove(world):
            for name in every[:2]:
                catalog.remove(at(world), name)

        for left in each_kill(remove, world):
            assert tuple(snapshots(left)) in {("one", "two", "three"), ("two", "three"), ("three",)}
            catalog.remove(at(left), every[1])
            assert leftovers(left) == set()
            assert settled(left) == before

    def test_a_machine_made_of_one_is_whole_or_not_there(self, world):
        expected, _ = there(world, "two")

        def add(world):
            add_from(settings(world), catalog.find(at(world), "two"), "new", ram=True)

        for left in each_kill(add, world):
            if "new" in os.listdir(at(left).machines):
                tidy(machine(left, "new").place, 0)
                assert content(left, "new") == expected
            else:
                add(left)
            assert content(left, "new") == expected
        assert settled(left) == settled(world)

    def test_half_a_snapshot_of_a_machine_that_is_gone_is_swept_by_whoever_comes_next(
        self, world, monkeypatch
    ):
        assert killed_at(30, lambda: keep(world, "new"))
        catalog.sweep(at(world))
        assert len(leftovers(world)) == 1  # its maker may just begin
        monkeypatch.setattr(catalog, "_TAKEN", 0.0)
        with storing.staging(at(world), "other") as staged:
            assert leftovers(world) == {staged.directory.name}
            catalog.sweep(at(world))
            assert staged.directory.exists()


@contextlib.contextmanager
def exchanging(world, name="one"):
    """What ``back`` does, in its parts."""
    named, found = machine(world), catalog.find(at(world), name)
    disk = _disk_at_rest(named)

    def become_old(place):
        _fill_before(named.place, disk, None, place)

    with undoing.exchanging(
        named.place, become_old, fill_from(named, found, settings(world), ram=True)
    ) as exchange:
        yield exchange


def cut_off(world):
    """Have the machine be another one, and the way back there."""

    def work():
        with exchanging(world) as exchange:
            exchange.carry_out()
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(1000, work)
    assert machine(world).place.before.exists()


class FullDisk:
    """A small file system, with as much room as it is told to have."""

    def __init__(self, place):
        self.place = place
        self.world = place / "world"

    def leave(self, pages):
        """Have so many pages free."""
        filler = self.place / "filler"
        filler.unlink(missing_ok=True)
        free = os.statvfs(self.place).f_bavail
        if free > pages:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, (free - pages) * PAGE)

    def listing(self):
        """All that is there."""
        return {
            path.relative_to(self.world): path.read_bytes() if path.is_file() else b""
            for path in self.world.rglob("*")
            if not path.name.endswith(".lock")
        }

    def each_room(self, work):
        """Do ``work`` with more and more room until it succeeds: before, all is as it was."""
        pages, before = 0, self.listing()
        while True:
            self.leave(pages)
            code = ""
            try:
                return work(), pages
            except StoreError as error:
                code = error.code
            assert code == "store.full", pages
            assert self.listing() == before, pages
            pages += 1


@pytest.fixture
def full(world, place):
    """The same world, on a small file system."""
    place = place / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        copy_tree(world, place / "world")
        yield FullDisk(place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


class TestFullDisks:
    def test_a_snapshot_that_does_not_fit_leaves_nothing(self, full):
        settle_branch(full.world)
        _, pages = full.each_room(lambda: keep(full.world, "new"))
        assert pages > 5
        assert snapshots(full.world) == ["one", "two", "new"]

    def test_a_branch_that_does_not_fit_leaves_nothing(self, full):
        place = machine(full.world).place
        _, pages = full.each_room(lambda: prepare_branch(place))
        assert pages > 1

    def test_going_back_without_room_leaves_the_machine_as_it_was(self, full):
        settle_branch(full.world)
        expected = there(full.world)
        full.each_room(lambda: back(full.world))
        assert settled(full.world) == expected

    def test_once_the_machine_is_touched_no_room_is_needed(self, full):
        world = full.world
        before, after = settled(world), there(world)[0]
        for undone in (False, True):
            with exchanging(world) as exchange:
                full.leave(0)
                exchange.carry_out()
                assert content(world) == after
                if undone:
                    exchange.undo()
            if not undone:
                settled(world)
            assert (content(world), base_of(machine(world).place)) == before
            assert leftovers(world) == set()
            full.leave(100)

    def test_a_snapshot_is_removed_from_a_full_disk(self, full):
        full.leave(0)
        catalog.remove(at(full.world), catalog.find(at(full.world), "one").id)
        assert snapshots(full.world) == ["two"]


def settle_branch(world):
    """Have the active file be empty: a snapshot need not branch the disk, which would stay so."""
    _disk_at_rest(machine(world))


def test_pruning_takes_the_oldest_of_each_machine(world, monkeypatch, capsys):
    monkeypatch.setenv("ATOLL_DATA_DIR", str(world))
    parser = argparse.ArgumentParser()
    command.configure(parser)
    keep(world, "three")
    for words in (["--dry-run"], []):
        assert command.run(parser.parse_args(["prune", "--keep", "1", *words])) == 0
        assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
        assert snapshots(world) == (["one", "two", "three"] if words else ["three"])
