"""From what is at hand to an image of this host that has a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from atoll import store
from atoll.errors import ImageError
from atoll.events import Emit
from atoll.image import catalog
from atoll.image.local.offering import offer
from atoll.image.manifest import Image
from atoll.image.oci import keeping, names
from atoll.image.oci.documents import Platform
from atoll.image.oci.reference import HUB, parse
from atoll.image.recipes import RECIPES, canonical, is_recipe
from atoll.paths import Paths

__all__ = ["bring"]


def bring(
    paths: Paths,
    place: str,
    name: str,
    *,
    platform: Platform,
    pick: str = "",
    default: str = HUB,
    emit: Emit,
) -> Image:
    """Take in the image at a place, and have ``name`` mean it from now on.

    Args:
        paths: where images are kept.
        place: see ``offer``.
        name: a reference. Of the names that Atoll builds itself only such of which it knows what must be in
            them, as ``engine``.
        platform: which image is taken where there are several, and that of one that does not say it.
        pick: the image's name in an archive of several.
        default: the registry of a reference that names none.
        emit: told of progress.

    Raises:
        ImageError: as ``offer`` and ``keeping.add``; ``image.name``: it is no name, or one of Atoll's own.
        PreflightError: a program, a module or a permission is missing.
        StoreError: ``store.full``, or the place for images cannot be written.
    """
    if is_recipe(name):
        return _instead(paths, place, name, platform, pick, emit)
    reference = parse(name, default=default).tagged()
    if reference.digest:
        hint = "write NAME or NAME:TAG"
        raise ImageError(f"{name!r} has a digest, which says what an image is", code="name", hint=hint)
    shown = canonical(name, default=default)
    with offer(place, platform=platform, name=pick, emit=emit, sockets=_sockets(paths)) as offered:
        return keeping.add(paths, offered, name=shown, platform=platform, references=(reference,), emit=emit)


def _instead(paths: Paths, place: str, name: str, platform: Platform, pick: str, emit: Emit) -> Image:
    """Take in an image that stands for one that Atoll builds."""
    recipe = RECIPES[name.partition(":")[0]]
    if not recipe.programs:
        hint = "choose another; this one is for images that Atoll builds"
        raise ImageError(f"{name!r} cannot be imported", code="name", hint=hint)
    programs = (*recipe.programs, *recipe.optional)
    with offer(place, platform=platform, name=pick, emit=emit, sockets=_sockets(paths)) as offered:
        image = keeping.add(paths, offered, name=name, platform=platform, programs=programs, emit=emit)
    try:
        return catalog.adopt(paths, image, name)
    finally:
        assert image.manifest.origin is not None
        with store.lock(catalog.lock_of(image.directory)):
            if not names.meaning(paths, image.manifest.origin.manifest):
                store.remove_tree(image.directory)


def _sockets(paths: Paths) -> Sequence[Path]:
    """The socket of Atoll's own engine, if it has one."""
    return (paths.docker.socket,) if os.path.exists(paths.docker.socket) else ()
