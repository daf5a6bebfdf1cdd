"""The documents of an image: index, manifest and configuration, read strictly and within limits. Pure.

Source: the OCI image specification 1.1 ("Content Descriptors", "Image Index", "Image Manifest", "Image
Configuration") and Docker's "Image Manifest V 2, Schema 2", whose documents have the same fields.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from atoll.errors import ImageError
from atoll.image.architectures import PACKAGED
from atoll.image.oci.runconfig import RunConfig
from atoll.image.refusing import refuse

__all__ = [
    "CONFIG",
    "INDEX",
    "INDEXES",
    "LAYER",
    "LAYER_GZIP",
    "LAYER_ZSTD",
    "MANIFEST",
    "MANIFESTS",
    "MOST_JSON",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "RootFs",
    "check_digest",
    "choose",
    "config_of",
    "digest_of",
    "encode",
    "index_of",
    "manifest_of",
    "parse_platform",
    "platform_of",
]

#: Media types.
INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = f"{LAYER}+gzip"
LAYER_ZSTD: Final = f"{LAYER}+zstd"

#: What is an index, and what a manifest, of either origin.
INDEXES: Final = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS: Final = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")

#: Bytes of a document at most, as registries have it.
MOST_JSON: Final = 4 << 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_MOST_LAYERS = 1024

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an image runs on; architectures have Go's names.

    Attributes:
        architecture: ``amd64``.
        os: ``linux``.
        variant: of the architecture, such as ``v8``; empty where it has none.
    """

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob by its digest.

    Attributes:
        media_type: what it is.
        digest: ``sha256:HEX``; see ``check_digest``.
        size: bytes.
        annotations: by name; ``org.opencontainers.image.ref.name`` is its name in a layout.
        platform: of an image in an index; None if it does not say.
    """

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Several images under one name, most often one for each platform."""

    schema_version: int
    media_type: str = ""
    manifests: tuple[Descriptor, ...] = ()


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One image: its configuration, and its layers, the lowest first."""

    schema_version: int
    media_type: str = ""
    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    annotations: dict[str, str] | None = None


class RootFs(msgspec.Struct, frozen=True, omit_defaults=True):
    """The layers' digests without compression, the lowest first."""

    type: str
    diff_ids: tuple[str, ...] = ()


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a layer came to be; with ``empty_layer`` there is none of it."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An image's configuration, whose digest is the image's id."""

    architecture: str
    os: str
    variant: str = ""
    created: str | None = None
    author: str = ""
    config: RunConfig | None = None
    rootfs: RootFs
    history: tuple[History, ...] | None = None


def digest_of(data: bytes) -> str:
    """The sha256 of some bytes as a digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(digest: str) -> str:
    """``digest``, which then is safe as a part of a path. Raises ``ImageError``: ``image.archive``."""
    if not _DIGEST.fullmatch(digest):
        raise refuse(f"{digest[:80]!r} is no digest of sha256 or sha512")
    return digest


def encode(document: msgspec.Struct) -> bytes:
    """A document as JSON: the same bytes for the same content."""
    return msgspec.json.encode(document, order="deterministic")


def index_of(data: bytes) -> Index:
    """The index in ``data``. Raises ``ImageError``: ``image.archive``: it is none."""
    index = _decoded(data, Index, "index")
    for found in index.manifests:
        _check(found)
    return index


def manifest_of(data: bytes) -> Manifest:
    """The manifest in ``data``. Raises ``ImageError``: ``image.archive``: it is none."""
    manifest = _decoded(data, Manifest, "manifest")
    if len(manifest.layers) > _MOST_LAYERS:
        raise refuse(f"the image has {len(manifest.layers)} layers")
    for found in (manifest.config, *manifest.layers):
        _check(found)
    return manifest


def config_of(data: bytes) -> ImageConfig:
    """The configuration in ``data``.

    Raises:
        ImageError: ``image.archive``: it is none, or of another system than Linux.
    """
    config = _decoded(data, ImageConfig, "configuration")
    if config.os != "linux":
        raise refuse(f"the image is for {config.os[:40] or 'no system'}, not for linux")
    for digest in config.rootfs.diff_ids:
        check_digest(digest)
    return config


def _check(descriptor: Descriptor) -> None:
    check_digest(descriptor.digest)
    if descriptor.size < 0:
        raise refuse(f"the blob {descriptor.digest} has {descriptor.size} bytes")


def _decoded(data: bytes, kind: type[T], name: str) -> T:
    if len(data) > MOST_JSON:
        raise refuse(f"the image's {name} has {len(data)} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(f"the image's {name} cannot be read: {error}") from error


def platform_of(architecture: str) -> Platform:
    """The platform of guests of an architecture, by uname(1)'s name of that."""
    return Platform(PACKAGED.get(architecture, architecture), "linux")


def parse_platform(text: str) -> Platform:
    """The platform that ``linux/arm64``, ``linux/arm64/v8`` or ``arm64`` means.

    Raises:
        ImageError: ``image.platform``: it is malformed, or not of Linux.
    """
    names = {**PACKAGED, **{name: name for name in PACKAGED.values()}}
    parts = text.lower().split("/")
    system, architecture, *variant = parts if len(parts) > 1 else ("linux", *parts)
    if system != "linux" or architecture not in names or len(variant) > 1:
        hint = "write linux/amd64 or linux/arm64"
        raise ImageError(f"{text!r} is no platform that Atoll can run", code="platform", hint=hint)
    return Platform(names[architecture], system, *variant)


def choose(manifests: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """The image for a platform: one that names it, else the only one that names none.

    Raises:
        ImageError: ``image.platform``: there is none.
    """
    images = [found for found in manifests if found.media_type not in INDEXES and not _is_attestation(found)]
    fitting = [found for found in images if found.platform is not None and _fits(found.platform, wanted)]
    exact = [found for found in fitting if found.platform is not None and _same(found.platform, wanted)]
    unnamed = [found for found in images if found.platform is None]
    for candidates in (exact, fitting, unnamed if len(unnamed) == 1 else []):
        if candidates:
            return candidates[0]
    there = sorted({str(found.platform) for found in images if found.platform is not None})
    hint = f"it has {', '.join(there)}: choose one with --platform" if there else "it names no platforms"
    raise ImageError(f"the image does not exist for {wanted}", code="platform", hint=hint)


def _is_attestation(descriptor: Descriptor) -> bool:
    """Whether it is what builders put beside images, with a platform that does not exist."""
    return descriptor.platform is not None and descriptor.platform.os == "unknown"


def _fits(platform: Platform, wanted: Platform) -> bool:
    same = (platform.os, platform.architecture) == (wanted.os, wanted.architecture)
    return same and (not wanted.variant or platform.variant in {"", wanted.variant})


def _same(platform: Platform, wanted: Platform) -> bool:
    """Of several variants the one that is asked for, or else the plainest that any CPU has."""
    plain = {"amd64": {"", "v1"}, "arm64": {"", "v8"}}.get(wanted.architecture, {""})
    return platform.variant == wanted.variant or (not wanted.variant and platform.variant in plain)
