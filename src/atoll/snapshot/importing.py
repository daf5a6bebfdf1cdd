"""Reading a snapshot from one file, which may come from anybody: nothing is used before it was checked.

It is put together in a hidden directory, verified as any snapshot is, and only then is it one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

import msgspec

from atoll import store
from atoll.errors import ImageError, StoreError, UsageError
from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.host import host_memory
from atoll.paths import Paths, SnapshotPaths
from atoll.snapshot import archive, blocks, catalog, digests, vetting
from atoll.snapshot.archive import ArchiveError, Header
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.index import decode as decode_index
from atoll.snapshot.manifest import MOST, Kind, Manifest, decode, encode, id_of
from atoll.snapshot.pack import Pack
from atoll.snapshot.storing import require_fresh, staging

__all__ = ["Imported", "Source", "SourceError", "Vet", "read", "read_mark"]

#: Sees that the records of a snapshot are such as Atoll writes; its VM, if it has RAM. Raises ``ValueError``
#: or ``AtollError``.
Vet: TypeAlias = Callable[[SnapshotPaths, Manifest], Machine | None]

#: Bytes read at once.
_STEP = 1 << 20

#: Bytes of the header at most, and of an index beside what the guest's memory makes it have.
_SMALL, _INDEX = 4096, 64 << 20


class SourceError(Exception):
    """The source cannot be read: not what it is read for, or where that is kept, is at fault."""


class Source(Protocol):
    """Where an archive comes from."""

    def read(self, count: int, /) -> bytes:
        """Up to ``count`` bytes; none at the end."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The mark of a snapshot that came in a file.

    Attributes:
        modules: as ``Header.modules``.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    modules: str = ""


def read_mark(place: SnapshotPaths) -> Imported:
    """The mark of a snapshot that has one. Raises as ``store.read_record``."""
    return store.read_record(place.imported, Imported)


def read(
    paths: Paths,
    source: Source,
    vet: Vet,
    *,
    name: str | None = None,
    advance: Callable[[int], None],
    step: Callable[[], None],
) -> Snapshot:
    """Have the snapshot that is in an archive be one of this user.

    Args:
        paths: where snapshots are.
        source: the archive, which is read to its end.
        vet: looks through its records before anything large is read.
        name: what it is called from now on, which gives it another id, too; its own by default.
        advance: told how many bytes were read.
        step: called now and then while what was read is compared. Both may raise: nothing is left then.

    Raises:
        UsageError: ``usage.archive``: it is no such archive, or is damaged. Nothing is left in any case.
        StoreError: ``store.already_exists``: it is here already, or its name is taken; ``store.newer``;
            ``store.full``.
        SourceError: ``source`` cannot be read.
    """
    stream = _Stream(source, advance)
    with _refusing_damage():
        header = _header(stream)
        written = stream.member(archive.MANIFEST, MOST)
        manifest = _manifest(written, header)
        vetting.check_manifest(manifest)
    if name is not None:
        manifest = msgspec.structs.replace(manifest, name=name)
        written = encode(manifest)
    _require_new(paths, written, manifest)
    store.require_space(paths.snapshots, header.room)
    with staging(paths, f"import-{secrets.token_hex(8)}") as place:
        with _refusing_damage():
            packs = _fill(stream, place, manifest, header, vet)
            stream.finish()
            vetting.check_layers(manifest, place)
        store.write_record(place.imported, Imported(modules=header.modules))
        _share(paths, place, manifest, packs, step)
        with _refusing_damage():
            catalog.verify(Snapshot(header.id, place, manifest), step)
        with catalog.naming(paths):
            _require_new(paths, written, manifest)
            return catalog.publish(paths, place, written, manifest)


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        if error.code != "store.corrupt":
            raise
        raise _damaged(error.message) from error
    except (ImageError, UsageError) as error:
        raise _damaged(error.message) from error
    except (ValueError, AssertionError, msgspec.DecodeError, RecursionError) as error:  # of models, too
        raise _damaged(str(error)) from error


def _damaged(why: str) -> UsageError:
    hint = "export the snapshot again, and copy the file whole"
    return UsageError(f"this is no exported snapshot, or it is damaged: {why}", code="archive", hint=hint)


def _header(stream: _Stream) -> Header:
    data = stream.member(archive.HEADER, _SMALL)
    header = msgspec.json.decode(data, type=Header)
    if header.format != archive.FORMAT:
        raise ArchiveError("it has another format")
    if header.version != archive.VERSION:
        raise StoreError("the file was made by a newer Atoll", code="newer", hint="use that one")
    if not 0 <= header.room <= vetting.LARGEST:
        raise ArchiveError("its size cannot be")
    return header


def _manifest(written: bytes, header: Header) -> Manifest:
    try:
        return decode(written, header.id)
    except StoreError as error:
        if error.code == "store.newer":
            raise
        raise ArchiveError(error.message) from error


def _require_new(paths: Paths, written: bytes, manifest: Manifest) -> None:
    """See that neither the snapshot is here nor another one of its name."""
    own = id_of(written)
    every = [one for one in catalog.listed(paths) if one.manifest is not None or one.id == own]
    if any(one.id == own for one in every):
        hint = f"`atoll snapshot inspect {own}` shows it"
        raise StoreError(f"snapshot {own} is here already", code="already_exists", hint=hint)
    if manifest.kind is Kind.SANDBOX:
        others, whose = catalog.of_kind(every, Kind.SANDBOX), "a sandbox of this host"
    else:
        others = [one for one in every if one.manifest and one.manifest.machine_id == manifest.machine_id]
        whose = manifest.machine
    try:
        require_fresh(others, manifest.name, whose)
    except StoreError as error:
        hint = "`atoll snapshot import --name NEW FILE` gives it another name"
        raise StoreError(error.message, code="already_exists", hint=hint) from error


def _fill(
    stream: _Stream, place: SnapshotPaths, manifest: Manifest, header: Header, vet: Vet
) -> tuple[Pack, ...]:
    """Write what is in the archive; the packs. What is wrong is found before it does harm."""
    room = header.room
    names = sorted(manifest.files)
    for name in filter(archive.is_record, names):
        room = _left(room, manifest.files[name].size)
        _write(place.directory / name, stream.member(name, manifest.files[name].size))
    machine = vet(place, manifest)
    packs: tuple[Pack, ...] = ()
    if machine is not None:
        room = _left(room, stream.size(archive.INDEX))
        packs = _fill_index(stream, place, manifest, machine)
    _left(room, sum(pack.size for pack in packs))
    for pack in packs:
        with store.refusing(place.directory), _created(place.directory / pack.file) as file:
            for data in stream.pieces(pack.file, pack.size):
                file(data)
        room -= pack.size
    for name in names:
        if not archive.is_record(name):
            room -= _fill_sparse(stream, place.directory / name, manifest.files[name].size, room)
    return packs


def _left(room: int, size: int) -> int:
    """What is left of the room that was said to be needed."""
    if size > room:
        raise ArchiveError("it holds more than it said")
    return room - size


def _fill_index(
    stream: _Stream, place: SnapshotPaths, manifest: Manifest, machine: Machine
) -> tuple[Pack, ...]:
    """The packs by the index, which is held in memory: no host has one for more memory than its own."""
    index = stream.member(archive.INDEX, _INDEX + min(manifest.memory, host_memory()) // 1024)
    if hashlib.sha256(index).hexdigest() != manifest.packs:
        raise ArchiveError("its index is another one")
    packs, images = decode_index(index)
    vetting.check_images(manifest, machine, images)
    _write(place.directory / archive.INDEX, index)
    return packs


def _fill_sparse(stream: _Stream, path: Path, size: int, room: int) -> int:
    """Put a sparse file together of its parts; bytes of its blocks."""
    with store.refusing(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            writing = blocks.Writing(fd, size)
            number = 0
            while stream.follows(archive.part_name(path.name, number)):
                part = stream.member(archive.part_name(path.name, number), blocks.LARGEST_PART)
                writing.add(part, room - writing.content)
                number += 1
            return writing.content
        finally:
            os.close(fd)


def _write(path: Path, data: bytes) -> None:
    with store.refusing(path), _created(path) as write:
        write(data)


@contextmanager
def _created(path: Path) -> Iterator[Callable[[bytes], object]]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        yield file.write


def _share(
    paths: Paths,
    place: SnapshotPaths,
    manifest: Manifest,
    packs: tuple[Pack, ...],
    step: Callable[[], None],
) -> None:
    """Take for what other snapshots have, too, another name of the same file; not by its name alone."""
    wanted = {name: entry for name, entry in manifest.files.items() if not archive.is_record(name)}
    names = [*wanted, *(pack.file for pack in packs)]
    for other in catalog.listed(paths):
        if other.manifest is None:
            continue
        for name in list(names):
            if wanted.get(name) != (other.manifest.files.get(name) if name in wanted else None):
                continue
            with store.refusing(place.directory):
                if _taken(other.place.directory / name, place.directory / name, step):
                    names.remove(name)


def _taken(source: Path, target: Path, step: Callable[[], None]) -> bool:
    """Whether ``target`` is another name of ``source`` now, as it has the same content."""
    partial = target.with_name(f".same-{target.name}")
    try:
        if source.stat().st_size != target.stat().st_size:
            return False
        partial.hardlink_to(source)
    except OSError:  # it is gone, or the file system has no links
        return False
    try:
        if digests.digest(partial, step) != digests.digest(target, step):
            return False
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return True


class _Stream:
    """An archive that is read on and on."""

    def __init__(self, source: Source, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance
        self._digest = self._before = hashlib.sha256()
        self._count = 0
        self._head: tuple[str, int] | None = None

    def member(self, name: str, most: int) -> bytes:
        """The content of the next member, which must have this name."""
        found, size = self._peek()
        if found != name or size > most:
            raise ArchiveError(f"{name} does not follow, or is too large")
        return b"".join(self.pieces(name, size))

    def size(self, name: str) -> int:
        """The bytes of the next member, which must have this name."""
        found, size = self._peek()
        if found != name:
            raise ArchiveError(f"{name} does not follow")
        return size

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The content of the next member, which must have this name and size, in pieces."""
        if self._peek() != (name, size):
            raise ArchiveError(f"{name} does not follow as it should")
        self._head = None
        left = size
        while left:
            data = self._take(min(left, _STEP))
            left -= len(data)
            yield data
        if any(self._take(archive.padding(size))):
            raise ArchiveError("there is something between its files")

    def follows(self, name: str) -> bool:
        """Whether the next member has this name."""
        return self._peek()[0] == name

    def finish(self) -> None:
        """Read the end, and see that all was as it was written."""
        self._peek()
        # The sum is of all that stands before its own header.
        wanted = self._before.hexdigest().encode() + b"\n"
        if self.member(archive.SUM, _SMALL) != wanted:
            raise ArchiveError("it was changed on its way")
        if self._take(len(archive.END)) != archive.END or self._read(1):
            raise ArchiveError("it has no proper end")

    def _peek(self) -> tuple[str, int]:
        if self._head is None:
            self._before = self._digest.copy()
            self._head = archive.parse_member(self._take(archive.UNIT))
        return self._head

    def _read(self, count: int) -> bytes:
        try:
            return self._source.read(count)
        except OSError as error:
            raise SourceError(error.strerror) from error

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            data = self._read(count)
            if not data:
                raise ArchiveError("it is cut off")
            parts.append(data)
            count -= len(data)
            self._count += len(data)
        found = parts[0] if len(parts) == 1 else b"".join(parts)
        self._digest.update(found)
        self._advance(self._count)
        return found
