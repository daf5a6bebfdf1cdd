"""Removing images that nobody needs, and what killed pulls have left."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.image import catalog
from atoll.image.manifest import USED, Image, Listed
from atoll.image.oci import names
from atoll.paths import Paths

__all__ = ["Doomed", "plan", "prune"]

_PARTIAL = re.compile(r"\.partial-(?P<name>.+)-[0-9a-f]{8}")


class Doomed(msgspec.Struct, frozen=True):
    """An image, or the rest of one, that is to be removed.

    Attributes:
        directory: it.
        manifest: digest of its manifest.
        names: references that mean it; empty if none do.
        size: bytes that become free.
    """

    directory: Path
    manifest: str
    names: tuple[str, ...]
    size: int


def plan(
    listed: Iterable[Listed],
    known: Iterable[names.Name],
    *,
    every: bool = False,
    unused_for: float = 0.0,
    now: float,
) -> list[Doomed]:
    """Which images of layers to remove; of those that Atoll builds by itself none.

    Args:
        listed: the images.
        known: the references.
        every: also those that references mean, if no machine and no snapshot shares their root.
        unused_for: seconds for which none that goes was used.
        now: seconds since the epoch.
    """
    named: dict[str, list[str]] = {}
    for name in known:
        named.setdefault(name.manifest, []).append(name.reference)
    doomed = []
    for one in listed:
        if one.image is None or one.image.manifest.origin is None:
            continue
        manifest = one.image.manifest.origin.manifest
        references = named.get(manifest, [])
        if references and (not every or one.image.root.stat().st_nlink > 1):
            continue
        if now - _used(one.image) >= unused_for:
            doomed.append(Doomed(one.directory, manifest, tuple(references), _size(one.directory)))
    return doomed


def prune(paths: Paths, doomed: Iterable[Doomed]) -> int:
    """Remove what was planned, and what killed pulls have left; bytes that became free.

    Raises:
        StoreError: it cannot be removed.
    """
    freed = _sweep(paths)
    for one in doomed:
        with store.lock(catalog.lock_of(one.directory)):
            names.forget(paths, one.manifest)
            with store.refusing(one.directory):
                store.remove_tree(one.directory)
        freed += one.size
    return freed


def _sweep(paths: Paths) -> int:
    freed = 0
    if not os.path.isdir(paths.images):
        return freed
    for entry in list(os.scandir(paths.images)):
        match = _PARTIAL.fullmatch(entry.name)
        if match is None:
            continue
        directory = paths.images / match["name"]
        # Whoever makes it holds the lock.
        with contextlib.suppress(StoreError), store.lock(catalog.lock_of(directory), wait=0):
            freed += _size(Path(entry.path))
            store.remove_tree(Path(entry.path))
    return freed


def _used(image: Image) -> float:
    """When an image was used last, or made; seconds since the epoch."""
    try:
        return max((image.directory / USED).stat().st_mtime, image.manifest.created)
    except FileNotFoundError:
        return image.manifest.created


def _size(directory: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())
