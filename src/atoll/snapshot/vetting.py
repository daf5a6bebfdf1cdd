"""Whether what a snapshot from elsewhere says is what Atoll says. Pure, but for the headers of disks.

Whoever wrote it may have wanted to read or write this host's files, to run programs on it, or to fill its
memory. So nothing is allowed that is not known: names, sizes, devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.errors import UsageError
from atoll.hypervisor.model import Disk, DiskFormat, Machine
from atoll.hypervisor.qemu.argv import pluggable
from atoll.image import qcow2
from atoll.paths import SnapshotPaths
from atoll.snapshot.archive import LARGEST_RECORD, is_record
from atoll.snapshot.index import Image
from atoll.snapshot.manifest import Kind, Manifest, check_name
from atoll.vm.chain import Chain, new_active
from atoll.vm.network.attachment import MTU

__all__ = [
    "LARGEST",
    "check_image",
    "check_images",
    "check_layers",
    "check_machine",
    "check_manifest",
    "require",
]

#: Bytes that a file, a disk or a guest's memory has at most.
LARGEST = 1 << 46

#: Bytes that the state of devices has at most, beside memory that was plugged in.
_STATE = 256 << 20

#: Up to how many bytes, or how many times what it had, a VM may grow at most: several times what is planned.
_GROWTH, _GROWN = 1 << 40, 16

#: The year 10000.
_END_OF_TIME = 253_402_300_800

_MIB = 1 << 20
_LONGEST = 256
_MOST_VCPUS = 1024
_MOST_SLOTS = 32

_HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LONG_ID = re.compile(r"[0-9a-f]{32}")
_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAC = re.compile(r"02(?::[0-9a-f]{2}){5}")
_CPU = re.compile(r"[A-Za-z0-9_.-]+-(?:x86_64|arm)-cpu")
_CPU_ID = re.compile(r"cpu[0-9]+-[0-9]+-[0-9]+")
_WHERE = {"socket-id", "die-id", "cluster-id", "core-id", "thread-id", "node-id"}

#: Of sandboxes and of machines: serials of disks, and whether they are written.
_DISKS = {
    Kind.SANDBOX: {"root": False, "modules": False, "emulator": False},
    Kind.MACHINE: {"root": False, "modules": False, "emulator": False, "data": True},
}

#: Those that not every VM has.
_OPTIONAL_DISKS = {"modules", "emulator"}


def require(good: object, what: str) -> None:
    """Raise ``ValueError``, with what is wrong, unless ``good``."""
    if not good:
        raise ValueError(what)


def check_image(name: str) -> None:
    """Whether this can be the name of an image. Raises as ``check_manifest``."""
    require(name.isprintable() and len(name) <= _LONGEST, "its image")


def check_manifest(manifest: Manifest) -> None:
    """Raises ``ValueError``: what is wrong with it."""
    try:
        check_name(manifest.name)
    except UsageError as error:
        raise ValueError(error.message) from error
    require(manifest.schema == Manifest.SCHEMA, f"schema {manifest.schema}")
    require(_HOST_NAME.fullmatch(manifest.machine), "what it is of has no proper name")
    require(_LONG_ID.fullmatch(manifest.machine_id), "what it is of has no proper id")
    require(not manifest.parent or _ID.fullmatch(manifest.parent), "its parent has no proper id")
    require(0 <= manifest.created < _END_OF_TIME and 0 <= manifest.stopped < _END_OF_TIME, "its times")
    require(manifest.accelerator in {"", "kvm", "tcg"}, "its accelerator")
    require(0 <= manifest.memory <= LARGEST and 0 <= manifest.size <= LARGEST, "its sizes")
    require(_SHA256.fullmatch(manifest.packs) if manifest.ram else not manifest.packs, "its packs")
    require(manifest.memory if manifest.ram else not manifest.devices, "its memory")
    require(len(manifest.devices) <= _MOST_VCPUS, "its devices")
    for device in manifest.devices:
        _check_vcpu(device)
    if manifest.kind is Kind.MACHINE:
        # Its own words: the names become those of files.
        Chain(files=(*manifest.layers, new_active()))
        require(manifest.layers and manifest.size, "it has no disk")
    else:
        require(manifest.ram and not manifest.layers, "it has no memory")
    _check_files(manifest)


def _check_vcpu(device: Mapping[str, Any]) -> None:
    """Only vCPUs are plugged in by a record: any other device could be one of this host's."""
    rest = {name: value for name, value in device.items() if name not in {"driver", "id"}}
    driver, name = device.get("driver"), device.get("id")
    good = (
        isinstance(driver, str)
        and _CPU.fullmatch(driver)
        and isinstance(name, str)
        and _CPU_ID.fullmatch(name)
        and rest.keys() <= _WHERE
        and all(type(value) is int and 0 <= value < _MOST_VCPUS for value in rest.values())
    )
    require(good, "a device in it is no vCPU")


def _check_files(manifest: Manifest) -> None:
    names = set(manifest.files)
    if manifest.kind is Kind.MACHINE:
        wanted = {"root.erofs", "image.json", "machine.json", *(layer.name for layer in manifest.layers)}
        wanted |= {"boot.json"} if manifest.ram else set()
        require(names == wanted, "its files")
    else:
        known = {"vm.json", *(f"{serial}.erofs" for serial in _DISKS[Kind.SANDBOX])}
        required = known - {f"{serial}.erofs" for serial in _OPTIONAL_DISKS}
        require(required <= names <= known, "its files")
    for name, entry in manifest.files.items():
        most = LARGEST_RECORD if is_record(name) else LARGEST
        require(0 <= entry.size <= most and _SHA256.fullmatch(entry.digest), f"what it says of {name}")


def check_images(manifest: Manifest, machine: Machine, images: Sequence[Image]) -> None:
    """Whether what is stored of a VM's memory is as large as that. Raises as ``check_manifest``."""
    most = 3 if manifest.kind is Kind.MACHINE else 2
    require(2 <= len(images) <= most, "it has no memory")
    state, ram, *more = images
    require(ram.size == machine.memory, "its memory is not that of its VM")
    require(state.size <= pluggable(machine) + _STATE, "the state of its devices is too large")
    require(all(image.size <= machine.max_memory for image in more), "its memory is not that of its VM")


def check_machine(manifest: Manifest, machine: Machine) -> None:
    """Whether a VM can be one that Atoll has made for a sandbox or a machine. Raises as ``check_manifest``.

    What it says of this host's files is not looked at: it is not to be used.
    """
    resident = manifest.kind is Kind.MACHINE
    require(_HOST_NAME.fullmatch(machine.name), "its VM has no proper name")
    require(machine.memory % _MIB == 0 and 0 < machine.memory <= LARGEST, "the memory of its VM")
    require(machine.memory <= manifest.memory, "the memory of its VM")
    # QEMU keeps records of memory that may come: a small part of it, but of that.
    require(0 <= machine.max_memory <= max(_GROWTH, _GROWN * manifest.memory), "the memory of its VM")
    require(0 < machine.vcpus <= _MOST_VCPUS and 0 <= machine.max_vcpus <= _MOST_VCPUS, "the vCPUs of its VM")
    require(0 <= machine.slots <= (_MOST_SLOTS if resident else 0), "the slots of its VM")
    # A sandbox that has begun with a template still names that.
    private = machine.ram is None or not (resident or machine.ram.shared)
    require(private and machine.more is None, "where the memory of its VM lies")
    require({machine.consoles, machine.shared_memory, machine.balloon} == {resident}, "the devices of its VM")
    require(all(item.isprintable() for item in machine.cmdline), "the command line of its kernel")
    require(not machine.mac or _MAC.fullmatch(machine.mac), "the network of its VM")
    require(machine.network is None or machine.network.mac, "the network of its VM")
    require(
        machine.card is None or (machine.mac and 1280 <= machine.card.mtu <= MTU), "the network of its VM"
    )
    known = _DISKS[manifest.kind]
    serials = [disk.serial for disk in machine.disks]
    require(len(set(serials)) == len(serials) and set(serials) <= known.keys(), "the disks of its VM")
    require(known.keys() - _OPTIONAL_DISKS <= set(serials), "the disks of its VM")
    require(all(_is_plain(disk, written=known[disk.serial]) for disk in machine.disks), "the disks of its VM")
    if not resident:
        files = {f"{serial}.erofs" for serial in serials}
        require(files == manifest.files.keys() - {"vm.json"}, "the disks of its VM")


def _is_plain(disk: Disk, *, written: bool) -> bool:
    """What is only read is a raw file: of any other QEMU would believe what it says of further files."""
    raw = disk.format is DiskFormat.RAW and not disk.backing
    return disk.read_only is not written and (written or raw)


def check_layers(manifest: Manifest, place: SnapshotPaths) -> None:
    """Whether the files of a disk lie over one another as the manifest says.

    Raises:
        ValueError: as ``check_manifest``.
        ImageError: ``image.disk``.
        OSError: a file cannot be read.
    """
    size = 0
    for below, layer in zip((None, *manifest.layers), manifest.layers, strict=False):
        path = place.directory / layer.name
        if below is None:
            size = path.stat().st_size
        else:
            size = qcow2.require_plain(path, below.name, below.format).size
    require(size == manifest.size, "its disk has another size")
