"""What has to be done to store a snapshot, of whatever it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.hypervisor.qemu.host import cpu_identity
from atoll.paths import Paths, SnapshotPaths
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Entry, Manifest, check_name

if TYPE_CHECKING:
    from atoll.snapshot.packs import Index

__all__ = [
    "Memory",
    "Wish",
    "known_files",
    "require_fresh",
    "staging",
    "take_held",
    "with_memory",
]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a user says of a snapshot."""

    name: str
    description: str = ""
    labels: dict[str, str] = {}


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """A VM's RAM and devices at one instant.

    Attributes:
        images: descriptors of files with the state of the devices, the RAM, and RAM that was plugged in if
            that is not among the devices; in this order.
        size: bytes that the guest had.
        hypervisor: QEMU's version.
        accelerator: what executed its vCPUs.
        devices: what was plugged in, in the hypervisor's own words.
        stopped: seconds for which the vCPUs stood still.
    """

    images: tuple[int, ...]
    size: int
    hypervisor: str
    accelerator: str
    devices: tuple[dict[str, Any], ...] = ()
    stopped: float


def require_fresh(others: Sequence[Snapshot], name: str, whose: str) -> None:
    """See that a name is one, and none of ``others``.

    Args:
        others: snapshots of which no two have the same name.
        name: of the new one.
        whose: who has the others, in words.

    Raises:
        UsageError: ``usage.snapshot``: it is no name.
        StoreError: ``store.already_exists``.
    """
    check_name(name)
    if any(one.manifest is not None and one.manifest.name == name for one in others):
        hint = "choose another name, or remove it with `atoll snapshot rm`"
        raise StoreError(f"{whose} has a snapshot {name} already", code="already_exists", hint=hint)


@contextmanager
def staging(paths: Paths, name: str) -> Iterator[SnapshotPaths]:
    """A fresh directory in which a snapshot is put together; gone afterwards unless it was sealed.

    It is locked as long as it is worked in: ``catalog.sweep`` leaves it alone.

    Args:
        paths: where snapshots are.
        name: of what it is a snapshot of; the caller makes no two at once.

    Raises:
        StoreError: as ``store.staging``.
    """
    catalog.sweep(paths)
    with store.staging(paths.snapshots, name) as staged, store.hold_directory(staged):
        staged.chmod(0o700)
        yield SnapshotPaths(staged)


def with_memory(
    manifest: Manifest, place: SnapshotPaths, memory: Memory, earlier: Sequence[Snapshot]
) -> Manifest:
    """Store RAM and devices; the manifest that says so.

    Args:
        manifest: of the snapshot, without them.
        place: of ``staging``.
        memory: what is stored.
        earlier: snapshots, the oldest first, that may have much of it already: that is stored once.

    Raises:
        StoreError: it cannot be written.
    """
    from atoll.snapshot import packs  # noqa: PLC0415 - for snapshots only, and slow to load

    with packs.Writer(place.directory, _indexes(earlier)) as writer:
        for fd in memory.images:
            writer.add(fd, os.fstat(fd).st_size)
        index = writer.finish()
    return msgspec.structs.replace(
        manifest,
        ram=True,
        hypervisor=memory.hypervisor,
        cpu=cpu_identity(),
        accelerator=memory.accelerator,
        memory=memory.size,
        devices=memory.devices,
        packs=index.digest,
        stopped=memory.stopped,
    )


def _indexes(earlier: Sequence[Snapshot]) -> Iterator[Index]:
    """Of those that can be read, the newest first: what is damaged is stored anew."""
    from atoll.snapshot import packs  # noqa: PLC0415 - for snapshots only, and slow to load

    for one in reversed(earlier):
        if one.manifest is not None and one.manifest.packs:
            with contextlib.suppress(StoreError):
                yield packs.load(one.place.directory, one.manifest.packs)


def known_files(place: SnapshotPaths, earlier: Sequence[Snapshot], names: Sequence[str]) -> dict[str, Entry]:
    """What earlier snapshots say of files that are the same ones, by hard links."""
    known: dict[str, Entry] = {}
    for one in earlier:
        for name in names:
            entry = one.manifest.files.get(name) if one.manifest is not None else None
            if entry is not None and _is_same(place.directory / name, one):
                known[name] = entry
    return known


def _is_same(path: Path, other: Snapshot) -> bool:
    try:
        return path.samefile(other.place.directory / path.name)
    except OSError:
        return False


def take_held(source: Path, pid: int, target: Path) -> None:
    """Give a snapshot a file that a process has open, also where another one has its name by now.

    It is linked where it still has a name and the file system allows it, else copied.

    Args:
        source: by which name the process opened it.
        pid: of the process, which only reads it.
        target: its new name.

    Raises:
        StoreError: ``store.missing``: the process has no such file open; or it cannot be written.
    """
    held = _held(source, pid)
    try:
        if not _linked(source, held, target):
            from atoll.image import disk  # noqa: PLC0415 - rarely needed

            disk.copy_sparse(Path(f"/proc/self/fd/{held}"), target)
    finally:
        os.close(held)


def _linked(source: Path, held: int, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    if os.path.samestat(target.stat(), os.fstat(held)):
        return True
    target.unlink()
    return False


def _held(source: Path, pid: int) -> int:
    """A descriptor of the file that a process opened as ``source``.

    That is the file that has the name, if the process has it open; else one that was called so when it was
    removed, or lies in a directory that took the place of another.
    """
    directory = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        entries = [directory / number for number in os.listdir(directory)]
        named = [entry for entry in entries if _name_of(entry) == source.name]
        for entry in sorted(named, key=lambda entry: not _is_file(entry, source)):
            return os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    raise StoreError(f"{source} is no file that process {pid} has open", code="missing")


def _name_of(entry: Path) -> str:
    """Under which name a descriptor's file lies, or lay, in its directory (proc(5))."""
    try:
        return os.readlink(entry).removesuffix(" (deleted)").rpartition("/")[2]
    except OSError:
        return ""


def _is_file(entry: Path, source: Path) -> bool:
    try:
        return entry.samefile(source)
    except OSError:
        return False
