"""An image on disk: its record, and whether it is whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import AtollError, ImageError, StoreError
from atoll.image import erofs
from atoll.image.oci.record import Origin
from atoll.image.oci.runconfig import RunConfig
from atoll.image.programs import Program
from atoll.image.recipes import RECIPES

__all__ = [
    "MANIFEST",
    "ROOT",
    "USED",
    "Image",
    "ImageManifest",
    "InstalledPackage",
    "Listed",
    "load",
    "rebuild_hint",
    "touch",
]

#: Names of an image's record and of its root, in its directory; the date of the last is when it was used.
MANIFEST, ROOT, USED = "manifest.json", "root.erofs", "used"


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
        origin: where it is from, if it consists of layers. Its digest then is ``origin.system``, unless
            programs were looked for in it.
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
    origin: Origin | None = None


class Image(msgspec.Struct, frozen=True):
    """A root image on disk, ready to boot."""

    directory: Path
    manifest: ImageManifest

    @property
    def root(self) -> Path:
        """The EROFS."""
        return self.directory / ROOT


class Listed(msgspec.Struct, frozen=True):
    """A directory of the catalog: an image, or what is wrong with it."""

    directory: Path
    image: Image | None
    error: AtollError | None


def rebuild_hint(reference: object) -> str:
    """What brings an image again."""
    if str(reference).partition(":")[0] not in RECIPES:
        return f"get it again with `atoll image pull {reference}` or `atoll image import FILE {reference}`"
    return f"build it again with `atoll image build --force {reference}`"


def load(directory: Path) -> Image:
    """The image in ``directory``, its root being whole as far as size and superblock tell (0.1 ms).

    Raises:
        StoreError: ``store.missing``: there is none.
        ImageError: ``image.corrupt``: its manifest or root is damaged, or of a newer Atoll.
    """
    try:
        manifest = store.read_record(directory / MANIFEST, ImageManifest)
    except StoreError as error:
        if error.code != "store.corrupt":
            raise
        hint = rebuild_hint(_reference_of(directory))
        raise ImageError(error.message, code="corrupt", hint=hint) from error
    image = Image(directory, manifest)
    hint = rebuild_hint(manifest.name)
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


def touch(image: Image) -> None:
    """Note that an image is used now."""
    with contextlib.suppress(OSError):  # a note that cannot be made is no reason not to use it
        (image.directory / USED).touch()
