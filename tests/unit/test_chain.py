"""Chains of disk files: what they may be, how they branch and fold; no kill loses or mixes anything."""

from __future__ import annotations

import os

import msgspec
import pytest
from kills import each_kill

from atoll import store
from atoll.errors import ImageError, StoreError, UsageError
from atoll.hypervisor.model import Disk, DiskFile, DiskFormat
from atoll.image import qcow2
from atoll.image.extents import ZEROES, Extent, read_range
from atoll.image.qcow2 import CLUSTER
from atoll.paths import VmPaths
from atoll.vm.branching import branch_at_rest, finish_branch, link_into, prepare_branch
from atoll.vm.chain import (
    PLAIN,
    Chain,
    Layer,
    branched,
    disk_of,
    files_of,
    opened,
    read_chain,
    require_files,
    size_of,
    stale,
    used_by,
    write_chain,
)
from atoll.vm.folding import compact, plan_fold
from atoll.vm.tidying import LONGEST, check_size, grow, tidy

RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2
SIZE = 16 * CLUSTER
TIB = 1 << 40


def layer(number, kind=QCOW2):
    return Layer(f"layer-{number:016x}.{kind}", kind)


def active(number):
    return Layer(f"active-{number:016x}.qcow2", QCOW2)


THREE = Chain(files=(layer(1, RAW), layer(2), active(3)))


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """A process that is killed loses nothing that the kernel has: tests need not wait for the host's disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def place(tmp_path):
    place = VmPaths(tmp_path / "dev")
    place.directory.mkdir()
    with place.data.open("wb") as file:
        file.truncate(SIZE)
        file.write(b"base" * (CLUSTER // 2))
    return place


def content(place, files=()):
    """What a guest would read."""
    with opened(place, files or read_chain(place).files) as disk:
        data = bytearray(disk.size)
        for one in disk.extents:
            data[one.at : one.end] = read_range(disk.files, one, 0, one.length)
    return bytes(data)


def scribble(place, *clusters, zeroes=()):
    """Have the active overlay differ, as if a VM had written it."""
    chain = read_chain(place)
    path, below = place.directory / chain.active.name, chain.frozen[-1]
    size = qcow2.read_header(path).size
    fd = os.memfd_create("source")
    try:
        os.write(fd, os.urandom(len(clusters) * CLUSTER))
        data = [Extent(at * CLUSTER, CLUSTER, 0, number * CLUSTER) for number, at in enumerate(clusters)]
        runs = sorted(data + [Extent(at * CLUSTER, CLUSTER, ZEROES) for at in zeroes])
        path.unlink()
        qcow2.write(path, size, below.name, below.format, runs, [fd])
    finally:
        os.close(fd)


def deep(place, layers=3):
    """A disk of so many overlays that each say something."""
    for number in range(layers):
        branch_at_rest(place)
        scribble(place, number, number + 4, zeroes=(number + 7,))


def names(place):
    return sorted(entry.name for entry in place.directory.iterdir())


class TestRecord:
    @pytest.mark.parametrize(
        "files",
        [
            (),
            (layer(1, RAW),),  # nothing active
            (Layer("data.img", QCOW2),),
            (Layer("data.img", RAW), active(1)),  # the active file's name is frozen
            (layer(1), active(2)),  # the lowest is an overlay
            (layer(1, RAW), layer(2, RAW), active(3)),
            (layer(1, RAW), layer(2)),
            (layer(1, RAW), Layer("../active-0000000000000001.qcow2", QCOW2)),
            (layer(1, RAW), Layer("active-1.qcow2", QCOW2)),
            (Layer("/etc/passwd", RAW), active(2)),
        ],
    )
    def test_files_that_are_no_chain_are_refused(self, place, files):
        with pytest.raises(ValueError, match="disk"):
            Chain(files=files)
        text = msgspec.json.encode({"schema": 1, "files": [msgspec.to_builtins(file) for file in files]})
        place.chain.write_bytes(text)
        with pytest.raises(StoreError) as caught:
            read_chain(place)
        assert caught.value.code == "store.corrupt"

    def test_without_a_record_a_disk_is_its_one_file(self, place):
        assert read_chain(place) == PLAIN
        assert disk_of(place, PLAIN) == Disk(place.data, "data")
        assert size_of(place, PLAIN) == SIZE

    def test_a_record_comes_back(self, place):
        write_chain(place, THREE)
        assert read_chain(place) == THREE
        assert disk_of(place, THREE) == Disk(
            place.directory / THREE.active.name,
            "data",
            QCOW2,
            backing=(
                DiskFile(place.directory / THREE.files[0].name, RAW),
                DiskFile(place.directory / THREE.files[1].name, QCOW2),
            ),
        )

    def test_a_file_that_is_missing_is_named(self, place):
        branch_at_rest(place)
        lowest = files_of(place, read_chain(place))[0]
        lowest.unlink()
        with pytest.raises(StoreError, match=lowest.name):
            require_files(place, read_chain(place))
        with pytest.raises(StoreError):
            tidy(place, 0)

    def test_where_the_record_was_lost_no_file_is_removed(self, place):
        deep(place, 2)
        place.chain.unlink()
        before = names(place)
        for work in (branch_at_rest, compact, finish_branch, lambda place: tidy(place, 0)):
            with pytest.raises(StoreError) as caught:
                work(place)
            assert caught.value.code == "store.missing"
        assert names(place) == before


class TestPlans:
    def test_a_branch_freezes_what_is_active_and_reuses_no_name(self):
        once, again = branched(THREE), branched(THREE)
        assert once.frozen[:2] == THREE.frozen
        assert once.frozen[2].format is QCOW2
        seen = {file.name for chain in (THREE, once, again) for file in chain.files}
        assert len(seen) == 7
        assert branched(PLAIN).frozen[0].format is RAW

    def test_what_the_record_does_not_name_is_stale_and_nothing_else_is(self):
        kept = [
            "machine.json",
            "state.json",
            "layer-1.raw",
            "layer-x",
            "vm.sock",
            "root.erofs",
            "data.img.old",
        ]
        old = [layer(9).name, active(9).name, "data.img"]
        needed = [file.name for file in THREE.files]
        assert stale([*kept, *old, *needed], THREE) == old
        assert stale(["data.img", layer(1).name], PLAIN) == [layer(1).name]

    @pytest.mark.parametrize(
        ("links", "kept"),
        [((1, 1, 1), 0), ((2, 1, 1), 1), ((3, 2, 1), None), ((1, 1, 2), None), ((1, 2, 1), None)],
    )
    def test_only_what_nobody_else_has_is_folded(self, links, kept):
        fold = plan_fold(THREE, links)
        if kept is None:
            assert fold is None
        else:
            assert (fold.kept, fold.folded) == (THREE.files[:kept], THREE.files[kept:])

    def test_one_file_is_not_folded(self):
        assert plan_fold(PLAIN, (1,)) is None


class TestBranches:
    def test_a_branch_holds_what_was_there(self, place):
        before = content(place)
        chain = branch_at_rest(place)
        assert content(place) == before
        assert [file.format for file in chain.files] == [RAW, QCOW2]
        assert names(place) == sorted(["disk.json", *(file.name for file in chain.files)])
        assert used_by(place, chain) == sum(path.stat().st_blocks * 512 for path in files_of(place, chain))

    def test_where_nothing_was_written_no_file_is_added(self, place):
        chain = branch_at_rest(place)
        assert branch_at_rest(place) == chain
        scribble(place, 3)
        assert branch_at_rest(place).frozen == (*chain.frozen, read_chain(place).frozen[-1])

    def test_two_that_share_layers_share_nothing_that_is_written(self, place, tmp_path):
        deep(place)
        chain, before = branch_at_rest(place), content(place)
        other = VmPaths(tmp_path / "other")
        other.directory.mkdir()
        linked = link_into(place, chain.frozen, other, SIZE)
        assert read_chain(other) == linked
        assert linked.frozen == chain.frozen
        assert content(other) == before
        scribble(other, 1)
        assert content(place) == before != content(other)
        for at in (place, other):
            *frozen, top = files_of(at, read_chain(at))
            assert top.stat().st_nlink == 1
            assert all(path.stat().st_nlink == 2 for path in frozen)

    def test_where_the_file_system_has_no_links_layers_are_copied(self, place, tmp_path, monkeypatch):
        deep(place, 1)
        chain, before = branch_at_rest(place), content(place)
        other = VmPaths(tmp_path / "other")
        other.directory.mkdir()

        def refuse(*_):
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(os, "link", refuse)
        link_into(place, chain.frozen, other, SIZE)
        assert content(other) == before
        assert all(path.stat().st_nlink == 1 for path in files_of(other, read_chain(other)))
        assert len(names(other)) == 4

    def test_an_active_file_that_has_two_names_is_frozen_before_a_start(self, place, tmp_path):
        (tmp_path / "backup").hardlink_to(place.data)
        before = content(place)
        tidy(place, 0)
        assert len(read_chain(place).files) == 2
        assert content(place) == before
        assert os.path.samefile(tmp_path / "backup", files_of(place, read_chain(place))[0])

    def test_nothing_is_done_while_a_vm_runs(self, place):
        lock = store.hold(place.vm_lock)
        child = os.fork()
        if not child:
            os.close(lock)
            os._exit(tidy(place, 1 << 30))
        assert os.waitpid(child, 0)[1] == 0
        os.close(lock)
        assert size_of(place, PLAIN) == SIZE


class TestSizes:
    def test_both_kinds_of_file_grow_and_do_not_shrink(self, place):
        for size in (2 * SIZE, 4 * SIZE):
            tidy(place, size)
            assert len(content(place)) == size
            with pytest.raises(UsageError):
                grow(place, SIZE)
            check_size(place, size)
            branch_at_rest(place)
        tidy(place, SIZE)
        assert size_of(place, read_chain(place)) == 4 * SIZE

    def test_an_overlay_does_not_grow_beyond_its_tables(self, place):
        branch_at_rest(place)
        grow(place, 4 * TIB)
        with pytest.raises(UsageError, match="4 TiB"):
            grow(place, 4 * TIB + 1)


class TestFolds:
    def test_what_nobody_else_has_becomes_one_plain_file(self, place):
        deep(place, 4)
        grow(place, 2 * SIZE)
        before = content(place)
        assert compact(place) == PLAIN
        assert content(place) == before
        assert names(place) == ["data.img", "disk.json"]
        assert compact(place) == PLAIN

    def test_what_others_have_stays(self, place, tmp_path):
        deep(place, 2)
        chain = branch_at_rest(place)
        other = VmPaths(tmp_path / "other")
        other.directory.mkdir()
        link_into(place, chain.frozen, other, SIZE)
        shared = content(other)
        scribble(place, 2, 9)
        deep(place, 3)
        before = content(place)
        folded = compact(place)
        assert folded.frozen == chain.frozen
        assert (content(place), content(other)) == (before, shared)
        other.directory.rename(tmp_path / "gone")
        store.remove_tree(tmp_path / "gone")
        assert compact(place) == PLAIN
        assert content(place) == before

    def test_only_long_chains_are_worth_it(self, place):
        deep(place, LONGEST - 1)
        assert not tidy(place, 0)
        deep(place, 1)
        assert tidy(place, 0)

    def test_a_damaged_overlay_is_refused_and_nothing_changes(self, place):
        deep(place, 2)
        path = files_of(place, read_chain(place))[1]
        with path.open("r+b") as file:
            file.seek(3 * CLUSTER)
            file.write(b"\xff" * 8)
        before = {name: (place.directory / name).read_bytes() for name in names(place)}
        with pytest.raises(ImageError):
            compact(place)
        assert {name: (place.directory / name).read_bytes() for name in names(place)} == before


def is_sound(place, before):
    """It holds what it held, now and after the next start; nobody writes what another reads."""
    assert content(place) == before
    tidy(place, 0)
    chain = read_chain(place)
    assert content(place) == before
    assert set(names(place)) - {"disk.json"} <= {file.name for file in chain.files} | {
        name for name in names(place) if name.startswith(".partial-disk.json-")
    }
    assert (place.directory / chain.active.name).stat().st_nlink == 1


def branch_by_steps(place):
    prepare_branch(place)
    finish_branch(place)


@pytest.mark.parametrize(
    ("work", "layers"),
    [(branch_by_steps, 0), (branch_by_steps, 2), (compact, 2)],
    ids=["branch", "again", "compact"],
)
def test_whenever_it_is_killed_the_disk_holds_what_it_held(place, work, layers):
    deep(place, layers)
    before = content(place)
    for left in map(VmPaths, each_kill(lambda at: work(VmPaths(at)), place.directory)):
        is_sound(left, before)
        work(left)  # what was cut short can be done again
        is_sound(left, before)


def test_whenever_a_fold_over_what_others_have_is_killed_both_hold_what_they_held(place, tmp_path):
    other = VmPaths(tmp_path / "other")
    other.directory.mkdir()
    deep(place, 1)
    chain = branch_at_rest(place)
    deep(place, 2)
    before = content(place)
    shared = content(place, chain.frozen)

    def work(at):
        share(VmPaths(at), chain, other)
        compact(VmPaths(at))

    for left in map(VmPaths, each_kill(work, place.directory)):
        is_sound(left, before)
        assert content(left, chain.frozen) == shared
        share(left, chain, other)
        assert len(compact(left).files) == 3
        is_sound(left, before)
        assert content(left, chain.frozen) == shared


def share(place, chain, other):
    """Have another directory have the frozen files of ``chain``."""
    for file in chain.frozen:
        (other.directory / f"{place.directory.name}-{file.name}").unlink(missing_ok=True)
        os.link(place.directory / file.name, other.directory / f"{place.directory.name}-{file.name}")


def test_what_a_vm_writes_between_the_record_and_its_switch_is_in_the_disk(place):
    """It still has the file open that the record calls frozen by then."""
    deep(place, 1)
    fd = os.open(files_of(place, read_chain(place))[-1], os.O_RDWR)
    prepare_branch(place)
    os.pwrite(fd, b"late", qcow2.read_extents(fd, place.chain, 0)[0].offset)
    os.close(fd)
    assert content(place)[:4] == b"late"
    tidy(place, 0)
    assert content(place)[:4] == b"late"
