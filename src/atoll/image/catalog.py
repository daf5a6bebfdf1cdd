"""The root images on this host: found by name, built on first use, checked, removed.

An image is a directory ``images/<name>+<tag>+<architecture>/`` with ``root.erofs``, the read-only root that
all machines of the image share, and ``manifest.json``, the `ImageManifest` record, written last.
"""

from __future__ import annotations

import contextlib
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import AtollError, ImageError, StoreError
from atoll.events import Emit, ignore
from atoll.image import engine, erofs
from atoll.image.kernel import host_architecture
from atoll.image.oci.runconfig import RunConfig
from atoll.image.programs import Program, wanting
from atoll.paths import Paths

__all__ = [
    "RECIPES",
    "Flavour",
    "Image",
    "ImageManifest",
    "InstalledPackage",
    "Listed",
    "Recipe",
    "Reference",
    "build",
    "directory_of",
    "ensure",
    "find",
    "import_rootfs",
    "inspect",
    "installed",
    "load",
    "lock_of",
    "parse",
    "remove",
    "require_programs",
    "verify",
]

_MANIFEST = "manifest.json"
_ROOT = "root.erofs"
_PART = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


class InstalledPackage(msgspec.Struct, frozen=True, kw_only=True):
    """One package in an image."""

    name: str
    version: str
    architecture: str


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is.

    Attributes:
        schema: version of this record.
        name: canonical, with its tag: ``debian:trixie``.
        architecture: ``x86_64`` or ``aarch64``.
        distribution: ``debian``; of an imported one what its os-release(5) says.
        suite: of the distribution.
        digest: sha256 of the root.
        size: of the root, in bytes.
        created: seconds since the epoch.
        packages: what is installed, by name.
        tools: versions of the programs that built it.
        shell: what runs where no command is given.
        init: path of the program that can be process 1; "" if it has none.
        programs: what was found of the programs that an image of this name must have, or may.
        run: how it wants to be run; None for an image that says nothing of it.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    name: str
    architecture: str
    distribution: str
    suite: str
    digest: str
    size: int
    created: float
    packages: tuple[InstalledPackage, ...] = ()
    tools: dict[str, str] = {}
    shell: str = "/bin/bash"
    init: str = ""
    programs: tuple[Program, ...] = ()
    run: RunConfig | None = None


class Flavour(StrEnum):
    """What an image is for: throw-away VMs, machines with systemd, or the machine of Docker's engine."""

    PLAIN = "plain"
    MACHINE = "machine"
    ENGINE = "engine"


class Recipe(msgspec.Struct, frozen=True):
    """An image that Atoll can build.

    Attributes:
        default: the tag that is meant where none is given.
        tags: tags known to work; others are tried.
        about: one line for a list.
        distribution: ``debian`` or ``ubuntu``.
        flavour: what it is for.
        programs: which must be in it. An image with such may also be imported under the recipe's name.
        optional: programs that are looked for and noted, too.
    """

    default: str
    tags: tuple[str, ...]
    about: str
    distribution: str = "debian"
    flavour: Flavour = Flavour.PLAIN
    programs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_DEBIAN = ("trixie", "bookworm")
_UBUNTU = ("noble", "jammy")

RECIPES = {
    "debian": Recipe("trixie", _DEBIAN, "Debian with apt, bash, curl, iproute2 and procps"),
    "debian-machine": Recipe(
        "trixie", _DEBIAN, "the same with systemd, sshd and sudo", flavour=Flavour.MACHINE
    ),
    "ubuntu": Recipe("noble", _UBUNTU, "Ubuntu, as debian", distribution="ubuntu"),
    "ubuntu-machine": Recipe(
        "noble", _UBUNTU, "Ubuntu, as debian-machine", distribution="ubuntu", flavour=Flavour.MACHINE
    ),
    "engine": Recipe(
        "trixie",
        ("trixie",),
        "Docker's engine with containerd and runc, for `atoll docker`",
        flavour=Flavour.ENGINE,
        programs=engine.REQUIRED,
        optional=engine.OPTIONAL,
    ),
}


class Reference(msgspec.Struct, frozen=True):
    """The name of an image, complete and safe as the name of a directory."""

    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


class Image(msgspec.Struct, frozen=True):
    """A root image on disk, ready to boot."""

    directory: Path
    manifest: ImageManifest

    @property
    def root(self) -> Path:
        """The EROFS."""
        return self.directory / _ROOT


class Listed(msgspec.Struct, frozen=True):
    """A directory of the catalog: an image, or what is wrong with it."""

    directory: Path
    image: Image | None
    error: AtollError | None


def parse(name: str) -> Reference:
    """The image that ``debian`` or ``debian:bookworm`` means.

    Raises:
        ImageError: ``image.name``: it is malformed.
    """
    first, colon, tag = name.partition(":")
    if not colon and first in RECIPES:
        tag = RECIPES[first].default
    elif not colon and _PART.fullmatch(first):
        tag = "latest"
    if not _PART.fullmatch(first) or not _PART.fullmatch(tag) or ".." in name:
        hint = "a name is NAME or NAME:TAG of lower-case letters, digits, dots and dashes, as debian:bookworm"
        raise ImageError(f"{name!r} is no name of an image", code="name", hint=hint)
    return Reference(first, tag)


def directory_of(paths: Paths, reference: Reference, architecture: str) -> Path:
    """Where an image is kept."""
    return paths.image(f"{reference.name}+{reference.tag}+{architecture}")


def lock_of(directory: Path) -> Path:
    """The lock that builders and removers of the image in ``directory`` hold."""
    return directory.with_name(f".{directory.name}.lock")


def _rebuild_hint(reference: object) -> str:
    if str(reference).partition(":")[0] not in RECIPES:
        return f"import it again with `atoll image import FILE {reference}`"
    return f"build it again with `atoll image build --force {reference}`"


def load(directory: Path) -> Image:
    """The image in ``directory``, its root being whole as far as size and superblock tell (0.1 ms).

    Raises:
        StoreError: ``store.missing``: there is none.
        ImageError: ``image.corrupt``: its manifest or root is damaged, or of a newer Atoll.
    """
    try:
        manifest = store.read_record(directory / _MANIFEST, ImageManifest)
    except StoreError as error:
        if error.code != "store.corrupt":
            raise
        hint = _rebuild_hint(_reference_of(directory))
        raise ImageError(error.message, code="corrupt", hint=hint) from error
    image = Image(directory, manifest)
    hint = _rebuild_hint(manifest.name)
    try:
        erofs.check_file(image.root, checksum=False)
    except ImageError as error:
        raise ImageError(error.message, code="corrupt", hint=hint) from error
    size = os.stat(image.root).st_size
    if size != manifest.size:
        raise ImageError(f"{image.root} has {size} of {manifest.size} bytes", code="corrupt", hint=hint)
    return image


def _reference_of(directory: Path) -> str:
    return ":".join(directory.name.split("+")[:2])


def find(paths: Paths, name: str, *, architecture: str | None = None) -> Image:
    """The image that is here under ``name``.

    Raises:
        ImageError: ``image.unknown``: nothing of that name is here or can be built. ``image.missing``: it can
            be built but is not here. ``image.corrupt``: it is here but damaged. ``image.name``: malformed.
    """
    reference = parse(name)
    machine = architecture or host_architecture()
    directory = directory_of(paths, reference, machine)
    try:
        return load(directory)
    except StoreError as error:
        if error.code != "store.missing":
            raise
    if directory.is_dir():
        with contextlib.suppress(StoreError):  # it may have come meanwhile, and then whole
            return load(directory)
        message = f"the image {reference} is incomplete: it has no {_MANIFEST}"
        raise ImageError(message, code="corrupt", hint=_rebuild_hint(reference))
    if reference.name in RECIPES:
        hint = f"build it with `atoll image build {reference}`"
        raise ImageError(f"the image {reference} ({machine}) is not here", code="missing", hint=hint)
    raise _unknown(paths, name)


def _unknown(paths: Paths, name: str) -> ImageError:
    known = {listed.image.manifest.name for listed in installed(paths) if listed.image is not None}
    buildable = {f"{first}:{tag}" for first, recipe in RECIPES.items() for tag in recipe.tags}
    choices = sorted({*known, *buildable, *RECIPES})
    import difflib  # noqa: PLC0415 - for this error only

    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ImageError(
        f"there is no image {name}", code="unknown", hint=f"{hint}known images: {', '.join(choices)}"
    )


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
        raise _unknown(paths, name)
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
                staged / _ROOT,
                name=str(reference),
                suite=reference.tag,
                architecture=machine,
                recipe=RECIPES[reference.name],
                mirror=mirror,
                emit=emit,
            )
            require_programs(manifest)
            store.write_record(staged / _MANIFEST, manifest)
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
            hint=_rebuild_hint(manifest.name),
        )


def import_rootfs(paths: Paths, file: Path, name: str, *, emit: Emit = ignore) -> Image:
    """Make an image of a root file system that another program made; an image of that name is replaced.

    Args:
        paths: where images are kept.
        file: a tar of a root file system or of an OCI image layout; plain, or compressed by gzip, xz or zstd.
        name: ``NAME`` or ``NAME:TAG``; of those that Atoll builds itself only such of which it knows what
            must be in them, as ``engine``.
        emit: told of progress.

    Raises:
        ImageError: ``image.name``; ``image.missing``: there is no such file; ``image.archive``: it is
            damaged, too large, or names what lies outside of it; ``image.program``: it lacks one that an
            image of that name must have; ``image.build``.
        PreflightError: a program or a permission is missing.
        StoreError: ``store.full``, or the place for images cannot be written.
    """
    reference = parse(name)
    recipe = RECIPES.get(reference.name)
    if recipe is not None and not recipe.programs:
        hint = "choose another; this one is for images that Atoll builds"
        raise ImageError(f"{name!r} cannot be imported", code="name", hint=hint)
    from atoll.image import rootfs  # noqa: PLC0415 - an image that is here must cost no import

    native = host_architecture()
    place = directory_of(paths, reference, "import")  # the architecture is known when the file has been read
    with store.lock(lock_of(place)), store.staging(paths.images, place.name) as staged:
        manifest = rootfs.build(
            staged / _ROOT,
            file,
            name=str(reference),
            architecture=native,
            tag=reference.tag,
            programs=(*recipe.programs, *recipe.optional) if recipe is not None else (),
            emit=emit,
        )
        require_programs(manifest)
        store.write_record(staged / _MANIFEST, manifest)
        directory = directory_of(paths, reference, manifest.architecture)
        with store.lock(lock_of(directory)):
            store.publish(staged, directory)
    return load(directory)


def ensure(
    paths: Paths, name: str, *, architecture: str | None = None, mirror: str = "", emit: Emit = ignore
) -> Image:
    """The image that is here under ``name``, or else built now.

    Raises:
        ImageError: as ``find`` and ``build``; a damaged image is not replaced without being asked.
    """
    try:
        return find(paths, name, architecture=architecture)
    except ImageError as error:
        if error.code != "image.missing":
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


def inspect(paths: Paths, name: str, *, architecture: str | None = None) -> tuple[Image, erofs.Superblock]:
    """An image and its checked superblock.

    Raises:
        ImageError: as ``find``.
    """
    image = find(paths, name, architecture=architecture)
    return image, erofs.check_file(image.root)


def verify(image: Image) -> None:
    """Compare an image's root with its digest.

    Raises:
        ImageError: ``image.corrupt``: it differs or cannot be read.
    """
    import hashlib  # noqa: PLC0415 - not on the way to a VM

    hint = _rebuild_hint(image.manifest.name)
    try:
        with image.root.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"cannot read {image.root}: {error.strerror}", code="corrupt", hint=hint) from error
    if digest != image.manifest.digest:
        message = f"{image.root} is not what it was when it was built"
        raise ImageError(message, code="corrupt", hint=hint)


def remove(paths: Paths, name: str, *, architecture: str | None = None) -> None:
    """Remove an image, also a damaged one. That no machine uses it is for the caller to see to.

    Raises:
        ImageError: ``image.missing``: it is not here.
        StoreError: it cannot be removed.
    """
    reference = parse(name)
    directory = directory_of(paths, reference, architecture or host_architecture())
    if not directory.is_dir():
        raise ImageError(f"the image {reference} is not here", code="missing", hint="see `atoll image ls`")
    with store.lock(lock_of(directory)):
        try:
            store.remove_tree(directory)
        except OSError as error:
            raise StoreError(f"cannot remove {directory}: {error.strerror}", code="unwritable") from error
