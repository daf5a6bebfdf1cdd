"""The archives of ``docker save``: those that have a ``manifest.json``, and those before Docker 1.10.

Source: the Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset Format", and 1.0,
"Combined Image JSON + Filesystem Changeset Format" with its ``repositories``.
"""

from __future__ import annotations

import hashlib
import re
from typing import TypeVar

import msgspec

from atoll.image.decompressing import CHUNK
from atoll.image.local import naming
from atoll.image.local.files import Files, Part, content
from atoll.image.local.layout import check_platform, checked
from atoll.image.oci import documents
from atoll.image.oci.documents import ImageConfig, Platform, RootFs
from atoll.image.oci.runconfig import RunConfig
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.refusing import refuse

__all__ = ["is_saved", "offered"]

_HEX = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"blobs/(sha256)/([0-9a-f]{64})")
_MOST_LAYERS = 1024

T = TypeVar("T")


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """An image in ``manifest.json``."""

    config: str
    layers: tuple[str, ...] | None = None
    repo_tags: tuple[str, ...] | None = None


class _Old(msgspec.Struct, frozen=True):
    """A layer's ``json``, as it was before images had a configuration of their own."""

    id: str
    parent: str = ""
    created: str | None = None
    author: str = ""
    architecture: str = ""
    os: str = "linux"
    config: RunConfig | None = None


_Repositories = dict[str, dict[str, str]]


def _decoded(files: Files, path: str, kind: type[T]) -> T | None:
    part = files.find(path)
    if part is None:
        return None
    try:
        return msgspec.json.decode(content(part, path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_saved(files: Files) -> bool:
    """Whether these files are what ``docker save`` writes; other files may be called as those of it."""
    if files.find("manifest.json") is not None:
        return bool(_decoded(files, "manifest.json", tuple[_Saved, ...]))
    return bool(_decoded(files, "repositories", _Repositories))


def offered(files: Files, *, platform: Platform, name: str = "") -> Offered:
    """The image of an archive; arguments and errors as those of ``layout.offered``."""
    images = _decoded(files, "manifest.json", tuple[_Saved, ...])
    if images is None:
        return _old(files, platform=platform, name=name)
    image = _named(images, name)
    part = files.find(image.config)
    if part is None:
        raise refuse(f"the archive lacks {image.config[:100]!r}", hint="save the image again")
    text = content(part, image.config[:100])
    stem = image.config.rpartition("/")[2].removesuffix(".json")
    if _HEX.fullmatch(stem):
        checked(text, f"sha256:{stem}")
    config = documents.config_of(text)
    check_platform(config, platform)
    paths = image.layers or ()
    if len(config.rootfs.diff_ids) != len(paths):
        raise refuse(f"the image has {len(paths)} layers, and names {len(config.rootfs.diff_ids)}")
    layers = tuple(_layer(files, *each) for each in zip(paths, config.rootfs.diff_ids, strict=True))
    names = tuple(filter(None, map(naming.full, image.repo_tags or ())))
    return Offered(layers=layers, config=text, names=names)


def _named(images: tuple[_Saved, ...], name: str) -> _Saved:
    labels = [tag for image in images for tag in image.repo_tags or (_identity(image),)]
    if name:
        found = [one for one in images if naming.matches(name, one.repo_tags or (), _identity(one))]
        if not found:
            raise naming.unknown(name, labels)
        return found[0]
    if len(images) > 1:
        raise naming.several(labels)
    return images[0]


def _identity(image: _Saved) -> str:
    return image.config.rpartition("/")[2].removesuffix(".json")


def _layer(files: Files, path: str, diff_id: str) -> LayerSource:
    part = files.find(path)
    if part is None:
        raise refuse(f"the archive lacks {path[:100]!r}", hint="save the image again")
    blob = _BLOB.fullmatch(path)
    digest = ":".join(blob.groups()) if blob else ""
    return LayerSource(open=part.open, digest=digest, size=part.size, diff_id=diff_id)


def _old(files: Files, *, platform: Platform, name: str) -> Offered:
    """An image of before Docker 1.10: each layer names the one below it, and nobody has their digests."""
    listed = _decoded(files, "repositories", _Repositories) or {}
    tags = {f"{place}:{tag}": layer for place, its in listed.items() for tag, layer in its.items()}
    chosen = {tag: layer for tag, layer in tags.items() if not name or naming.matches(name, (tag,), layer)}
    if not chosen:
        raise naming.unknown(name, tags)
    if len(set(chosen.values())) > 1:
        raise naming.several(chosen)
    names = tuple(filter(None, map(naming.full, chosen)))
    chain = _chain(files, next(iter(chosen.values())))
    parts = [_old_part(files, one.id) for one in chain]
    diff_ids = tuple(map(_digest, parts))
    top = chain[-1]
    config = ImageConfig(
        architecture=top.architecture,
        os=top.os,
        created=top.created,
        author=top.author,
        config=top.config,
        rootfs=RootFs("layers", diff_ids),
    )
    check_platform(config, platform)
    layers = tuple(
        LayerSource(open=part.open, size=part.size, diff_id=diff_id)
        for part, diff_id in zip(parts, diff_ids, strict=True)
    )
    return Offered(layers=layers, config=documents.encode(config), names=names)


def _chain(files: Files, top: str) -> list[_Old]:
    """What the layers say of themselves, the lowest first."""
    chain: list[_Old] = []
    wanted = top
    while wanted:
        found = _decoded(files, f"{wanted}/json", _Old) if _HEX.fullmatch(wanted) else None
        if found is None or found.id != wanted:
            raise refuse(f"the archive lacks the layer {wanted[:64]!r}", hint="save the image again")
        chain.append(found)
        if len(chain) > _MOST_LAYERS:
            raise refuse(f"the image has more than {_MOST_LAYERS} layers")
        wanted = found.parent
    return chain[::-1]


def _old_part(files: Files, layer: str) -> Part:
    part = files.find(f"{layer}/layer.tar")
    if part is None:
        raise refuse(f"the archive lacks {layer}/layer.tar", hint="save the image again")
    return part


def _digest(part: Part) -> str:
    digest = hashlib.sha256()
    with part.open() as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return f"sha256:{digest.hexdigest()}"
