"""Which of several images of an archive a user means. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from atoll.errors import ImageError

__all__ = ["FULL_NAME", "REF_NAME", "familiar", "full", "matches", "several", "tag_of", "unknown"]

#: Annotations that name an image in an index: the specification's, and containerd's, which is never short.
REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"

_HUB = "docker.io/"
_OFFICIAL = f"{_HUB}library/"
_SHOWN = 20


def full(name: str) -> str:
    """A reference with its registry and its tag: ``docker.io/library/debian:latest`` for ``debian``."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"{_OFFICIAL}{name}"
    elif not ("." in first or ":" in first or first == "localhost"):
        name = f"{_HUB}{name}"
    last = name.rpartition("/")[2]
    return name if ":" in last or "@" in last else f"{name}:latest"


def familiar(name: str) -> str:
    """A full reference as people write it: ``debian:12``."""
    for start in (_OFFICIAL, _HUB):
        if name.startswith(start):
            return name.removeprefix(start)
    return name


def tag_of(name: str) -> str:
    """The tag of a full reference."""
    return name.rpartition("/")[2].partition("@")[0].partition(":")[2] or "latest"


def matches(wanted: str, names: Iterable[str], digest: str) -> bool:
    """Whether an image is meant: by a name that it has, or by its digest, which may be shortened."""
    known = tuple(names)
    if wanted in known or (full(wanted) in map(full, known)):
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
