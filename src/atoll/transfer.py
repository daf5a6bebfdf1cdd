"""Snapshots in one file: from one host or data directory to another (docs/reference/snapshot-archive.md)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from atoll import store
from atoll.config import Config, load
from atoll.errors import UsageError
from atoll.events import Emit, Event, TaskAdvanced, ignore, task
from atoll.hypervisor.model import Machine
from atoll.machine import adopting as machines
from atoll.paths import Paths, SnapshotPaths
from atoll.patience import in_thread
from atoll.sandbox import adopting as sandboxes
from atoll.snapshot import catalog, exporting, importing
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Kind, Manifest, check_name

__all__ = ["Exported", "export_snapshot", "import_snapshot", "read_archive", "write_archive"]

T = TypeVar("T")

#: Seconds between two words of how far the work is.
_PAUSE = 0.1


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that was written to a file.

    Attributes:
        id: of the snapshot.
        name: likewise.
        bytes: that the archive has.
        elapsed: seconds.
    """

    id: str
    name: str
    bytes: int
    elapsed: float


async def export_snapshot(
    snapshot: str,
    target: str | Path | BinaryIO,
    *,
    config: Config | None = None,
    on_event: Emit = ignore,
) -> Exported:
    """Write a snapshot of a machine or a sandbox to one file, with all that it needs to be gone on from.

    Args:
        snapshot: its name or id.
        target: a path, where nothing may be yet, or what is open for writing bytes.
        config: resolved settings; by default those of this user.
        on_event: told of progress, in a thread of its own.

    Raises:
        StoreError: ``store.missing``: there is none; ``store.corrupt``: it was changed;
            ``store.already_exists``: the file is there; ``store.full``. Nothing is left of the file.
    """
    paths = (config or load().config).paths
    return await _in_thread(lambda emit: write_archive(paths, snapshot, _opened(target), emit), on_event)


async def import_snapshot(
    source: str | Path | BinaryIO,
    *,
    name: str | None = None,
    config: Config | None = None,
    on_event: Emit = ignore,
) -> Snapshot:
    """Have a snapshot that ``export_snapshot`` wrote be one of this user. All of it is verified.

    Args:
        source: a path, or what is open for reading bytes.
        name: what it is called from now on; then it has another id, too.
        config: resolved settings; by default those of this user.
        on_event: told of progress, in a thread of its own.

    Raises:
        UsageError: ``usage.archive``: it is no such file, or is damaged.
        StoreError: ``store.already_exists``: it is here already, or its name is taken; ``store.full``;
            ``store.newer``. Nothing is left of it.
    """
    paths = (config or load().config).paths
    return await _in_thread(lambda emit: read_archive(paths, _opened(source), name, emit), on_event)


def _opened(place: str | Path | BinaryIO) -> Path | BinaryIO:
    return Path(place) if isinstance(place, (str, Path)) else place


async def _in_thread(work: Callable[[Emit], T], emit: Emit) -> T:
    """Work beside the event loop; whoever is cancelled has it end soon, and waits for that."""

    def run(unwanted: threading.Event) -> T:
        def tell(event: Event) -> None:
            if unwanted.is_set() and isinstance(event, TaskAdvanced):
                raise _UnwantedError
            emit(event)

        return work(tell)

    return await in_thread(run)


class _UnwantedError(Exception):
    """Nobody waits for the work any more."""


def write_archive(paths: Paths, reference: str, target: Path | BinaryIO, emit: Emit = ignore) -> Exported:
    """``export_snapshot``, in this thread."""
    found = catalog.find(paths, reference)
    manifest = catalog.manifest_of(found)
    began = time.monotonic()
    with ExitStack() as stack:
        held = exporting.hold(found, stack)
        modules = machines.modules_of(found) if manifest.kind is Kind.MACHINE and manifest.ram else ""
        title = f"Exporting snapshot {manifest.name} of {manifest.machine}"
        with task(emit, "export", title, total=held.room, unit="bytes"):

            def write(file: BinaryIO) -> int:
                return exporting.write(held, file, modules=modules, advance=_telling(emit, "export"))

            count = _write_file(target, write) if isinstance(target, Path) else _write_out(target, write)
    return Exported(id=found.id, name=manifest.name, bytes=count, elapsed=time.monotonic() - began)


def _write_file(target: Path, write: Callable[[BinaryIO], int]) -> int:
    """A new file with all that ``write`` writes, for its owner's eyes, or none."""
    with store.new_file(target) as file:
        return write(file)


def _write_out(target: BinaryIO, write: Callable[[BinaryIO], int]) -> int:
    try:
        count = write(target)
        target.flush()
    except BrokenPipeError:  # its reader has seen enough
        raise
    except OSError:
        with store.refusing(Path(str(getattr(target, "name", "the archive")))):
            raise
    return count


def read_archive(
    paths: Paths, source: Path | BinaryIO, name: str | None = None, emit: Emit = ignore
) -> Snapshot:
    """``import_snapshot``, in this thread."""
    if name is not None:
        check_name(name)
    called = source.name if isinstance(source, Path) else "a snapshot"
    with task(emit, "import", f"Importing {called}", unit="bytes") as told, ExitStack() as stack:
        try:
            file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            return importing.read(paths, file, _vet, name=name, advance=_telling(told, "import"))
        except (OSError, importing.SourceError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            message = f"cannot read {called}: {why}"
            raise UsageError(message, code="archive", hint="check the path") from error


def _vet(place: SnapshotPaths, manifest: Manifest) -> Machine | None:
    of_kind = machines.vet if manifest.kind is Kind.MACHINE else sandboxes.vet
    return of_kind(place, manifest)


def _telling(emit: Emit, name: str) -> Callable[[int], None]:
    """What tells of progress now and then."""
    told = 0.0

    def advance(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > _PAUSE:
            told = time.monotonic()
            emit(TaskAdvanced(task=name, done=done))

    return advance
