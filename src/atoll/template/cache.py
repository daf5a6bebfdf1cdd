"""Templates on disk: found, listed, discarded."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.hypervisor.model import Machine
from atoll.image.oci.runconfig import RunConfig
from atoll.paths import Paths, TemplatePaths
from atoll.vm.bootplan import Probe

__all__ = [
    "Listed",
    "Manifest",
    "Preparation",
    "Template",
    "digest_of",
    "discard",
    "find",
    "installed",
    "lock_of",
    "note_use",
    "opened",
    "prune",
    "remember_failure",
    "sweep",
    "verify",
    "withdraw",
]

_PAGE = 4096
_ZEROES = bytes(_PAGE)
_READ = 4 << 20

#: Seconds after which a template that nobody starts from is discarded: a week.
_UNUSED = 7 * 86_400.0

#: What a maker that was killed leaves beside the templates (``store.staging``).
_PARTIAL = re.compile(r"\.partial-(.+)-[0-9a-f]{8}")


class Preparation(msgspec.Struct, frozen=True):
    """What is done in a VM before it is frozen.

    Attributes:
        commands: for the guest's shell, as root, one after the other.
        probe: what must work then, or None.
        network: it has a network, and so have its clones.
    """

    commands: tuple[str, ...] = ()
    probe: Probe | None = None
    network: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a template is.

    Attributes:
        schema: version of this record.
        name: the template's directory.
        identity: what its clones must have in common with it.
        image: name of the image that it was made of; empty for machines, which have roots of their own.
        accelerator: what executes its clones.
        vcpus: of its clones.
        memory: bytes that clones have before more is plugged in.
        hypervisor: which QEMU, with its version.
        created: seconds since the epoch.
        ram: the file as it was sealed.
        state: likewise.
        digest: sha256 of the RAM's pages.
        failure: why no VM can start from it; empty if they can.
        preparation: what a user had done in it; None for a template that is made by itself.
        machine: the VM that was frozen, of a user's template; its disks lie beside the RAM.
        platform: that was said for its image; empty for the host's.
        full: whether a whole VM of that platform was asked for.
        run: of a user's template, how its image wants to be run; None if that says nothing of it.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    name: str
    identity: str
    image: str
    accelerator: str
    vcpus: int
    memory: int
    hypervisor: str
    created: float
    ram: store.Stamp | None = None
    state: store.Stamp | None = None
    digest: str = ""
    failure: str = ""
    preparation: Preparation | None = None
    machine: Machine | None = None
    platform: str = ""
    full: bool = False
    run: RunConfig | None = None

    @property
    def subject(self) -> str:
        """What starts from it, in words."""
        if self.preparation is not None:
            return self.name
        return f"sandboxes of {self.image}" if self.image else "machines"


class Template(msgspec.Struct, frozen=True):
    """A template that is whole."""

    place: TemplatePaths
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes that it takes on disk; 0 once it is gone."""
        try:
            return sum(path.stat().st_blocks * 512 for path in (self.place.ram, self.place.state))
        except OSError:
            return 0


class Listed(msgspec.Struct, frozen=True):
    """One entry of a list: a template, or why there is none."""

    name: str
    template: Template | None
    error: str = ""


def find(paths: Paths, name: str, identity: str | None = None) -> Template | None:
    """The template of that name.

    Args:
        paths: where it is kept.
        name: of the template.
        identity: as it must be; any by default.

    Returns:
        The template; None if there is none, it is stale, or it was changed since it was sealed.
    """
    place = paths.template(name)
    try:
        manifest = store.read_record(place.manifest, Manifest)
        if identity is not None and manifest.identity != identity:
            return None
    except StoreError:
        return None
    return Template(place, manifest) if manifest.failure or _is_whole(place, manifest) else None


def _is_whole(place: TemplatePaths, manifest: Manifest) -> bool:
    sealed = (manifest.ram, manifest.state)
    return None not in sealed and (store.stamp(place.ram), store.stamp(place.state)) == sealed


@contextmanager
def opened(template: Template) -> Iterator[TemplatePaths]:
    """The template's files by names that lead to them until the end, whatever takes the template's place.

    One file of a template and one of its successor would make a VM that crashes, or worse, does not.

    Raises:
        StoreError: ``store.missing``: it was discarded or replaced since it was found.
    """
    gone = StoreError(f"the template {template.manifest.name} is there no more", code="missing")
    try:
        directory = os.open(template.place.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise gone from error
    try:
        place = TemplatePaths(Path(f"/proc/self/fd/{directory}"))
        if not _is_whole(place, template.manifest):
            raise gone
        yield place
    finally:
        os.close(directory)


def lock_of(paths: Paths, name: str) -> Path:
    """Held while the template of that name is made or discarded."""
    return paths.templates / f".{name}.lock"


def discard(paths: Paths, name: str) -> None:
    """Remove a template; VMs that run from it go on, since they hold its files open.

    Raises:
        StoreError: it cannot be removed.
    """
    with store.lock(lock_of(paths, name)):
        _remove(paths, name)


def _remove(paths: Paths, name: str) -> None:
    place = paths.template(name)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.manifest.unlink()  # first of all it is no template any more
        store.remove_tree(place.directory)
        lock_of(paths, name).unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot remove {place.directory}: {error.strerror}"
        raise StoreError(message, code="unwritable", hint="check its owner and permissions") from error


def withdraw(paths: Paths, name: str, created: float) -> None:
    """Discard a template from which a VM did not come up, unless that has been done; does not wait.

    Args:
        paths: where it is kept.
        name: of the template.
        created: by its manifest: one that was made later under its name stays.
    """
    with contextlib.suppress(StoreError), store.lock(lock_of(paths, name), wait=0):
        if store.read_record(paths.template(name).manifest, Manifest).created == created:
            _remove(paths, name)


def note_use(template: Template) -> None:
    """Keep a template from being pruned."""
    with contextlib.suppress(OSError):
        os.utime(template.place.manifest)


def prune(paths: Paths) -> None:
    """Discard what nobody has started from for a while: with another kernel, templates have other names.

    What somebody makes now is left alone.
    """
    for one in installed(paths):
        with contextlib.suppress(StoreError), store.lock(lock_of(paths, one.name), wait=0):
            used = store.stamp(paths.template(one.name).manifest)
            if used is None or time.time() - used.mtime_ns / 1e9 > _UNUSED:
                _remove(paths, one.name)


def remember_failure(paths: Paths, manifest: Manifest) -> None:
    """Keep in mind that VMs do not start from this template, so that nobody makes it again and again.

    The caller holds its lock.

    Raises:
        StoreError: it cannot be written.
    """
    place = paths.template(manifest.name)
    store.write_record(place.manifest, manifest)
    place.ram.unlink(missing_ok=True)
    place.state.unlink(missing_ok=True)


def sweep(paths: Paths) -> None:
    """Remove what makers that were killed left, unless somebody makes the same template now."""
    try:
        found = [(entry, _PARTIAL.fullmatch(entry)) for entry in os.listdir(paths.templates)]
    except OSError:
        return
    for entry, partial in found:
        if partial is not None:
            with contextlib.suppress(StoreError, OSError), store.lock(lock_of(paths, partial[1]), wait=0):
                store.remove_tree(paths.templates / entry)


def installed(paths: Paths) -> list[Listed]:
    """All templates, by name."""
    try:
        names = sorted(name for name in os.listdir(paths.templates) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(name, find(paths, name)) for name in names]
    return [
        Listed(name, template, template.manifest.failure if template else "broken")
        for name, template in found
    ]


def digest_of(ram: Path) -> str:
    """The sha256 of a RAM file's pages that are not empty, each with its place. Raises ``OSError``."""
    import hashlib  # noqa: PLC0415 - not at each start

    digest = hashlib.sha256()
    with ram.open("rb") as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _PAGE * _PAGE
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # only a hole is left
            data = os.pread(file.fileno(), _READ, at)
            if not data:
                break
            for start in range(0, len(data), _PAGE):
                page = data[start : start + _PAGE]
                if page != _ZEROES:
                    digest.update((at + start).to_bytes(8, "little") + page)
            at += len(data)
    return digest.hexdigest()


def verify(template: Template) -> bool:
    """Whether the RAM still is what was sealed; reads all of it."""
    try:
        return digest_of(template.place.ram) == template.manifest.digest
    except OSError:
        return False
