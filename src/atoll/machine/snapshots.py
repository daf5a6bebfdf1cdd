"""Snapshots of machines: what was written down is stored."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.events import Emit, ignore, task
from atoll.hypervisor.qemu.host import cpu_identity
from atoll.image.catalog import ImageManifest
from atoll.machine.creation import take_root
from atoll.machine.forking import as_captured
from atoll.machine.registry import Named
from atoll.paths import Paths, SnapshotPaths, VmPaths
from atoll.snapshot import catalog, packs
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Entry, Kind, Manifest, check_name
from atoll.vm.bootplan import BootPlan
from atoll.vm.branching import link_layers
from atoll.vm.chain import Layer
from atoll.vm.messages import Captured, Files

__all__ = ["Disk", "Wish", "base_of", "default_name", "make", "note_base", "require_fresh"]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a user says of a snapshot."""

    name: str
    description: str = ""
    labels: dict[str, str] = {}


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


def require_fresh(paths: Paths, machine: Named, name: str) -> None:
    """See that no snapshot of the machine has that name. Raises ``StoreError``: ``store.already_exists``."""
    check_name(name)
    for one in catalog.listed(paths, machine.spec.id):
        if one.manifest is not None and one.manifest.name == name:
            hint = "choose another name, or remove it with `atoll snapshot rm`"
            raise StoreError(
                f"{machine.name} has a snapshot {name} already", code="already_exists", hint=hint
            )


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
        StoreError: it cannot be written; nothing is left of it.
    """
    earlier = [one for one in catalog.listed(paths, machine.spec.id) if one.manifest is not None]
    with (
        task(emit, "snapshot", f"Writing snapshot {wish.name} of {machine.name}"),
        catalog.staging(paths, machine.spec.id) as place,
    ):
        names = _gather(machine, place, disk, captured)
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
        if captured is not None:
            manifest = _with_memory(manifest, place, captured, earlier)
        files = catalog.entries_of(place.directory, _known(earlier), names)
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


def _with_memory(
    manifest: Manifest, place: SnapshotPaths, captured: Captured, earlier: list[Snapshot]
) -> Manifest:
    """Store the RAM and the devices' state."""
    plan = store.read_record(place.plan, BootPlan)
    return msgspec.structs.replace(
        manifest,
        ram=True,
        hypervisor=plan.host.version if plan.host is not None else "",
        cpu=cpu_identity(),
        accelerator=plan.machine.accelerator,
        memory=captured.memory,
        devices=captured.files.devices,
        packs=_pack(place, captured.files, earlier),
        stopped=captured.stopped,
    )


def _pack(place: SnapshotPaths, files: Files, earlier: list[Snapshot]) -> str:
    """Store images; the digest of their index. What earlier snapshots have is stored once."""
    with ExitStack() as stack, packs.Writer(place.directory, _indexes(earlier)) as writer:
        for number in (files.state, files.ram, files.more):
            if number >= 0:
                fd = os.open(f"/proc/{files.pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                writer.add(fd, os.fstat(fd).st_size)
        return writer.finish().digest


def _indexes(earlier: list[Snapshot]) -> Iterator[packs.Index]:
    """Of those that can be read, the newest first: what is damaged is stored anew."""
    for one in reversed(earlier):
        if one.manifest is not None and one.manifest.packs:
            with contextlib.suppress(StoreError):
                yield packs.load(one.place.directory, one.manifest.packs)


def _known(earlier: list[Snapshot]) -> dict[str, Entry]:
    """What earlier snapshots say of frozen files, whose names no other files ever have."""
    return {
        layer.name: one.manifest.files[layer.name]
        for one in earlier
        if one.manifest is not None
        for layer in one.manifest.layers
    }


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
