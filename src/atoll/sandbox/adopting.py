"""Sandboxes' snapshots from elsewhere: their record is looked through, and names nothing of this host."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from atoll import store
from atoll.hypervisor.model import Disk, Machine
from atoll.paths import SnapshotPaths
from atoll.sandbox.snapshots import Record
from atoll.snapshot import thawing, vetting
from atoll.snapshot.manifest import Manifest
from atoll.vm.network.attachment import with_mac

__all__ = ["adopted", "vet"]


def vet(place: SnapshotPaths, manifest: Manifest) -> Machine:
    """See that the record of a snapshot is such as is written of sandboxes; its VM.

    Raises:
        ValueError: what is wrong.
        AtollError: likewise.
        AssertionError: likewise, of the models.
    """
    record = store.read_record(place.vm, Record)
    vetting.check_image(record.image)
    vetting.check_machine(manifest, record.machine)
    return record.machine


def adopted(machine: Machine) -> Machine:
    """A VM from elsewhere, as this host makes it; its disks are put in by whoever has them.

    Raises:
        StateError: ``state.mismatch``: this host is too small, or of another kind.
    """
    thawing.require_host(machine, "use it on a host that is like its own")
    plain = replace(
        machine,
        kernel=Path(),
        initramfs=Path(),
        disks=tuple(Disk(Path(), disk.serial, read_only=True) for disk in machine.disks),
        ram=None,
        more=None,
    )
    return with_mac(plain, machine.mac)
