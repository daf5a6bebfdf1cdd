"""Snapshots of sandboxes: a running VM is copied, taken apart and stored."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import msgspec

from atoll import store
from atoll.errors import StoreError, UsageError
from atoll.events import Emit, task
from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.argv import RAM_ID, ram_block
from atoll.hypervisor.qemu.backend import QemuHypervisor
from atoll.hypervisor.qemu.unpacking import put, unpack
from atoll.image.oci.runconfig import RunConfig
from atoll.paths import Paths, SnapshotPaths
from atoll.patience import in_thread
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Kind, Manifest
from atoll.snapshot.storing import (
    Memory,
    Wish,
    known_files,
    require_fresh,
    staging,
    take_held,
    with_memory,
)
from atoll.vm.capturing import report
from atoll.vm.life import Vm

__all__ = ["Record", "Subject", "make"]

R = TypeVar("R")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The VM of a sandbox.

    Attributes:
        schema: version of this record.
        machine: as its hypervisor was asked for it; its disks lie beside this record.
        image: what its root is.
        lan: the network of Atoll that it was on; empty for that of sandboxes.
        egress: lines of the policy that it was held to.
        run: how its image wants to be run; None if that says nothing of it.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    machine: Machine
    image: str
    lan: str = ""
    egress: tuple[str, ...] = ()
    run: RunConfig | None = None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A sandbox of which snapshots are made.

    Attributes:
        id: its own; no other sandbox has it.
        image: what its root is.
        lan: the network of Atoll that it is on; empty for that of sandboxes.
        run: how its image wants to be run.
    """

    id: str
    image: str
    lan: str = ""
    run: RunConfig | None = None


class _Copied(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that was copied.

    Attributes:
        name: of the VM.
        machine: as its hypervisor was asked for it.
        pid: of its hypervisor, which has its disks open.
        parent: id of the snapshot from which it had gone on.
        size: bytes of memory that it had.
        version: of its hypervisor.
        stopped: seconds for which it stood still.
        egress: lines of the policy that it was held to.
    """

    name: str
    machine: Machine
    pid: int
    parent: str
    size: int
    version: str
    stopped: float
    egress: tuple[str, ...]


async def make(
    paths: Paths, vm: Vm, subject: Subject, wish: Wish, emit: Emit, *, live: bool = False
) -> Snapshot:
    """Keep what a sandbox is. It stands still while its memory is copied, and goes on while that is stored.

    Args:
        paths: where snapshots are.
        vm: of the sandbox.
        subject: the sandbox; the caller makes no two snapshots of it at once.
        wish: what its user says of the snapshot.
        emit: told of the copy and of progress.
        live: it goes on while its memory is copied, if it can.

    Raises:
        UsageError: ``usage.snapshot``: it writes to a disk; the name is none.
        StoreError: ``store.already_exists``: another snapshot of a sandbox has that name; ``store.full``.
        BootError: stage ``copy``: it cannot be copied.
        StreamError: QEMU wrote what is not known here. In all cases nothing is left.
    """
    _refuse_disks(vm.machine)
    await asyncio.to_thread(_require_fresh, paths, wish.name)
    size = (await vm.freezable.plugging.memory()).now
    fd = os.memfd_create("atoll-copy", os.MFD_CLOEXEC)
    try:
        stopped = await vm.freezable.copy(fd, leave_out_shared=True, live=live)
        report(stopped, vm.name, emit)
        copied = _Copied(
            name=vm.name,
            machine=vm.machine,
            pid=vm.pid,
            parent=vm.clone.snapshot if vm.clone is not None else "",
            size=size,
            version=cast(QemuHypervisor, vm.hypervisor).host.version,
            stopped=stopped.seconds,
            egress=vm.attachment.egress if vm.attachment is not None else (),
        )
        return await in_thread(lambda ended: _store(paths, subject, wish, copied, fd, emit, ended))
    finally:
        os.close(fd)


def _refuse_disks(machine: Machine) -> None:
    for disk in machine.disks:
        if not disk.read_only:
            message = f"{machine.name} writes to a disk"
            hint = "snapshots are of machines, and of sandboxes whose disk is in their memory"
            raise UsageError(message, code="snapshot", hint=hint)


def _require_fresh(paths: Paths, name: str) -> None:
    require_fresh(catalog.of_kind(catalog.listed(paths), Kind.SANDBOX), name, "another sandbox, or this one,")


def _store(
    paths: Paths,
    subject: Subject,
    wish: Wish,
    copied: _Copied,
    fd: int,
    emit: Emit,
    unwanted: threading.Event,
) -> Snapshot:
    """Store what was copied to ``fd``, which is empty then."""
    earlier = _earlier(paths, subject, copied)
    catalog.sweep(paths)
    with (
        task(emit, "snapshot", f"Writing snapshot {wish.name} of {copied.name}"),
        staging(paths, subject.id) as place,
        ExitStack() as stack,
    ):
        manifest = Manifest(
            name=wish.name,
            kind=Kind.SANDBOX,
            machine=copied.name,
            machine_id=subject.id,
            parent=copied.parent,
            created=time.time(),
            description=wish.description,
            labels=wish.labels,
        )
        catalog.begin(place, manifest)
        names = _gather(place, subject, copied)
        memory = Memory(
            images=_taken_apart(stack, fd, copied.machine),
            size=copied.size,
            hypervisor=copied.version,
            accelerator=copied.machine.accelerator,
            stopped=copied.stopped,
        )
        manifest = with_memory(manifest, place, memory, earlier)
        files = catalog.entries_of(place.directory, known_files(place, earlier, names), names)
        with catalog.naming(paths):
            _require_fresh(paths, wish.name)
            if unwanted.is_set():
                raise StoreError(f"snapshot {wish.name} is not wanted any more", code="missing")
            return catalog.seal(paths, place, msgspec.structs.replace(manifest, files=files))


def _earlier(paths: Paths, subject: Subject, copied: _Copied) -> list[Snapshot]:
    """What has much in common with the new one, the oldest first."""
    every = catalog.of_kind(catalog.listed(paths), Kind.SANDBOX)
    own = [one for one in every if one.manifest is not None and one.manifest.machine_id == subject.id]
    return [*(one for one in every if one.id == copied.parent), *own]


def _gather(place: SnapshotPaths, subject: Subject, copied: _Copied) -> Sequence[str]:
    """Put all but the memory into a snapshot's directory; the names of what is in it."""
    disks = [place.disk(disk.serial) for disk in copied.machine.disks]
    for disk, target in zip(copied.machine.disks, disks, strict=True):
        take_held(disk.path, copied.pid, target)
    record = Record(
        machine=copied.machine,
        image=subject.image,
        lan=subject.lan,
        egress=copied.egress,
        run=subject.run,
    )
    store.write_record(place.vm, record)
    return [place.vm.name, *(disk.name for disk in disks)]


def _taken_apart(stack: ExitStack, fd: int, machine: Machine) -> tuple[int, int]:
    """Files in memory, closed with ``stack``, with the devices and the RAM that are in a migration stream.

    The stream's file is empty then: its memory is given back before more is used.
    """
    state, ram = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("atoll-state", "atoll-ram"))
    stack.callback(os.close, state)
    stack.callback(os.close, ram)

    with store.refusing(Path(f"/proc/self/fd/{ram}")):
        os.truncate(ram, machine.memory)
        block = ram_block(machine)
        put(state, memoryview(unpack(fd, {block: ram}, called={block: RAM_ID})))
    return state, ram
