"""A machine in one file: a tar of its spec, its image's identity and its disk without holes, with digests.

The file is written as a stream: the manifest comes last. Its digests are checked before anything of the
machine is entered into the registry.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import msgspec

from atoll import store
from atoll.errors import UsageError
from atoll.events import Emit, Warned, ignore, progress, task
from atoll.image.extents import ZEROES, read_range
from atoll.image.manifest import ImageManifest
from atoll.machine import registry, undoing
from atoll.machine.adopting import adopted_spec, check_spec
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec, check_name
from atoll.paths import Paths, VmPaths
from atoll.snapshot import vetting
from atoll.snapshot.vetting import LARGEST, require
from atoll.vm.chain import Opened, opened, read_chain, require_files

__all__ = ["ExportManifest", "export_machine", "import_machine"]

_MANIFEST, _SPEC, _DISK, _ROOT = "manifest.json", "machine.json", "disk.extents", "root.erofs"

#: An extent of the disk: its offset and length, bytes; the data follows.
_STEP = 1 << 20


class ExportManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the file.

    Attributes:
        name: of the machine that was exported.
        image: manifest of its root, which is in the file, too.
        disk: size of its disk, bytes; ``extents`` are the parts of it that hold data: offset and length.
        digests: sha256 of each member.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    name: str
    image: ImageManifest
    disk: int
    extents: tuple[tuple[int, int], ...]
    digests: dict[str, str]


def export_machine(machine: Named, target: Path, emit: Emit = ignore) -> ExportManifest:
    """Write ``machine``, which is at rest, to ``target``.

    Raises:
        StateError: it is not at rest.
        StoreError: ``target`` exists, or cannot be written; nothing is left of it then.
    """
    with registry.at_rest(machine, "exported"):
        undoing.settle(machine, emit)
        require_files(machine.place, read_chain(machine.place))
        with opened(machine.place, read_chain(machine.place).files) as disk:
            return _export(machine, disk, target, emit)


def _export(machine: Named, disk: Opened, target: Path, emit: Emit) -> ExportManifest:
    image = store.read_record(machine.place.image, ImageManifest)
    data = _Extents(disk)
    total = sum(length for _, length in data.extents) + machine.place.root.stat().st_size
    with (
        store.new_file(target) as file,
        task(emit, "export", f"Exporting {machine.name}", total=total, unit="bytes"),
    ):
        return _write(file, machine, image, data, emit)


def _write(
    file: IO[bytes], machine: Named, image: ImageManifest, disk: _Extents, emit: Emit
) -> ExportManifest:
    digests: dict[str, str] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        spec = msgspec.json.encode(machine.spec)
        _member(tar, _SPEC, io.BytesIO(spec), len(spec), digests, emit)
        with machine.place.root.open("rb") as root:
            _member(tar, _ROOT, root, machine.place.root.stat().st_size, digests, emit)
        length = sum(count for _, count in disk.extents)
        _member(tar, _DISK, disk, length, digests, emit)
        manifest = ExportManifest(
            name=machine.name,
            image=image,
            disk=disk.size,
            extents=disk.extents,
            digests=digests,
        )
        data = msgspec.json.encode(manifest)
        _member(tar, _MANIFEST, io.BytesIO(data), len(data), {}, emit)
    return manifest


def _member(
    tar: tarfile.TarFile, name: str, source: Any, size: int, digests: dict[str, str], emit: Emit
) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o600
    reader = _Digested(source, progress(emit, "export"))
    tar.addfile(info, reader)
    digests[name] = reader.digest.hexdigest()


class _Digested:
    """Reads on, digesting what passes."""

    def __init__(self, source: Any, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance
        self._done = 0
        self.digest = hashlib.sha256()

    def read(self, count: int = -1, /) -> bytes:
        data: bytes = self._source.read(count)
        self.digest.update(data)
        self._done += len(data)
        self._advance(self._done)
        return data


class _Extents:
    """The parts of a disk that hold data, one behind the other; what reads as zeroes is left out."""

    def __init__(self, disk: Opened) -> None:
        self.size = disk.size
        self._files = disk.files
        self._left = [extent for extent in disk.extents if extent.source != ZEROES]
        self._done = 0
        self.extents = tuple((extent.at, extent.length) for extent in self._left)

    def read(self, count: int = -1, /) -> bytes:
        parts = []
        while count and self._left:
            data = read_range(self._files, self._left[0], self._done, count)
            parts.append(data)
            count -= len(data)
            self._done += len(data)
            if self._done == self._left[0].length:
                self._left.pop(0)
                self._done = 0
        return b"".join(parts)


def import_machine(paths: Paths, source: Path, name: str | None = None, emit: Emit = ignore) -> str:
    """Enter the machine in ``source``, under ``name`` or its own; its name.

    It gets addresses of its own: the one that was exported may still exist. What its file says of the host is
    not for this one: it shares no directories and opens no ports, has the kernel that any machine has, and is
    a user's. Who wrote the file may be anybody.

    Args:
        paths: where machines are.
        source: as ``export_machine`` wrote it.
        name: of the machine; its own by default.
        emit: told of progress, and which ports and kernel were left out.

    Raises:
        UsageError: ``usage.archive``: it is no such file, or is damaged.
        StoreError: ``store.already_exists``, ``store.full``.
    """
    try:
        with tarfile.open(source, mode="r:") as tar, task(emit, "import", f"Importing {source.name}"):
            members = {member.name: member for member in tar.getmembers() if member.isreg()}
            manifest = msgspec.json.decode(_small(tar, members, _MANIFEST), type=ExportManifest)
            spec_data = _small(tar, members, _SPEC)
            _check(hashlib.sha256(spec_data).hexdigest(), manifest, _SPEC)
            spec = msgspec.json.decode(spec_data, type=MachineSpec)
            _vet(spec, manifest)
            chosen = name or manifest.name
            if registry.exists(paths, chosen):
                raise registry.taken(chosen)
            own = msgspec.structs.replace(
                adopted_spec(spec),
                id=secrets.token_hex(16),
                created=time.time(),
                image=manifest.image.name,
            )

            def fill(place: VmPaths) -> None:
                _import_root(tar, members, manifest, place)
                _import_disk(tar, members, manifest, place)

            registry.add(paths, chosen, own, fill)
            _tell_of_losses(chosen, spec, emit)
            return chosen
    except (
        tarfile.TarError,
        msgspec.DecodeError,
        ValueError,
        AssertionError,  # of the models
        RecursionError,
        EOFError,
    ) as error:
        raise _damaged(source, str(error)) from error
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}", code="archive", hint="check the path"
        ) from error


def _vet(spec: MachineSpec, manifest: ExportManifest) -> None:
    """Raises ``ValueError``: what it says is not what Atoll says."""
    try:
        check_spec(spec)
        check_name(manifest.name)
    except UsageError as error:
        raise ValueError(error.message) from error
    vetting.check_image(manifest.image.name)
    require(0 <= manifest.disk <= LARGEST, "the size of its disk")


def _tell_of_losses(name: str, spec: MachineSpec, emit: Emit) -> None:
    if spec.forwards:
        hint = f"`atoll edit {name} ports=...` gives it some"
        emit(Warned(message=f"{name}: the ports that its file names were left out", hint=hint))
    if spec.kernel:
        hint = f"`atoll edit {name} kernel=...` gives it one of yours"
        emit(Warned(message=f"{name}: it boots the usual kernel, not one of its own", hint=hint))


def _damaged(source: Path, why: str) -> UsageError:
    hint = "export the machine again, and copy the file whole"
    return UsageError(f"{source} is no exported machine, or damaged: {why}", code="archive", hint=hint)


def _small(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> bytes:
    member = members.get(name)
    stream = tar.extractfile(member) if member is not None and member.size <= 16 << 20 else None
    if stream is None:
        raise tarfile.ReadError(f"it has no {name}")
    return stream.read()


def _check(digest: str, manifest: ExportManifest, name: str) -> None:
    if digest != manifest.digests.get(name):
        raise tarfile.ReadError(f"{name} is not what was exported")


def _import_root(
    tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], manifest: ExportManifest, place: VmPaths
) -> None:
    stream = tar.extractfile(members[_ROOT]) if _ROOT in members else None
    if stream is None:
        raise tarfile.ReadError(f"it has no {_ROOT}")
    digest = hashlib.sha256()
    with place.root.open("wb") as file:
        while data := stream.read(_STEP):
            digest.update(data)
            file.write(data)
    _check(digest.hexdigest(), manifest, _ROOT)
    store.write_record(place.image, manifest.image)


def _import_disk(
    tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], manifest: ExportManifest, place: VmPaths
) -> None:
    stream = tar.extractfile(members[_DISK]) if _DISK in members else None
    if stream is None:
        raise tarfile.ReadError(f"it has no {_DISK}")
    digest = hashlib.sha256()
    with place.data.open("wb") as file:
        place.data.chmod(0o600)
        file.truncate(manifest.disk)
        for at, length in manifest.extents:
            if not 0 <= at <= at + length <= manifest.disk:
                raise tarfile.ReadError("an extent lies outside the disk")
            file.seek(at)
            left = length
            while left:
                data = stream.read(min(_STEP, left))
                if not data:
                    raise tarfile.ReadError("the disk is cut short")
                digest.update(data)
                file.write(data)
                left -= len(data)
    _check(digest.hexdigest(), manifest, _DISK)
