"""A VM in which the disks of two snapshots of machines can be looked at.

A disk's file system was written by a guest, and is never mounted on the host. Its journal is replayed when it
is mounted, into an overlay that goes with the VM: the snapshots' own files are only read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec.structs import replace

from atoll import runtime, store
from atoll.config import Config
from atoll.errors import StoreError, UsageError
from atoll.events import Emit, ignore
from atoll.hypervisor.model import Disk
from atoll.image import qcow2
from atoll.image.extents import Extent
from atoll.paths import VmPaths
from atoll.snapshot import storing
from atoll.snapshot.catalog import Snapshot, manifest_of
from atoll.vm.chain import Chain, disk_of, new_active
from atoll.vm.plan import plan
from atoll.vm.spawning import Spawned

__all__ = ["changed_runs", "require_disk", "same_disk", "serials", "spawn_beside", "undisturbed"]

_DATA, _ROOT = ("data0", "data1"), ("root0", "root1")

#: The name of the template that it starts from.
_TEMPLATE = "compare"

#: Bytes of memory that the VM has.
_MEMORY = 256 << 20


def require_disk(snapshot: Snapshot) -> None:
    """See that a snapshot of a machine has a disk. Raises ``UsageError``: ``usage.snapshot``."""
    manifest = manifest_of(snapshot)
    if not manifest.layers:
        hint = "only machines with a real guest have one"
        raise UsageError(f"snapshot {manifest.name} has no disk", code="snapshot", hint=hint)


@contextmanager
def undisturbed(*snapshots: Snapshot) -> Iterator[None]:
    """Have nobody change the disks of snapshots, also if these are removed meanwhile.

    Raises:
        StoreError: ``store.missing``: one was removed.
    """
    with ExitStack() as stack:
        for snapshot in snapshots:
            manifest = manifest_of(snapshot)
            for layer in manifest.layers:
                try:
                    fd = store.read_undisturbed(snapshot.place.directory / layer.name)
                except FileNotFoundError as error:
                    hint = (
                        "`atoll snapshot ls` lists those that are here, `atoll snapshot verify` looks at them"
                    )
                    message = f"snapshot {manifest.name} was removed, or has lost {layer.name}"
                    raise StoreError(message, code="missing", hint=hint) from error
                stack.callback(os.close, fd)
        yield


def same_disk(one: Snapshot, other: Snapshot) -> bool:
    """Whether nothing was written between two snapshots."""
    count = _common(one, other)
    return count == len(manifest_of(one).layers) == len(manifest_of(other).layers)


def _common(one: Snapshot, other: Snapshot) -> int:
    """Of how many files, from the lowest on, both disks are made."""
    first, second = manifest_of(one), manifest_of(other)
    count = 0
    for layer, opposite in zip(first.layers, second.layers, strict=False):
        if layer != opposite or first.files.get(layer.name) != second.files.get(layer.name):
            break
        count += 1
    return count


def changed_runs(one: Snapshot, other: Snapshot) -> list[Extent] | None:
    """In which runs of their disks two snapshots may differ; None if the disks have nothing in common.

    Raises:
        ImageError: ``image.disk``: an overlay is damaged.
        OSError: one cannot be read.
    """
    count = _common(one, other)
    if count == 0:
        return None
    found: list[Extent] = []
    for snapshot in (one, other):
        for layer in manifest_of(snapshot).layers[count:]:
            path = snapshot.place.directory / layer.name
            with path.open("rb") as file:
                found += qcow2.read_extents(file.fileno(), path, 0)
    return found


def serials(*, shared: bool) -> tuple[tuple[str, str], tuple[str, str]]:
    """The serials of each snapshot's disk and root in the VM; ``shared``: both have the same root."""
    return (_DATA[0], _ROOT[0]), (_DATA[1], _ROOT[0 if shared else 1])


def spawn_beside(
    config: Config, name: str, one: Snapshot, other: Snapshot, *, emit: Emit = ignore
) -> Spawned:
    """Spawn a VM that stays in its initramfs and has the disks of two snapshots.

    Args:
        config: where snapshots are.
        name: of the VM.
        one: a snapshot of a machine, with a disk.
        other: likewise.
        emit: told of the start.

    Raises:
        StoreError: ``store.full``: nothing can be written beside the snapshots.
        AtollError: as ``runtime.found``; ``BootError`` with stage ``spawn``.
    """
    base = runtime.found(replace(config, cpus=1, memory=_MEMORY), emit=emit)
    machine = plan(name, replace(base.files, root=None, modules=None), base.shape)
    count = _common(one, other)
    with ExitStack() as stack:
        place = VmPaths(stack.enter_context(storing.staging(config.paths, name)).directory)
        disks = (
            _root(one, 0),
            _root(other, 1),
            _overlay(place, one, 0),
            _overlay(place, other, 1, common=[one.place.directory] * count),
        )
        spawned = runtime.spawn_held(config, base, replace(machine, disks=disks), _TEMPLATE, emit=emit)
        return replace(spawned, release=stack.pop_all().close)


def _root(snapshot: Snapshot, number: int) -> Disk:
    return Disk(snapshot.place.root, _ROOT[number], read_only=True)


def _overlay(place: VmPaths, snapshot: Snapshot, number: int, *, common: list[Path] | None = None) -> Disk:
    """A snapshot's disk, which may be written; files that are in ``common`` are taken from there."""
    manifest = manifest_of(snapshot)
    below = manifest.layers
    active = new_active()
    last = below[-1]
    qcow2.create(place.directory / active.name, manifest.size, last.name, last.format)
    disk = disk_of(place, Chain(files=(*below, active)))
    directories = [*(common or ()), *([snapshot.place.directory] * len(below))]
    return replace(
        disk,
        serial=_DATA[number],
        backing=tuple(
            replace(file, path=directory / os.path.basename(file.path))
            for file, directory in zip(disk.backing, directories, strict=False)
        ),
    )
