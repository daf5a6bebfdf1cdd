"""Snapshots of machines: what was written down is stored."""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.events import Emit, ignore, task
from atoll.image.manifest import ImageManifest
from atoll.machine.creation import take_root
from atoll.machine.forking import as_captured, opened
from atoll.machine.registry import Named
from atoll.paths import Paths, SnapshotPaths, VmPaths
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Kind, Manifest
from atoll.snapshot.storing import Memory, Wish, known_files, require_fresh, staging, with_memory
from atoll.vm.bootplan import BootPlan
from atoll.vm.branching import link_layers
from atoll.vm.chain import Layer
from atoll.vm.messages import Captured

__all__ = ["Disk", "base_of", "make", "memory_of", "note_base", "require_unnamed"]


class Disk(msgspec.Struct, frozen=True):
    """A machine's disk at one instant: files of its directory, the lowest first, and its size in bytes."""

    layers: tuple[Layer, ...]
    size: int


class _Base(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot from which a machine has gone on."""

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    id: str


def default_name(paths: Paths, machine: Named, now: float) -> str:
    """A name for a snapshot that was given none: when it was made, local time; a number tells several."""
    said = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    every = catalog.listed(paths, machine.spec.id)
    taken = {one.manifest.name for one in every if one.manifest is not None}
    names = (f"{said}-{number}" if number > 1 else said for number in itertools.count(1))
    return next(name for name in names if name not in taken)


def require_unnamed(paths: Paths, machine: Named, name: str) -> None:
    """See that no snapshot of the machine has that name. Raises as ``require_fresh``."""
    require_fresh(catalog.listed(paths, machine.spec.id), name, machine.name)


def make(
    paths: Paths, machine: Named, wish: Wish, disk: Disk, captured: Captured | None, emit: Emit = ignore
) -> Snapshot:
    """Store what was written down; the caller keeps everybody else from the machine.

    Args:
        paths: where snapshots are.
        machine: whose it is.
        wish: what its user says of it.
        disk: of the machine, then.
        captured: the rest, held open by the supervisor; None for the disk alone.
        emit: told of progress.

    Raises:
        StoreError: ``store.already_exists``: another one has its name; or it cannot be written. Nothing is
            left of it.
    """
    earlier = [one for one in catalog.listed(paths, machine.spec.id) if one.manifest is not None]
    with (
        task(emit, "snapshot", f"Writing snapshot {wish.name} of {machine.name}"),
        staging(paths, machine.spec.id) as place,
        ExitStack() as stack,
    ):
        manifest = Manifest(
            name=wish.name,
            kind=Kind.MACHINE,
            machine=machine.name,
            machine_id=machine.spec.id,
            parent=base_of(machine.place),
            created=time.time(),
            description=wish.description,
            labels=wish.labels,
            layers=disk.layers,
            size=disk.size,
        )
        catalog.begin(place, manifest)
        names = _gather(machine, place, disk, captured)
        if captured is not None:
            manifest = with_memory(manifest, place, memory_of(stack, place, captured), earlier)
        same = [place.root.name, *(layer.name for layer in disk.layers)]
        known = known_files(place, earlier, same)
        files = catalog.entries_of(place.directory, known, names)
        with catalog.naming(paths):  # one that is imported meanwhile may have the name by now
            require_unnamed(paths, machine, wish.name)
            made = catalog.seal(paths, place, msgspec.structs.replace(manifest, files=files))
    try:
        note_base(machine.place, made.id)
    except StoreError:
        catalog.remove(paths, made.id)
        raise
    return made


def _gather(machine: Named, place: SnapshotPaths, disk: Disk, captured: Captured | None) -> list[str]:
    """Put all but the RAM into a snapshot's directory; the names of what is in it."""
    take_root(machine.place.root, place.root)
    store.write_record(place.image, store.read_record(machine.place.image, ImageManifest))
    store.write_record(place.spec, machine.spec)
    link_layers(machine.place, disk.layers, VmPaths(place.directory))
    names = [place.root.name, place.image.name, place.spec.name, *(layer.name for layer in disk.layers)]
    if captured is None:
        return names
    store.write_record(place.plan, as_captured(store.read_record(machine.place.boot, BootPlan), captured))
    return [*names, place.plan.name]


def memory_of(stack: ExitStack, place: SnapshotPaths, captured: Captured) -> Memory:
    """What the supervisor holds, opened here."""
    files = stack.enter_context(opened(captured.files, copy=False))
    plan = store.read_record(place.plan, BootPlan)
    return Memory(
        images=tuple(number for number in (files.state, files.ram, files.more) if number >= 0),
        size=captured.memory,
        hypervisor=plan.host.version if plan.host is not None else "",
        accelerator=plan.machine.accelerator,
        devices=files.devices,
        stopped=captured.stopped,
    )


def base_of(place: VmPaths) -> str:
    """The id of the snapshot that a machine last made or went back to; empty if there is none."""
    try:
        return store.read_record(place.base, _Base).id
    except StoreError as error:
        if error.code != "store.missing":
            raise
        return ""


def note_base(place: VmPaths, name: str) -> None:
    """Record it; with an empty name, that there is none."""
    if not name:
        place.base.unlink(missing_ok=True)
        return
    store.write_record(place.base, _Base(id=name), parents=False)
