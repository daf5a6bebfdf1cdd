"""OCI image layouts: which blobs are the layers of an image, each compared with its digest.

Source: the OCI image specification, "Image Layout", "Image Index" and "Image Manifest".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

from atoll.image.architectures import PACKAGED
from atoll.image.archive import CHUNK
from atoll.image.refusing import refuse

__all__ = ["Span", "View", "is_layout", "layers_of"]

_MOST_JSON = 4 << 20
_DEEPEST = 3


class Span(msgspec.Struct, frozen=True):
    """Where a file of the archive lies in it."""

    offset: int
    size: int


class _Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""


class _Descriptor(msgspec.Struct, frozen=True):
    digest: str
    size: int
    platform: _Platform | None = None


class _Document(msgspec.Struct, frozen=True):
    """An index, which has ``manifests``, or a manifest, which has ``layers``."""

    manifests: tuple[_Descriptor, ...] | None = None
    layers: tuple[_Descriptor, ...] | None = None


class View:
    """A part of a file as a stream."""

    def __init__(self, path: Path, span: Span) -> None:
        self._file = path.open("rb")
        self._file.seek(span.offset)
        self._left = span.size
        self._span = span

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def seek(self, offset: int) -> None:
        """Go to ``offset`` of the part."""
        self._file.seek(self._span.offset + offset)
        self._left = self._span.size - offset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()


def is_layout(files: Mapping[str, Span]) -> bool:
    """Whether an archive with these files is an image layout."""
    return "oci-layout" in files and "index.json" in files


def layers_of(path: Path, files: Mapping[str, Span], architecture: str) -> tuple[Span, ...]:
    """The layers of the image for ``architecture``, the lowest first, each with the digest it should have.

    Args:
        path: the layout as a tar.
        files: its files by their path.
        architecture: which image is meant where there are several.

    Raises:
        ImageError: ``image.archive``: a blob is missing or differs, or there is no such image.
    """
    document = _decode(_content(path, files["index.json"]), "index.json")
    for _ in range(_DEEPEST):
        if document.layers is not None:
            return tuple(_blob(path, files, layer) for layer in document.layers)
        chosen = _choose(document.manifests or (), architecture)
        document = _decode(_content(path, _blob(path, files, chosen)), chosen.digest)
    raise refuse("the image's index leads to no manifest")


def _choose(manifests: tuple[_Descriptor, ...], architecture: str) -> _Descriptor:
    wanted = PACKAGED.get(architecture, architecture)
    images = [item for item in manifests if item.platform is None or item.platform.os != "unknown"]
    fitting = [item for item in images if item.platform is not None and item.platform.architecture == wanted]
    candidates = fitting or [item for item in images if item.platform is None]
    if len(candidates) != 1:
        found = ", ".join(item.platform.architecture for item in images if item.platform) or "none named"
        message = f"the layout has {len(candidates)} images for {wanted}, not one (architectures: {found})"
        raise refuse(message, hint="export one image, of one architecture")
    return candidates[0]


def _blob(path: Path, files: Mapping[str, Span], descriptor: _Descriptor) -> Span:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", descriptor.digest):
        raise refuse(f"the digest {descriptor.digest[:80]!r} is no sha256")
    span = files.get(f"blobs/{descriptor.digest.replace(':', '/')}")
    if span is None:
        raise refuse(f"the layout lacks the blob {descriptor.digest}")
    digest = hashlib.sha256()
    with View(path, span) as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    if span.size != descriptor.size or digest.hexdigest() != descriptor.digest.partition(":")[2]:
        raise refuse(f"the blob {descriptor.digest} is not what its digest says", hint="export it again")
    return span


def _content(path: Path, span: Span) -> bytes:
    if span.size > _MOST_JSON:
        raise refuse(f"the layout has a description of {span.size} bytes")
    with View(path, span) as stream:
        return stream.read()


def _decode(data: bytes, name: str) -> _Document:
    try:
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise refuse(f"{name} is no index and no manifest: {error}") from error
