"""Which image of this host a reference means: small records beside the images. Light.

A record is ``references/<registry>/<path of the repository>/<tag>+<architecture>.json``. An image without one
can be named by its digest only, until it is pruned.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.image.oci.reference import Reference, parse
from atoll.paths import Paths

__all__ = ["Name", "forget", "lookup", "meaning", "names", "point", "remove"]


class Name(msgspec.Struct, frozen=True, kw_only=True):
    """What a reference means on this host.

    Attributes:
        schema: version of this record.
        reference: canonical, with a tag.
        architecture: of the image, by uname(1)'s name.
        manifest: digest of its manifest.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    reference: str
    architecture: str
    manifest: str


def _file(paths: Paths, reference: Reference, architecture: str) -> Path:
    # No path of a repository has a plus sign in it, and no tag begins with an at sign.
    end = f"@{reference.digest}" if reference.digest else reference.tag
    return paths.references / reference.domain / reference.path / f"{end}+{architecture}.json"


def point(paths: Paths, reference: Reference, architecture: str, manifest: str) -> None:
    """Have ``reference`` mean the image with that manifest. Raises ``StoreError``: it cannot be written."""
    record = Name(reference=str(reference), architecture=architecture, manifest=manifest)
    store.write_record(_file(paths, reference, architecture), record)


def lookup(paths: Paths, reference: Reference, architecture: str) -> str:
    """The digest of the manifest that ``reference`` means; empty if it means nothing here."""
    try:
        return store.read_record(_file(paths, reference, architecture), Name).manifest
    except StoreError as error:
        if error.code != "store.missing":
            raise
        return ""


def names(paths: Paths) -> list[Name]:
    """All that there are, by reference; damaged ones are left out, and pulled or imported anew."""
    if not os.path.isdir(paths.references):
        return []
    found = []
    for file in paths.references.rglob("*+*.json"):
        try:
            found.append(store.read_record(file, Name))
        except StoreError:
            continue
    return sorted(found, key=lambda name: (name.reference, name.architecture))


def remove(paths: Paths, reference: Reference, architecture: str) -> bool:
    """Have ``reference`` mean nothing; whether it meant something."""
    file = _file(paths, reference, architecture)
    if not file.exists():
        return False
    file.unlink(missing_ok=True)
    store.sync_directory(file.parent)
    return True


def meaning(paths: Paths, manifest: str) -> list[Name]:
    """Those that mean the image with that manifest."""
    return [name for name in names(paths) if name.manifest == manifest]


def forget(paths: Paths, manifest: str) -> None:
    """Have no reference mean the image with that manifest."""
    for name in meaning(paths, manifest):
        remove(paths, parse(name.reference), name.architecture)
