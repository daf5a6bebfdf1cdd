"""Which of several images of an archive a user means. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.errors import ImageError
from atoll.image.oci.reference import parse

__all__ = ["FULL_NAME", "REF_NAME", "full", "matches", "several", "unknown"]

#: Annotations that name an image in an index: the specification's, and containerd's, which is never short.
REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"

_SHOWN = 20


def full(name: str) -> str:
    """The canonical reference that ``name`` is short for; empty if it is none."""
    try:
        return str(parse(name).tagged())
    except ImageError:
        return ""


def matches(wanted: str, names: Iterable[str], digest: str) -> bool:
    """Whether an image is meant: by a name that it has, or by its digest, which may be shortened."""
    known = tuple(names)
    if wanted in known or (full(wanted) and full(wanted) in map(full, known)):
        return True
    short = wanted.removeprefix("sha256:")
    return len(short) >= 12 and digest.removeprefix("sha256:").startswith(short)


def several(labels: Iterable[str]) -> ImageError:
    """The error for an archive with several images, of which none was chosen."""
    hint = f"choose one with --name: {_listed(labels)}"
    return ImageError("the archive has several images", code="several", hint=hint)


def unknown(wanted: str, labels: Iterable[str]) -> ImageError:
    """The error for an archive without the image that was asked for."""
    hint = f"it has {_listed(labels)}"
    return ImageError(f"the archive has no image {wanted!r}", code="unknown", hint=hint)


def _listed(labels: Iterable[str]) -> str:
    named = sorted(set(labels))
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return (", ".join(named[:_SHOWN]) or "no image with a name") + more
