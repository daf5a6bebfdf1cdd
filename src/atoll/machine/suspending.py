"""What a suspended machine goes on from: RAM and devices beside its disk, which nobody writes meanwhile."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.machine import registry
from atoll.machine.forking import as_captured
from atoll.machine.registry import Named
from atoll.machine.snapshots import memory_of
from atoll.paths import SnapshotPaths, VmPaths
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import MOST, Kind, Manifest, decode, encode, id_of
from atoll.snapshot.storing import with_memory
from atoll.vm.bootplan import BootPlan
from atoll.vm.messages import Captured
from atoll.vm.state import Cause, Phase, State

__all__ = ["discard", "forget", "keep", "read", "sweep"]


def keep(machine: Named, captured: Captured, known: list[Snapshot]) -> None:
    """Store what was written down of a machine that stands still; it counts once its state says so.

    Args:
        machine: whose it is.
        captured: held open by the supervisor.
        known: snapshots that may have parts of it already.

    Raises:
        StoreError: it cannot be written; nothing is left of it.
    """
    with (
        ExitStack() as stack,
        store.staging(machine.place.directory, machine.place.suspended.name) as staged,
    ):
        place = SnapshotPaths(staged)
        staged.chmod(0o700)
        plan = store.read_record(machine.place.boot, BootPlan)
        store.write_record(place.plan, as_captured(plan, captured))
        manifest = Manifest(
            name="suspended",
            kind=Kind.MACHINE,
            machine=machine.name,
            machine_id=machine.spec.id,
            created=time.time(),
        )
        manifest = with_memory(manifest, place, memory_of(stack, place, captured), known)
        files = catalog.entries_of(staged, {}, [place.plan.name])
        written = encode(msgspec.structs.replace(manifest, files=files))
        store.write_file(place.manifest, written)
        store.write_file(_id(place), id_of(written).encode())
        store.publish(staged, machine.place.suspended)


def read(place: VmPaths) -> Snapshot:
    """What a suspended machine goes on from.

    Raises:
        StoreError: ``store.corrupt``: it is gone, or was changed.
    """
    where = SnapshotPaths(place.suspended)
    name = place.directory.name
    try:
        with where.manifest.open("rb") as file:
            written = file.read(MOST)
        known = _id(where).read_text()
        return Snapshot(known, where, decode(written, known))
    except (OSError, ValueError, StoreError) as error:
        message = f"what {name} was when it was suspended cannot be read: {error}"
        hint = f"`atoll start --discard {name}` boots it from its disk"
        raise StoreError(message, code="corrupt", hint=hint) from error


def _id(place: SnapshotPaths) -> Path:
    return place.directory / "id"


def discard(machine: Named) -> None:
    """Have a suspended machine boot at its next start, as after a power cut; others are left alone.

    Raises:
        StateError: it is not at rest.
        StoreError: its record cannot be written.
    """
    if machine.state.phase is Phase.SUSPENDED:
        with registry.at_rest(machine, "started anew"):
            forget(machine)
    else:
        sweep(machine.place)


def forget(machine: Named) -> None:
    """``discard`` for who keeps everybody else away, perhaps of a machine that runs already."""
    state = store.read_record(machine.place.state, State)
    if state.phase is Phase.SUSPENDED:
        stopped = msgspec.structs.replace(state, phase=Phase.STOPPED, cause=Cause.STOPPED)
        store.write_record(machine.place.state, stopped, parents=False)
    sweep(machine.place)


def sweep(place: VmPaths) -> None:
    """Remove what no machine will go on from."""
    doomed = place.directory / f".suspended-{os.urandom(4).hex()}"
    try:
        place.suspended.rename(doomed)
    except FileNotFoundError:
        return
    store.remove_tree(doomed)
