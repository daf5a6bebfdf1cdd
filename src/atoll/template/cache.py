"""Templates on disk: found, listed, discarded."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.paths import Paths, TemplatePaths

__all__ = [
    "Listed",
    "Manifest",
    "Template",
    "digest_of",
    "discard",
    "find",
    "installed",
    "lock_of",
    "note_use",
    "prune",
    "remember_failure",
    "verify",
]

_PAGE = 4096
_ZEROES = bytes(_PAGE)
_READ = 4 << 20

#: Seconds after which a template that nobody starts from is discarded: a week.
_UNUSED = 7 * 86_400.0


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

    @property
    def subject(self) -> str:
        """What starts from it, in words."""
        return f"sandboxes of {self.image}" if self.image else "machines"


class Template(msgspec.Struct, frozen=True):
    """A template that is whole."""

    place: TemplatePaths
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes that it takes on disk."""
        return sum(path.stat().st_blocks * 512 for path in (self.place.ram, self.place.state))


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
        if manifest.failure:
            return Template(place, manifest)
    except StoreError:
        return None
    whole = store.stamp(place.ram) == manifest.ram and store.stamp(place.state) == manifest.state
    return Template(place, manifest) if whole else None


def lock_of(paths: Paths, name: str) -> Path:
    """Held while the template of that name is made or discarded."""
    return paths.templates / f".{name}.lock"


def discard(paths: Paths, name: str) -> None:
    """Remove a template; VMs that run from it go on, since they hold its files open.

    Raises:
        StoreError: it cannot be removed.
    """
    place = paths.template(name)
    with store.lock(lock_of(paths, name)):
        with contextlib.suppress(FileNotFoundError):  # first of all it is no template any more
            place.manifest.unlink()
        store.remove_tree(place.directory)
        lock_of(paths, name).unlink(missing_ok=True)


def note_use(template: Template) -> None:
    """Keep a template from being pruned."""
    with contextlib.suppress(OSError):
        os.utime(template.place.manifest)


def prune(paths: Paths) -> None:
    """Discard what nobody has started from for a while: with another kernel, templates have other names."""
    for one in installed(paths):
        used = store.stamp(paths.template(one.name).manifest)
        if used is None or time.time() - used.mtime_ns / 1e9 > _UNUSED:
            with contextlib.suppress(StoreError):
                discard(paths, one.name)


def remember_failure(paths: Paths, manifest: Manifest) -> None:
    """Keep in mind that VMs do not start from this template, so that nobody makes it again and again."""
    with store.lock(lock_of(paths, manifest.name)):
        place = paths.template(manifest.name)
        store.write_record(place.manifest, manifest)
        place.ram.unlink(missing_ok=True)
        place.state.unlink(missing_ok=True)


def installed(paths: Paths) -> list[Listed]:
    """All templates, by name."""
    try:
        names = sorted(name for name in os.listdir(paths.templates) if not name.startswith("."))
    except FileNotFoundError:
        return []
    found = [(name, find(paths, name)) for name in names]
    return [
        Listed(name, template, template.manifest.failure if template else "broken")
        for name, template in found
    ]


def digest_of(ram: Path) -> str:
    """The sha256 of a RAM file's pages that are not empty, each with its place."""
    import hashlib  # noqa: PLC0415 - not at each start

    digest = hashlib.sha256()
    with ram.open("rb") as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _PAGE * _PAGE
            except OSError:
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
    return digest_of(template.place.ram) == template.manifest.digest
