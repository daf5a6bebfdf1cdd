"""OCI image layouts: which blobs are an image.

Source: the OCI image specification 1.1, "Image Layout". What is read here is compared with its digest; a
layer is compared by whoever reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from atoll.errors import ImageError
from atoll.image.local import naming
from atoll.image.local.files import Files, Part, content
from atoll.image.oci import documents
from atoll.image.oci.documents import Descriptor, Platform
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.refusing import refuse

__all__ = ["check_platform", "checked", "is_layout", "offered"]

_DEEPEST = 4


class _Version(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


def is_layout(files: Files) -> bool:
    """Whether these files are an image layout."""
    version = files.find("oci-layout")
    if version is None or files.find("index.json") is None:
        return False
    try:
        msgspec.json.decode(content(version, "oci-layout"), type=_Version)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def offered(files: Files, *, platform: Platform, name: str = "") -> Offered:
    """The image of a layout.

    Args:
        files: the layout's.
        platform: which is taken where there are several of the same name.
        name: of the image, or its digest; empty if there is only one.

    Raises:
        ImageError: ``image.archive``: a blob is missing or differs; ``image.several`` and ``image.unknown``:
            the name is needed, or wrong; ``image.platform``: it does not exist for that platform.
    """
    part = files.find("index.json")
    assert part is not None, "asked of is_layout"
    listed = documents.index_of(content(part, "index.json")).manifests
    found = _named(listed, name)
    same = [one for one in listed if one.digest in {each.digest for each in found}]
    names = tuple(
        dict.fromkeys(filter(None, (naming.full(each) for one in same for each in _full_names(one))))
    )
    index_digest = ""
    for _ in range(_DEEPEST):
        indexes = [one for one in found if one.media_type in documents.INDEXES]
        chosen = indexes[0] if len(indexes) == len(found) == 1 else documents.choose(found, platform)
        data = _document(files, chosen)
        if chosen.media_type not in documents.INDEXES:
            return _image(files, data, platform, names=names, index_digest=index_digest)
        index_digest = index_digest or chosen.digest
        found = documents.index_of(data).manifests
    raise refuse("the image's index leads to no manifest")


def _named(manifests: Sequence[Descriptor], name: str) -> tuple[Descriptor, ...]:
    """The descriptors of one image: one, or one for each platform."""
    labels = {_label(one) for one in manifests}
    found = [one for one in manifests if not name or naming.matches(name, _names(one), one.digest)]
    if name and not found:
        raise naming.unknown(name, filter(None, labels))
    different = tuple({one.digest: one for one in found}.values())
    if not name and len(labels) > 1 and len(different) > 1:
        raise naming.several(_label(one) or one.digest for one in manifests)
    return different


def _names(descriptor: Descriptor) -> tuple[str, ...]:
    notes = descriptor.annotations or {}
    return tuple(filter(None, (notes.get(naming.FULL_NAME), notes.get(naming.REF_NAME))))


def _label(descriptor: Descriptor) -> str:
    return next(iter(_names(descriptor)), "")


def _full_names(descriptor: Descriptor) -> tuple[str, ...]:
    """Its names but those that are a tag alone."""
    return tuple(name for name in _names(descriptor) if "/" in name or ":" in name)


def _document(files: Files, descriptor: Descriptor) -> bytes:
    return checked(content(_blob(files, descriptor), descriptor.digest), descriptor.digest)


def checked(data: bytes, digest: str) -> bytes:
    """``data``. Raises ``ImageError``: ``image.archive``: it is not what its digest says."""
    algorithm, _, value = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != value:
        raise refuse(f"the blob {digest} is not what its digest says", hint="get the image again")
    return data


def _blob(files: Files, descriptor: Descriptor) -> Part:
    part = files.find(f"blobs/{descriptor.digest.replace(':', '/')}")
    if part is None:
        raise refuse(f"the layout lacks the blob {descriptor.digest}", hint="get the image again")
    if part.size != descriptor.size:
        message = f"the blob {descriptor.digest} has {part.size} bytes, not {descriptor.size}"
        raise refuse(message, hint="get the image again")
    return part


def _image(
    files: Files, data: bytes, platform: Platform, *, names: tuple[str, ...], index_digest: str
) -> Offered:
    manifest = documents.manifest_of(data)
    text = _document(files, manifest.config)
    config = documents.config_of(text)
    check_platform(config, platform)
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        message = f"the image has {len(manifest.layers)} layers, and names {len(config.rootfs.diff_ids)}"
        raise refuse(message)
    layers = []
    for layer, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
        part = _blob(files, layer)
        layers.append(
            LayerSource(
                open=part.open,
                digest=layer.digest,
                size=part.size,
                media_type=layer.media_type,
                diff_id=diff_id,
            )
        )
    return Offered(layers=tuple(layers), config=text, manifest=data, index_digest=index_digest, names=names)


def check_platform(config: documents.ImageConfig, platform: Platform) -> None:
    """Refuse an image for another platform. Raises ``ImageError``: ``image.platform``."""
    own = Platform(config.architecture, config.os, config.variant)
    if own.architecture and (own.os, own.architecture) != (platform.os, platform.architecture):
        hint = f"it is for {own}: take it with --platform {own}"
        raise ImageError(f"the image does not exist for {platform}", code="platform", hint=hint)
