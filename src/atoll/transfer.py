"""Snapshots in one file: from one host or data directory to another (docs/reference/snapshot-archive.md)."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
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
from atoll.events import Emit, ignore, progress, task
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

#: Milliseconds between two looks at whether what is silent is still waited for.
_LOOK = 100


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
    return await _in_thread(lambda step: write_archive(paths, snapshot, _opened(target), on_event, step))


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
    return await _in_thread(lambda step: read_archive(paths, _opened(source), name, on_event, step))


def _opened(place: str | Path | BinaryIO) -> Path | BinaryIO:
    return Path(place) if isinstance(place, (str, Path)) else place


async def _in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """Work beside the event loop; whoever is cancelled has it end soon, and waits for that.

    Args:
        work: calls what it is given again and again, which raises when nobody waits for it any more.
    """

    def run(unwanted: threading.Event) -> T:
        def step() -> None:
            if unwanted.is_set():
                raise _UnwantedError

        return work(step)

    return await in_thread(run)


class _UnwantedError(Exception):
    """Nobody waits for the work any more."""


def _on() -> None:
    """Somebody waits for the work."""


def write_archive(
    paths: Paths,
    reference: str,
    target: Path | BinaryIO,
    emit: Emit = ignore,
    step: Callable[[], None] = _on,
) -> Exported:
    """``export_snapshot``, in this thread; ``step`` is called now and then, and may raise."""
    found = catalog.find(paths, reference)
    manifest = catalog.manifest_of(found)
    began = time.monotonic()
    with ExitStack() as stack:
        held = exporting.hold(found, stack)
        modules = machines.modules_of(found) if manifest.kind is Kind.MACHINE and manifest.ram else ""
        title = f"Exporting snapshot {manifest.name} of {manifest.machine}"
        with task(emit, "export", title, total=held.room, unit="bytes"):
            advance = _advancing(emit, "export", step)

            def write(file: BinaryIO) -> int:
                return exporting.write(held, file, modules=modules, advance=advance)

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


def _advancing(emit: Emit, name: str, step: Callable[[], None]) -> Callable[[int], None]:
    told = progress(emit, name)

    def advance(done: int) -> None:
        step()
        told(done)

    return advance


def read_archive(
    paths: Paths,
    source: Path | BinaryIO,
    name: str | None = None,
    emit: Emit = ignore,
    step: Callable[[], None] = _on,
) -> Snapshot:
    """``import_snapshot``, in this thread; ``step`` is called now and then, and may raise."""
    if name is not None:
        check_name(name)
    called = source.name if isinstance(source, Path) else "a snapshot"
    with task(emit, "import", f"Importing {called}", unit="bytes") as told, ExitStack() as stack:
        try:
            file = stack.enter_context(_open_source(source)) if isinstance(source, Path) else source
            advance = _advancing(told, "import", step)
            return importing.read(paths, _Waiting(file, step), _vet, name=name, advance=advance, step=step)
        except (OSError, importing.SourceError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            message = f"cannot read {called}: {why}"
            raise UsageError(message, code="archive", hint="check the path") from error


def _vet(place: SnapshotPaths, manifest: Manifest) -> Machine | None:
    of_kind = machines.vet if manifest.kind is Kind.MACHINE else sandboxes.vet
    return of_kind(place, manifest)


class _Waiting:
    """A source that may be silent for long, as a pipe may be: who waits for it can have done with that.

    It is only asked for what it has. That cannot be known of what keeps data of its own, such as a
    connection's file: from there a read returns when it does.
    """

    def __init__(self, file: BinaryIO, step: Callable[[], None]) -> None:
        self._step = step
        self._take: Callable[[int], bytes] = file.read
        self._ready: select.poll | None = None
        if isinstance(getattr(file, "raw", file), io.FileIO):
            self._take = getattr(file, "read1", file.read)
            self._ready = select.poll()
            self._ready.register(file.fileno(), select.POLLIN)

    def read(self, count: int, /) -> bytes:
        """Up to ``count`` bytes; none at the end."""
        self._step()
        while self._ready is not None and not self._ready.poll(_LOOK):
            self._step()
        return self._take(count)


def _open_source(path: Path) -> BinaryIO:
    """A file, or a named pipe into which nobody may write yet (fifo(7)). Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return os.fdopen(fd, "rb")
