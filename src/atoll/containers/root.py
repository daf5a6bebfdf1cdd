"""The root of the engine's machine: the newest that is here, and whole, before the machine boots from it."""

from __future__ import annotations

import os
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import ImageError, StoreError
from atoll.image import catalog, foreign, packing
from atoll.image.manifest import Image, ImageManifest
from atoll.machine.registry import Named
from atoll.paths import Paths, VmPaths

__all__ = ["check", "emulated", "renew"]


class _Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A root whose digest was computed: it need not be again as long as its file is the same."""

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    digest: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def renew(paths: Paths, machine: Named) -> None:
    """Give a machine that is about to boot the image of its name that the catalog has now.

    Raises:
        StoreError: it cannot be written.
    """
    own = store.read_record(machine.place.image, ImageManifest)
    newest = _in_catalog(paths, own.name)
    if newest is None or (newest.manifest.digest == own.digest and _is_whole(machine.place, own)):
        return
    # If this is cut off between the two, the digest differs at the next start, and it is done again.
    store.replace_by_link(machine.place.root, newest.root)
    store.write_record(machine.place.image, newest.manifest)


def _in_catalog(paths: Paths, name: str) -> Image | None:
    try:
        return catalog.find(paths, name)
    except ImageError:  # removed, or damaged: the machine has its own
        return None


def check(machine: Named) -> None:
    """Refuse a root that lacks a program of the engine, or is not what it was when it was made.

    Raises:
        ImageError: ``image.program`` or ``image.corrupt``; the hint names the command that brings it.
    """
    manifest = store.read_record(machine.place.image, ImageManifest)
    catalog.require_programs(manifest)
    if not _is_whole(machine.place, manifest):
        message = f"the root of {machine.name} is not what it was when the image {manifest.name} was made"
        hint = f"build it again with `atoll image build --force {manifest.name}`"
        raise ImageError(message, code="corrupt", hint=hint)


def emulated(manifest: ImageManifest) -> tuple[str, ...]:
    """Docker's platforms of which a root of the engine emulates programs."""
    there = {program.name for program in manifest.programs if program.path}
    return tuple(
        foreign.PLATFORMS[one] for one in sorted(foreign.FOREIGN) if foreign.interpreter(one) in there
    )


def _is_whole(place: VmPaths, manifest: ImageManifest) -> bool:
    """Whether the machine's root has the digest of its manifest."""
    try:
        status = os.stat(place.root)
    except FileNotFoundError:
        return False
    now = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    try:
        known = store.read_record(place.checked, _Checked)
    except StoreError:
        known = None
    if known is not None and (known.inode, known.size, known.mtime_ns, known.ctime_ns) == now:
        return known.digest == manifest.digest
    digest = packing.digest_of(place.root)
    inode, size, mtime, ctime = now
    record = _Checked(digest=digest, inode=inode, size=size, mtime_ns=mtime, ctime_ns=ctime)
    store.write_record(place.checked, record, parents=False)
    return digest == manifest.digest
