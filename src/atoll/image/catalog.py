"""The root images on this host: found by name, built on first use, checked, removed.

An image is a directory with ``root.erofs``, the read-only root that all machines of the image share, and
``manifest.json``, the `ImageManifest` record, written last. Those that Atoll builds are
``images/<name>+<tag>+<architecture>/``; those that come from elsewhere, of layers, are called by their
manifest's digest (`atoll.image.oci.keeping`) and have any number of references (`atoll.image.oci.names`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, ImageError, StoreError
from atoll.events import Emit, ignore
from atoll.image import erofs
from atoll.image.kernel import host_architecture
from atoll.image.manifest import MANIFEST, ROOT, Image, ImageManifest, Listed, load, rebuild_hint
from atoll.image.oci import names
from atoll.image.oci.reference import HUB
from atoll.image.oci.reference import Reference as OciReference
from atoll.image.oci.reference import parse as parse_reference
from atoll.image.programs import wanting
from atoll.image.recipes import RECIPES, Reference, is_own, is_recipe, parse
from atoll.paths import Paths

__all__ = [
    "adopt",
    "build",
    "directory_by",
    "directory_of",
    "ensure",
    "find",
    "inspect",
    "installed",
    "lock_of",
    "nearest",
    "remove",
    "require_programs",
    "verify",
]


def directory_of(paths: Paths, reference: Reference, architecture: str) -> Path:
    """Where an image is kept."""
    return paths.image(f"{reference.name}+{reference.tag}+{architecture}")


def lock_of(directory: Path) -> Path:
    """The lock that builders and removers of the image in ``directory`` hold."""
    return directory.with_name(f".{directory.name}.lock")


def find(paths: Paths, name: str, *, architecture: str | None = None, default: str = HUB) -> Image:
    """The image that is here under ``name``.

    Args:
        paths: where images are kept.
        name: of an image that Atoll builds, or a reference.
        architecture: of the image; the host's by default.
        default: the registry of a reference that names none.

    Raises:
        ImageError: ``image.missing``: it is not here. ``image.corrupt``: it is here but damaged.
            ``image.name``: malformed.
    """
    machine = architecture or host_architecture()
    directory = _built(paths, name, machine)
    if directory is not None:
        with _unless_removed():
            return load(directory)
    if is_recipe(name):
        reference = parse(name)
        hint = f"build it with `atoll image build {reference}`"
        raise ImageError(f"the image {reference} ({machine}) is not here", code="missing", hint=hint)
    digest = _referred(paths, parse_reference(name, default=default).tagged(), machine)
    if digest:
        with _unless_removed():
            return load(directory_by(paths, digest))
    raise _missing(paths, name)


@contextlib.contextmanager
def _unless_removed() -> Iterator[None]:
    """Go on where an image was removed while it was looked at."""
    try:
        yield
    except StoreError as error:
        if error.code != "store.missing":
            raise


def _built(paths: Paths, name: str, architecture: str) -> Path | None:
    """The directory of an image that was built here under ``name``, perhaps with a tag that is no known one.

    Raises:
        ImageError: ``image.corrupt``: it is there, but has no manifest.
    """
    if not is_own(name):
        return None
    reference = parse(name)
    directory = directory_of(paths, reference, architecture)
    if not os.path.isdir(directory):
        return None
    if not os.path.exists(directory / MANIFEST) and os.path.isdir(directory):
        message = f"the image {reference} is incomplete: it has no {MANIFEST}"
        raise ImageError(message, code="corrupt", hint=rebuild_hint(reference))
    return directory


def directory_by(paths: Paths, digest: str) -> Path:
    """Where the image whose manifest has ``digest`` is kept."""
    return paths.image(digest.replace(":", "-"))


def _referred(paths: Paths, reference: OciReference, architecture: str) -> str:
    """The digest of the manifest of an image that is here; empty if there is none."""
    known = names.lookup(paths, reference, architecture)
    if not known and reference.digest and os.path.isdir(directory_by(paths, reference.digest)):
        return reference.digest
    return known


def _missing(paths: Paths, name: str) -> ImageError:
    hint = f"get it with `atoll image pull {name}`; {_hint(paths, name)}"
    return ImageError(f"the image {name} is not here", code="missing", hint=hint)


def nearest(paths: Paths, name: str) -> str:
    """Of the names of images that are here, or can be built, the one that is most like ``name``; or empty."""
    import difflib  # noqa: PLC0415 - for errors only

    near = difflib.get_close_matches(name, _choices(paths), n=1)
    return near[0] if near else ""


def _choices(paths: Paths) -> list[str]:
    known = {listed.image.manifest.name for listed in installed(paths) if listed.image is not None}
    buildable = {f"{first}:{tag}" for first, recipe in RECIPES.items() for tag in recipe.tags}
    bare = {name[: len(name) - len(tag) - 1] for name in known if "/" not in (tag := name.rpartition(":")[2])}
    return sorted({*known, *bare, *buildable, *RECIPES})


def _hint(paths: Paths, name: str) -> str:
    near = nearest(paths, name)
    return (f"did you mean {near}? " if near else "") + f"known images: {', '.join(_choices(paths))}"


def build(
    paths: Paths,
    name: str,
    *,
    architecture: str | None = None,
    force: bool = False,
    mirror: str = "",
    emit: Emit = ignore,
) -> Image:
    """Build an image, one builder of it at a time.

    Args:
        paths: where images are kept.
        name: of a recipe, alone or with a suite: ``debian-machine:trixie``.
        architecture: of the guest; the host's by default.
        force: build it also if it is here already; machines that use the old one keep it until they stop.
        mirror: of Ubuntu, see the setting ``ubuntu_mirror``.
        emit: told of progress.

    Raises:
        ImageError: ``image.unknown``, ``image.name``, ``image.mirror``, or ``image.build`` with the tool's
            last lines.
        PreflightError: a program or a permission is missing.
        StoreError: the place for images cannot be written.
    """
    reference = parse(name)
    if reference.name not in RECIPES:
        raise ImageError(f"there is no image {name}", code="unknown", hint=_hint(paths, name))
    machine = architecture or host_architecture()
    directory = directory_of(paths, reference, machine)
    with store.lock(lock_of(directory)):
        if not force:
            try:
                return find(paths, name, architecture=machine)  # another process may have built it meanwhile
            except ImageError as error:
                if error.code not in {"image.missing", "image.corrupt"}:
                    raise
        from atoll.image import debian  # noqa: PLC0415 - an image that is here must cost no import

        with store.staging(paths.images, directory.name) as staged:
            manifest = debian.build(
                staged / ROOT,
                name=str(reference),
                suite=reference.tag,
                architecture=machine,
                recipe=RECIPES[reference.name],
                mirror=mirror,
                emit=emit,
            )
            require_programs(manifest)
            store.write_record(staged / MANIFEST, manifest)
            store.publish(staged, directory)
    return load(directory)


def require_programs(manifest: ImageManifest) -> None:
    """Refuse an image that lacks a program which one of its name must have.

    Raises:
        ImageError: ``image.program``: it names the program, and what brings it.
    """
    name = parse(manifest.name).name
    recipe = RECIPES.get(name)
    wrong = wanting(recipe.programs, manifest.programs) if recipe is not None else ""
    if wrong:
        raise ImageError(
            f"the image {manifest.name} cannot be used: {wrong}",
            code="program",
            hint=rebuild_hint(manifest.name),
        )


def adopt(paths: Paths, image: Image, name: str) -> Image:
    """Have an image stand for one of Atoll's own, which is replaced.

    Args:
        paths: where images are kept.
        image: of layers, in which the recipe's programs were looked for.
        name: of a recipe.

    Raises:
        ImageError: ``image.program``: it lacks one.
        StoreError: it cannot be written.
    """
    reference = parse(name)
    manifest = msgspec.structs.replace(image.manifest, name=str(reference), origin=None, run=None)
    require_programs(manifest)
    directory = directory_of(paths, reference, manifest.architecture)
    with store.lock(lock_of(directory)), store.staging(paths.images, directory.name) as staged:
        os.link(image.root, staged / ROOT)
        store.write_record(staged / MANIFEST, manifest)
        store.publish(staged, directory)
    return load(directory)


def ensure(
    paths: Paths, name: str, *, architecture: str | None = None, mirror: str = "", emit: Emit = ignore
) -> Image:
    """The image that is here under ``name``, or else built now, if it is one that Atoll builds.

    Raises:
        ImageError: as ``find`` and ``build``; a damaged image is not replaced without being asked.
    """
    try:
        return find(paths, name, architecture=architecture)
    except ImageError as error:
        if error.code != "image.missing" or not is_recipe(name):
            raise
    return build(paths, name, architecture=architecture, mirror=mirror, emit=emit)


def installed(paths: Paths) -> list[Listed]:
    """All that is in the catalog, by name, damaged images with what is wrong."""
    if not os.path.isdir(paths.images):
        return []
    found: list[Listed] = []
    for directory in sorted(paths.images.iterdir()):
        if directory.is_dir() and not directory.name.startswith("."):
            try:
                found.append(Listed(directory, load(directory), None))
            except AtollError as error:
                found.append(Listed(directory, None, error))
    return found


def inspect(
    paths: Paths, name: str, *, architecture: str | None = None, default: str = HUB
) -> tuple[Image, erofs.Superblock]:
    """An image and its checked superblock.

    Raises:
        ImageError: as ``find``.
    """
    image = find(paths, name, architecture=architecture, default=default)
    return image, erofs.check_file(image.root)


def verify(image: Image) -> None:
    """Compare what an image consists of with its digests.

    Raises:
        ImageError: ``image.corrupt``: it differs or cannot be read.
    """
    if image.manifest.origin is not None:
        from atoll.image.oci import verifying  # noqa: PLC0415 - not on the way to a VM

        verifying.verify(image)
        return
    import hashlib  # noqa: PLC0415 - not on the way to a VM

    hint = rebuild_hint(image.manifest.name)
    try:
        with image.root.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"cannot read {image.root}: {error.strerror}", code="corrupt", hint=hint) from error
    if digest != image.manifest.digest:
        message = f"{image.root} is not what it was when it was built"
        raise ImageError(message, code="corrupt", hint=hint)


def remove(paths: Paths, name: str, *, architecture: str | None = None, default: str = HUB) -> None:
    """Remove an image, also a damaged one; one that has other references loses this one only.

    Machines, sandboxes and snapshots that use it have its root for themselves.

    Raises:
        ImageError: ``image.missing``: it is not here.
        StoreError: it cannot be removed.
    """
    machine = architecture or host_architecture()
    if is_own(name) and (directory := directory_of(paths, parse(name), machine)).is_dir():
        with store.lock(lock_of(directory)):
            _remove(directory)
        return
    reference = parse_reference(name, default=default).tagged()
    digest = _referred(paths, reference, machine)
    if not digest:
        raise ImageError(f"the image {name} is not here", code="missing", hint="see `atoll image ls`")
    directory = directory_by(paths, digest)
    with store.lock(lock_of(directory)):
        if not names.remove(paths, reference, machine):
            names.forget(paths, digest)  # it was named by its digest
        if not names.meaning(paths, digest):
            _remove(directory)


def _remove(directory: Path) -> None:
    try:
        store.remove_tree(directory)
    except OSError as error:
        raise StoreError(f"cannot remove {directory}: {error.strerror}", code="unwritable") from error
