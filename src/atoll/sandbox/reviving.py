"""Sandboxes that go on from a snapshot of one.

Their RAM is one file in memory, which this process fills once and which all of them map privately: it is
kept as long as one of them is there. Nobody can write to it, nor punch holes into it
(docs/explanation/templates.md).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import msgspec
from msgspec.structs import replace

from atoll import runtime, store
from atoll.config import Config
from atoll.events import Emit, ignore
from atoll.hypervisor.model import Machine, MemoryFile
from atoll.hypervisor.qemu.backend import QemuHypervisor
from atoll.hypervisor.qemu.host import inspect_host
from atoll.paths import SnapshotPaths
from atoll.sandbox import adopting, warm
from atoll.sandbox.snapshots import Record
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Kind
from atoll.snapshot.thawing import Thawed, require_fit, thaw
from atoll.vm.network.attachment import SANDBOXES
from atoll.vm.spawning import Clone, Spawned, spawn_clone

__all__ = ["Revived", "launch"]


class Revived(msgspec.Struct, frozen=True):
    """A VM that goes on from a snapshot, and the name of its image."""

    spawned: Spawned
    image: str


def launch(
    config: Config,
    name: str,
    reference: str,
    *,
    lan: str = "",
    same: bool = False,
    egress: tuple[str, ...] | None = None,
    emit: Emit = ignore,
) -> Revived:
    """Spawn a VM that goes on where a sandbox was written down. All that it begins with is verified.

    Args:
        config: where snapshots are.
        name: of the VM.
        reference: name or id of the snapshot.
        lan: the network of Atoll that it is on; by default that where the sandbox was.
        same: it stays who it was, for somebody to look at its files.
        egress: lines of the policy that it is held to; None for those that it had.
        emit: told of the start.

    Raises:
        StoreError: ``store.missing``: there is none; ``store.corrupt``: it was changed; ``store.full``: there
            is no memory for it.
        StateError: ``state.foreign``: it is of a machine; ``state.mismatch``: it was made with another QEMU,
            or on another CPU.
        UsageError: ``usage.network``, ``usage.egress``: it has no card for a network of Atoll.
        NetworkError: ``network.unknown``: the network where it was is there no more.
        BootError: stage ``spawn``.
    """
    found = catalog.find(config.paths, reference, kind=Kind.SANDBOX)
    catalog.require_kind(found, Kind.SANDBOX)
    record = store.read_record(found.place.vm, Record)
    host = inspect_host(record.machine.architecture, config.cache_dir)
    require_fit(found, host, hint="make it anew with `Sandbox.snapshot`")
    catalog.check(found)
    original = adopting.adopted(record.machine) if found.imported else record.machine
    warm.require_card(original, lan, f"the snapshot {reference}")
    if not lan and not found.imported and not same:
        _, lan = runtime.named_network(config, record.lan or None)
    with ExitStack() as stack:
        files = _hold(found, stack)
        machine = _machine(original, name, found.place, _number(files.ram))
        clone = Clone("", _number(files.state), machine.memory, snapshot=found.id, same=same)
        hypervisor = QemuHypervisor(host, config.paths.network(SANDBOXES).cards)
        held_to = record.egress if egress is None else egress
        attachment = None if same else runtime.attachment_of(config, machine, lan, held_to)
        spawned = spawn_clone(hypervisor, machine, clone, emit, attachment=attachment)
        return Revived(replace(spawned, release=stack.pop_all().close, run=record.run), record.image)


def _machine(machine: Machine, name: str, place: SnapshotPaths, ram: Path) -> Machine:
    """The VM that goes on where ``machine`` was, as another one."""
    disks = tuple(replace(disk, path=place.disk(disk.serial)) for disk in machine.disks)
    return replace(machine, name=name, ram=MemoryFile(ram, shared=False), disks=disks)


def _number(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")


class _Held:
    """What a snapshot's VMs begin with."""

    def __init__(self) -> None:
        self.users = 0
        self._filling = threading.Lock()
        self._files: Thawed | None = None
        self._stack = ExitStack()

    def filled(self, snapshot: Snapshot) -> Thawed:
        """It, read from the snapshot unless that has been done. Raises as ``thaw``."""
        with self._filling, ExitStack() as stack:
            if self._files is None:
                self._files = thaw(snapshot, stack, sealed=True)
                self._stack = stack.pop_all()
            return self._files

    def close(self) -> None:
        """Let go of it."""
        self._stack.close()


_turn = threading.Lock()
_held: dict[Path, _Held] = {}


def _hold(snapshot: Snapshot, stack: ExitStack) -> Thawed:
    """What VMs of a snapshot begin with, held until ``stack`` is closed. Raises as ``thaw``."""
    place = snapshot.place.directory
    with _turn:
        held = _held.get(place) or _held.setdefault(place, _Held())
        held.users += 1
    stack.callback(_release, place)
    return held.filled(snapshot)


def _release(place: Path) -> None:
    """One of them is there no more."""
    with _turn:
        held = _held[place]
        held.users -= 1
        if not held.users:
            del _held[place]
            held.close()
