"""Snapshots on disk: whose they are, what is shared, what a kill leaves, and what is refused."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack

import pytest
from msgspec.structs import replace

from atoll import aio, store
from atoll.errors import StoreError, UsageError
from atoll.hypervisor.model import Accelerator, Architecture, Machine, MemoryFile
from atoll.hypervisor.qemu.argv import ram_block
from atoll.hypervisor.qemu.host import QemuHost, cpu_identity
from atoll.paths import Paths, SnapshotPaths
from atoll.sandbox import reviving
from atoll.snapshot import catalog
from atoll.snapshot.manifest import Kind, Manifest
from atoll.snapshot.storing import Memory, known_files, require_fresh, staging, take_held, with_memory
from atoll.snapshot.thawing import require_fit, thaw
from atoll.vm.state import StateError

HOST = QemuHost("/usr/bin/qemu", "id", "7.2.0", sandbox=True)


@pytest.fixture
def home(tmp_path):
    return Paths(data=tmp_path / "data", cache=tmp_path / "cache")


def keep(home, name, machine_id="1", *, kind=Kind.SANDBOX, files=(), content=b"", earlier=()):
    """A snapshot with these files, and RAM of this content."""
    with staging(home, machine_id) as place, ExitStack() as stack:
        for file, data in files:
            (place.directory / file).write_bytes(data)
        manifest = Manifest(
            name=name, kind=kind, machine="box", machine_id=machine_id, created=float(len(name))
        )
        if content:
            images = tuple(memory(stack, data) for data in (b"state", content))
            size = len(content)
            kept = Memory(images=images, size=size, hypervisor="7.2.0", accelerator="tcg", stopped=0.1)
            manifest = with_memory(manifest, place, kept, earlier)
        entries = catalog.entries_of(place.directory, {}, [file for file, _ in files])
        return catalog.seal(home, place, replace(manifest, files=entries))


def memory(stack, data):
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, data)
    return fd


def test_a_name_of_a_sandboxes_snapshot_is_not_taken_for_a_machines_and_the_other_way_round(home):
    machine = keep(home, "same", "m", kind=Kind.MACHINE)
    box = keep(home, "same", "b")
    only = keep(home, "only", "b")
    assert catalog.find(home, "same", kind=Kind.SANDBOX) == box
    assert catalog.find(home, "same", kind=Kind.MACHINE) == machine
    assert catalog.find(home, "same", "m") == machine
    assert catalog.find(home, machine.id[:8], kind=Kind.SANDBOX) == machine
    assert catalog.find(home, "only", "m") == only  # to be told what it is
    assert catalog.find(home, "only", kind=Kind.MACHINE) == only
    for asked in ({}, {"machine_id": "other"}, {"kind": Kind.SANDBOX}):
        with pytest.raises(StoreError) as caught:
            catalog.find(home, "nonsuch", **asked)
        assert caught.value.code == "store.missing"
    with pytest.raises(StoreError, match="several") as caught:
        catalog.find(home, "same")
    assert machine.id in caught.value.hint


def test_a_machine_does_not_go_on_from_a_sandbox_nor_a_sandbox_from_a_machine(home, config):
    machine = keep(home, "mine", "m", kind=Kind.MACHINE)
    box = keep(home, "mine", "b")
    with pytest.raises(StateError) as caught:
        catalog.require_kind(box, Kind.MACHINE)
    assert (caught.value.code, box.id in caught.value.hint) == ("state.foreign", True)
    catalog.require_kind(machine, Kind.MACHINE)
    with pytest.raises(StateError) as caught:
        reviving.launch(replace(config, data_dir=home.data), "box", machine.id)
    assert (caught.value.code, machine.id in caught.value.hint) == ("state.foreign", True)


def test_a_name_is_one_and_fresh(home):
    keep(home, "taken")
    others = catalog.listed(home)
    require_fresh(others, "fresh", "it")
    for name, code in (("taken", "store.already_exists"), ("", "usage.snapshot"), ("a/b", "usage.snapshot")):
        with pytest.raises((StoreError, UsageError)) as caught:
            require_fresh(others, name, "it")
        assert caught.value.code == code


@pytest.fixture
def opened(tmp_path):
    """A file in a directory of its own that this process has open."""
    path = tmp_path / "image" / "root.erofs"
    path.parent.mkdir()
    path.write_bytes(b"old")
    with path.open("rb"):
        yield path


@pytest.mark.parametrize("change", ["nothing", "removed", "replaced", "moved"])
def test_what_a_process_has_open_is_taken_whatever_has_its_name(opened, tmp_path, change):
    target = tmp_path / "target.erofs"
    if change == "removed":
        opened.unlink()
    if change in {"replaced", "moved"}:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / opened.name).write_bytes(b"new")
        opened.parent.rename(tmp_path / "aside")
        (tmp_path / "new").rename(opened.parent)
    if change == "replaced":
        (tmp_path / "aside" / opened.name).unlink()
    take_held(opened, os.getpid(), target)
    assert target.read_bytes() == b"old"
    assert target.stat().st_nlink == (2 if change == "nothing" else 1)


def test_what_no_process_has_open_cannot_be_taken(tmp_path):
    (tmp_path / "root.erofs").write_bytes(b"x")
    with pytest.raises(StoreError) as caught:
        take_held(tmp_path / "root.erofs", os.getpid(), tmp_path / "target")
    assert caught.value.code == "store.missing"
    assert not (tmp_path / "target").exists()


def test_a_file_that_an_earlier_snapshot_has_is_not_read_again(home, tmp_path):
    first = keep(home, "first", files=[("root.erofs", b"x" * 100), ("vm.json", b"{}")])
    names = ["root.erofs"]
    with staging(home, "other") as place:
        for name in names:
            os.link(first.place.directory / name, place.directory / name)
        assert known_files(place, [first], names) == {"root.erofs": first.manifest.files["root.erofs"]}
    with staging(home, "third") as place:
        place.root.write_bytes(b"x" * 100)
        assert known_files(place, [first], names[:1]) == {}


def test_what_is_made_is_left_alone_however_long_it_takes_and_what_a_kill_left_is_removed(home):
    home.snapshots.mkdir(parents=True)
    dead = home.snapshots / ".partial-dead-00000000"
    dead.mkdir()
    removed = home.snapshots / ".removed-dead-00000000"
    removed.mkdir()
    young = home.snapshots / ".partial-young-00000000"
    young.mkdir()
    with staging(home, "alive") as place:
        assert not removed.exists()
        for path in (dead, place.directory):
            os.utime(path, (1, 1))
        catalog.sweep(home)
        assert place.directory.is_dir()
        assert young.is_dir()
    assert os.listdir(home.snapshots) == [young.name]


def test_what_is_being_made_is_told_of_until_it_is_made_or_given_up(home):
    manifest = Manifest(name="new", kind=Kind.SANDBOX, machine="box", machine_id="1", created=1.0)
    assert catalog.begun(home) == []
    with staging(home, "1") as place:
        assert catalog.begun(home) == []
        catalog.begin(place, manifest)
        assert catalog.begun(home) == catalog.begun(home, "1") == [manifest]
        assert catalog.begun(home, "2") == []
        made = catalog.seal(home, place, manifest)
        assert catalog.begun(home) == []
    assert os.listdir(made.place.directory) == ["manifest.json"]
    with staging(home, "1") as place:
        catalog.begin(place, manifest)
        kept = place.directory
    assert catalog.begun(home) == []
    kept.mkdir()  # as one leaves it that is killed
    catalog.begin(SnapshotPaths(kept), manifest)
    assert catalog.begun(home) == []


def test_a_directory_is_locked_by_one_and_free_again_afterwards(tmp_path):
    with store.hold_directory(tmp_path) as first, store.hold_directory(tmp_path) as second:
        assert (first, second) == (True, False)
    with store.hold_directory(tmp_path) as third:
        assert third
    with pytest.raises(StoreError), store.hold_directory(tmp_path / "nonsuch"):
        pass


def test_ram_that_many_begin_with_cannot_be_written_and_a_flipped_byte_is_found(home):
    content = os.urandom(100_000)
    made = keep(home, "box", content=content)
    with ExitStack() as stack:
        files = thaw(made, stack, sealed=True)
        assert os.pread(files.ram, 1 << 20, 0) == content
        assert os.pread(files.state, 100, 0) == b"state"
        assert files.more == -1
        again = os.open(f"/proc/self/fd/{files.ram}", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, again)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"x", 0)
        assert fcntl.fcntl(files.ram, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    pack = next(made.place.directory.glob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.write_bytes(data)
    with ExitStack() as stack, pytest.raises(StoreError) as caught:
        thaw(made, stack)
    assert caught.value.code == "store.corrupt"


def test_a_second_snapshot_has_a_link_to_the_pack_of_the_first(home):
    content = os.urandom(100_000)
    first = keep(home, "first", content=content)
    second = keep(home, "second", content=content, earlier=[first])
    packs = [sorted(one.place.directory.glob("*.pack")) for one in (first, second)]
    assert packs[1][0].samefile(packs[0][0])
    catalog.remove(home, first.id)
    catalog.verify(second)


def test_another_hypervisor_or_cpu_or_a_lost_kernel_does_not_fit(home, tmp_path):
    good = replace(keep(home, "box", content=b"x").manifest, cpu=cpu_identity())
    place = home.snapshot("0" * 16)

    def fit(manifest, **options):
        require_fit(catalog.Snapshot("0" * 16, place, manifest), HOST, hint="do something", **options)

    fit(good)
    for manifest, options, what in (
        (replace(good, hypervisor="9.0"), {}, "QEMU 9.0"),
        (replace(good, cpu="another"), {}, "another CPU"),
        (good, {"lost": [tmp_path / "modules"]}, "modules are gone"),
        (replace(good, memory=1 << 45), {}, "this host has"),
    ):
        with pytest.raises(StateError, match=what) as caught:
            fit(manifest, **options)
        assert (caught.value.code, caught.value.hint) == ("state.mismatch", "do something")


@pytest.mark.parametrize(
    "options",
    [{"cpus": 2}, {"memory": "1G"}, {"cold": True}, {"network": True}, {"accel": "kvm"}, {"template": "py"}],
    ids=str,
)
def test_what_a_snapshot_has_cannot_be_asked_for(options, config):
    with pytest.raises(UsageError) as caught:
        aio.Sandbox(snapshot="mine", config=config, **options)
    assert caught.value.code == "usage.snapshot"


@pytest.mark.parametrize(
    ("architecture", "options", "name"),
    [
        (Architecture.X86_64, {}, "pc.ram"),
        (Architecture.AARCH64, {}, "mach-virt.ram"),
        (Architecture.X86_64, {"ram": MemoryFile(None, shared=False)}, "ram"),
        (Architecture.AARCH64, {"shared_memory": True}, "ram"),
    ],
    ids=str,
)
def test_ram_has_the_name_of_its_backend_or_else_the_boards(tmp_path, architecture, options, name):
    machine = Machine(
        name="box",
        architecture=architecture,
        accelerator=Accelerator.TCG,
        vcpus=1,
        memory=1 << 28,
        kernel=tmp_path,
        initramfs=tmp_path,
        **options,
    )
    assert ram_block(machine) == name
