"""Snapshots of machines and sandboxes that no VM has made, to be moved about."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace

from atoll import store
from atoll.hypervisor.model import (
    Accelerator,
    Architecture,
    Disk,
    DiskFile,
    DiskFormat,
    Machine,
    MemoryFile,
    UserNetwork,
)
from atoll.hypervisor.qemu.host import QemuHost
from atoll.image import qcow2
from atoll.image.manifest import ImageManifest
from atoll.machine.spec import MachineSpec
from atoll.sandbox.snapshots import Record
from atoll.snapshot import archive, catalog
from atoll.snapshot.manifest import Kind, Manifest
from atoll.snapshot.storing import Memory, staging, with_memory
from atoll.vm.bootplan import BootPlan, Setup, Share
from atoll.vm.chain import Layer

MIB = 1 << 20
ID = "0123456789abcdef" * 2
KEY = "0" * 20
LAYERS = (
    Layer("layer-0000000000000001.raw", DiskFormat.RAW),
    Layer("layer-0000000000000002.qcow2", DiskFormat.QCOW2),
)
SIZE = 4 * MIB
IMAGE = ImageManifest(
    name="debian:trixie",
    architecture="x86_64",
    distribution="debian",
    suite="trixie",
    digest="",
    size=1,
    created=1.0,
)
KERNELS = Path("/elsewhere/cache/kernels") / KEY


def machine_of(kind: Kind, **changes) -> Machine:
    """A VM as a plan has it."""
    resident = kind is Kind.MACHINE
    disks = [
        Disk(Path("/elsewhere/root.erofs"), "root", read_only=True),
        Disk(KERNELS / "modules.erofs", "modules", read_only=True),
    ]
    if resident:
        below = DiskFile(Path("/elsewhere") / LAYERS[0].name, DiskFormat.RAW)
        disks.append(Disk(Path("/elsewhere/active.qcow2"), "data", DiskFormat.QCOW2, backing=(below,)))
    made = Machine(
        name="dev" if resident else "sandbox-0",
        architecture=Architecture.X86_64,
        accelerator=Accelerator.TCG,
        vcpus=1,
        memory=MIB,
        kernel=KERNELS / "vmlinux",
        initramfs=KERNELS / "initramfs",
        cmdline=("console=ttyS0", "atoll.root=root"),
        disks=tuple(disks),
        consoles=resident,
        shared_memory=resident,
        balloon=resident,
        slots=4 if resident else 0,
        ram=None if resident else MemoryFile(Path("/elsewhere/templates/ram"), shared=False),
        network=UserNetwork("02:00:00:00:00:01") if resident else None,
    )
    return replace(made, **changes)


def spec_of(**changes) -> MachineSpec:
    """What the machine was asked for."""
    share = Share("/etc", "/mnt/etc")
    made = MachineSpec(
        id=ID, image="debian", created=1.0, disk=SIZE, shares=(share,), kernel="/elsewhere/kernel"
    )
    return replace(made, **changes)


def plan_of(**changes) -> BootPlan:
    """What was run of the machine."""
    host = QemuHost("/elsewhere/qemu", "id", "7.2.0", sandbox=False)
    made = BootPlan(
        machine=machine_of(Kind.MACHINE),
        host=host,
        setup=Setup(shares=(Share("/etc", "/mnt/etc"),)),
        disk=SIZE,
    )
    return replace(made, **changes)


def write_disk(directory: Path, *, backing: str = LAYERS[0].name) -> None:
    """Two layers, the lower one with holes."""
    with (directory / LAYERS[0].name).open("wb") as file:
        file.truncate(SIZE)
        file.write(b"superblock" * 10)
        file.seek(3 * MIB + 5000)
        file.write(os.urandom(3000))
    qcow2.create(directory / LAYERS[1].name, SIZE, backing, "raw")


def keep(
    paths,
    kind=Kind.MACHINE,
    *,
    name="mine",
    ram=b"r" * 20_000,
    plan=None,
    spec=None,
    disk=write_disk,
    vm=None,
    **said,
):
    """A snapshot; what is given takes the place of what is right."""
    resident = kind is Kind.MACHINE
    with staging(paths, ID) as place, ExitStack() as stack:
        place.root.write_bytes(os.urandom(MIB + 77))
        files = [place.root.name]
        if resident:
            store.write_record(place.spec, spec or spec_of())
            store.write_record(place.image, IMAGE)
            disk(place.directory)
            files += [place.spec.name, place.image.name, *(layer.name for layer in LAYERS)]
            if ram:
                store.write_record(place.plan, plan or plan_of())
                files.append(place.plan.name)
        else:
            place.disk("modules").write_bytes(b"modules")
            store.write_record(place.vm, Record(machine=vm or machine_of(kind), image="debian"))
            files += [place.vm.name, place.disk("modules").name]
        manifest = Manifest(
            name=name,
            kind=kind,
            machine="dev" if resident else "sandbox-0",
            machine_id=ID,
            created=1.0,
            layers=LAYERS if resident else (),
            size=SIZE if resident else 0,
        )
        if ram:
            images = tuple(memory(stack, data, size) for data, size in ((b"state", 5), (ram, MIB)))
            kept = Memory(images=images, size=MIB, hypervisor="7.2.0", accelerator="tcg", stopped=0.1)
            manifest = with_memory(manifest, place, kept, ())
        entries = catalog.entries_of(place.directory, {}, files)
        return catalog.seal(paths, place, replace(manifest, files=entries, **said))


def memory(stack: ExitStack, data: bytes, size: int) -> int:
    """A file in memory."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.truncate(fd, size)
    os.pwrite(fd, data, 0)
    return fd


def members(data: bytes) -> list[tuple[str, bytes]]:
    """What a tar holds."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]


def packed(parts: list[tuple[str, bytes]]) -> bytes:
    """An archive of these members, with a sum that is right."""
    import hashlib

    body = b"".join(
        archive.member(name, len(data)) + data + bytes(archive.padding(len(data)))
        for name, data in parts
        if name != archive.SUM
    )
    total = hashlib.sha256(body).hexdigest().encode() + b"\n"
    return (
        body
        + archive.member(archive.SUM, len(total))
        + total
        + bytes(archive.padding(len(total)))
        + archive.END
    )
