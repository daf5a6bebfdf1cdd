"""The snapshots of this user on disk: found, listed, removed, looked through."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, StoreError
from atoll.paths import Paths, SnapshotPaths
from atoll.snapshot import digests
from atoll.snapshot.manifest import MOST, Entry, Kind, Manifest, decode, encode, id_of
from atoll.vm.state import StateError

__all__ = [
    "Snapshot",
    "begin",
    "begun",
    "broken",
    "check",
    "entries_of",
    "find",
    "listed",
    "manifest_of",
    "naming",
    "of_kind",
    "publish",
    "read",
    "remove",
    "require_kind",
    "seal",
    "sweep",
    "verify",
]

#: Seconds in which the maker of a snapshot has locked its directory.
_TAKEN = 5.0


#: What a snapshot is for, by what it is of.
_USES = {
    Kind.SANDBOX: "`atoll run --snapshot {}` starts a sandbox from it",
    Kind.MACHINE: "`atoll snapshot restore --as NEW {}` makes a machine of it",
}


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot that is here; ``manifest`` is None where it cannot be read, and ``error`` says why."""

    id: str
    place: SnapshotPaths
    manifest: Manifest | None
    error: AtollError | None = None

    @property
    def imported(self) -> bool:
        """Whether it came in a file: what it says of its host is not to be believed."""
        return self.place.imported.exists()

    @property
    def stored(self) -> int:
        """Bytes that it takes and that no other snapshot or machine has."""
        total = 0
        with contextlib.suppress(FileNotFoundError):  # somebody removes it
            for path in self.place.directory.iterdir():
                status = path.stat()
                total += status.st_blocks * 512 if status.st_nlink == 1 else 0
        return total


def manifest_of(snapshot: Snapshot) -> Manifest:
    """Its manifest. Raises ``StoreError``: it cannot be read."""
    if snapshot.manifest is None:
        assert snapshot.error is not None
        raise snapshot.error
    return snapshot.manifest


def require_kind(snapshot: Snapshot, kind: Kind) -> None:
    """See that a snapshot is of a machine, or of a sandbox. Raises ``StateError``: ``state.foreign``."""
    manifest = manifest_of(snapshot)
    if manifest.kind is not kind:
        hint = _USES[manifest.kind].format(snapshot.id)
        message = f"snapshot {manifest.name} is of the {manifest.kind} {manifest.machine}"
        raise StateError(message, code="foreign", hint=hint)


def listed(paths: Paths, machine_id: str | None = None) -> list[Snapshot]:
    """All snapshots, or those of one machine, the oldest first; broken ones at the end."""
    try:
        names = sorted(os.listdir(paths.snapshots))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [read(paths, name) for name in names if not name.startswith(".")]
    ours = [one for one in found if machine_id is None or _is_of(one, machine_id)]
    return sorted(ours, key=lambda one: one.manifest.created if one.manifest is not None else float("inf"))


def _is_of(snapshot: Snapshot, machine_id: str) -> bool:
    return snapshot.manifest is not None and snapshot.manifest.machine_id == machine_id


def read(paths: Paths, name: str) -> Snapshot:
    """The snapshot with the id ``name``, or what is wrong with it."""
    place = paths.snapshot(name)
    try:
        with place.manifest.open("rb") as file:
            return Snapshot(name, place, decode(file.read(MOST), name))
    except OSError as error:
        message = f"snapshot {name} has no manifest: {error.strerror}"
        return Snapshot(name, place, None, StoreError(message, code="corrupt", hint=_remove(name)))
    except StoreError as error:
        return Snapshot(name, place, None, error)


def _remove(name: str) -> str:
    return f"`atoll snapshot rm {name}` removes it"


def of_kind(snapshots: Iterable[Snapshot], kind: Kind) -> list[Snapshot]:
    """Those that can be read and are of machines, or of sandboxes."""
    return [one for one in snapshots if one.manifest is not None and one.manifest.kind is kind]


def find(
    paths: Paths,
    reference: str,
    machine_id: str | None = None,
    *,
    kind: Kind | None = None,
    broken: bool = False,
) -> Snapshot:
    """A snapshot by its name, its id, or the beginning of its id.

    Args:
        paths: where snapshots are.
        reference: what the user said.
        machine_id: whose names count; of the others only ids do, and names of those that are not of machines.
        kind: likewise whose names come first.
        broken: also one that cannot be read.

    Raises:
        StoreError: ``store.missing``: there is none, or several; ``store.corrupt``: it cannot be read.
    """
    every = listed(paths)
    named = [one for one in every if one.manifest is not None and one.manifest.name == reference]
    sandboxes = of_kind(named, Kind.SANDBOX)
    with_id = [one for one in every if len(reference) >= 4 and one.id.startswith(reference)]
    if machine_id is not None:
        matching = [one for one in named if _is_of(one, machine_id)] or with_id or sandboxes
    elif kind is not None:
        matching = of_kind(named, kind) or with_id or named
    else:
        matching = named or with_id
    if len(matching) == 1:
        if matching[0].error is not None and not broken:
            raise matching[0].error
        return matching[0]
    if matching:
        ids = ", ".join(one.id for one in matching)
        message = f"{reference} is the name of several snapshots"
        raise StoreError(message, code="missing", hint=f"use an id: {ids}")
    hint = "`atoll snapshot ls` lists them"
    raise StoreError(f"there is no snapshot {reference}", code="missing", hint=hint)


def begin(staged: SnapshotPaths, manifest: Manifest) -> None:
    """Say what is being made in a directory of ``storing.staging``, for ``begun``. Raises ``StoreError``."""
    with store.refusing(staged.directory):
        staged.begun.write_bytes(encode(manifest))


def begun(paths: Paths, machine_id: str | None = None) -> list[Manifest]:
    """What is being made now: all, or of one machine; as far as it is known."""
    found = []
    for place in map(SnapshotPaths, paths.snapshots.glob(".partial-*")):
        with contextlib.suppress(OSError, StoreError):  # it was sealed just now, or has just begun
            written = place.begun.read_bytes()
            manifest = decode(written, id_of(written))
            with store.hold_directory(place.directory) as abandoned:
                if not abandoned and machine_id in {None, manifest.machine_id}:
                    found.append(manifest)
    return sorted(found, key=lambda one: one.created)


def seal(paths: Paths, staged: SnapshotPaths, manifest: Manifest) -> Snapshot:
    """Write the manifest of what was staged, all else of which is there, and have it be a snapshot.

    Raises:
        StoreError: it cannot be written.
    """
    return publish(paths, staged, encode(manifest), manifest)


def publish(paths: Paths, staged: SnapshotPaths, written: bytes, manifest: Manifest) -> Snapshot:
    """``seal`` with a manifest that is written already.

    Raises:
        StoreError: ``store.already_exists``: it is here; or it cannot be written.
    """
    name = id_of(written)
    staged.begun.unlink(missing_ok=True)
    store.write_file(staged.manifest, written)
    final = paths.snapshot(name)
    store.create(staged.directory, final.directory)
    return Snapshot(name, final, manifest)


@contextmanager
def naming(paths: Paths) -> Iterator[None]:
    """Held by who gives a snapshot a name that others could give one meanwhile: of two one gets it."""
    with store.lock(paths.snapshot_names):
        yield


def remove(paths: Paths, name: str) -> None:
    """Remove a snapshot. Others keep what they share with it: each has a link of its own."""
    doomed = paths.snapshots / f".removed-{name}-{os.urandom(4).hex()}"
    sweep(paths)
    try:
        paths.snapshot(name).directory.rename(doomed)
        store.sync_directory(paths.snapshots)
    except FileNotFoundError:
        return  # another process removed it
    store.remove_tree(doomed)


def sweep(paths: Paths) -> None:
    """Remove what killed programs left half made or half removed. Nobody can make anything of it."""
    for entry in paths.snapshots.glob(".*-*"):
        with contextlib.suppress(OSError, StoreError):
            if entry.name.startswith(".removed-"):
                store.remove_tree(entry)
            elif time.time() - entry.stat().st_mtime > _TAKEN:
                with store.hold_directory(entry) as abandoned:
                    if abandoned:
                        store.remove_tree(entry)


def entries_of(directory: Path, known: dict[str, Entry], names: Iterable[str]) -> dict[str, Entry]:
    """What is to be said of files; those that are ``known`` never change and are not read again."""
    return {name: known.get(name) or _entry(directory / name) for name in names}


def _entry(path: Path) -> Entry:
    return Entry(path.stat().st_size, digests.digest(path))


def check(snapshot: Snapshot) -> None:
    """Compare every file but the packs, which are compared as they are read, with the manifest.

    Raises:
        StoreError: ``store.corrupt``: which file was changed, and is not to be gone on from.
    """
    _compare(snapshot)


def verify(snapshot: Snapshot, step: Callable[[], None] = lambda: None) -> None:
    """Compare every byte with the manifest. Raises as ``check``.

    ``step`` is called again and again, also by other threads; what it raises ends the work.
    """
    if snapshot.error is not None:
        raise snapshot.error
    _compare(snapshot, step)
    manifest = snapshot.manifest
    assert manifest is not None
    if manifest.packs:
        from atoll.snapshot import packs  # noqa: PLC0415 - for snapshots only, and slow to load

        directory = snapshot.place.directory
        for fault in packs.verify(directory, packs.load(directory, manifest.packs), step):
            raise broken(snapshot, f"{fault.file}, byte {fault.offset}: {fault.what}")


def _compare(snapshot: Snapshot, step: Callable[[], None] = lambda: None) -> None:
    manifest = snapshot.manifest
    assert manifest is not None, "it was read"
    for name, entry in manifest.files.items():
        path = snapshot.place.directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise broken(snapshot, f"{name} is missing") from error
        if size != entry.size or digests.digest(path, step) != entry.digest:
            raise broken(snapshot, f"{name} was changed")


def broken(snapshot: Snapshot, what: str) -> StoreError:
    """The error for a snapshot that was changed."""
    message = f"snapshot {snapshot.id} is broken: {what}"
    return StoreError(message, code="corrupt", hint=_remove(snapshot.id))
