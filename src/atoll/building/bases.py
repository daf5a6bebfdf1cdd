"""The images that a build begins with: had on this host, and given to the builder as far as it lacks them.

The host asks registries, as it has the user's credentials, certificates and mirrors; no build sees them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

import msgspec

from atoll.building.containerfile import Base
from atoll.building.guest import STORAGE
from atoll.building.session import Session
from atoll.building.streaming import chunks
from atoll.config import Config
from atoll.errors import BuildError, FileError, ImageError
from atoll.events import Emit, Warned, task
from atoll.image import catalog
from atoll.image.architectures import uname_of
from atoll.image.local.tarheaders import DIRECTORY, END, Entry, header, padding
from atoll.image.manifest import Image
from atoll.image.oci import documents, offering
from atoll.image.oci.documents import Descriptor, Index, Manifest, Platform
from atoll.image.oci.reference import parse
from atoll.image.oci.source import LayerSource
from atoll.image.registry.carrying import pull

__all__ = ["diff_sizes", "have", "send"]

T = TypeVar("T")


_STEP = 1 << 20


class _Kept(msgspec.Struct, frozen=True):
    """An image in buildah's storage."""

    id: str


class _KeptLayer(msgspec.Struct, frozen=True, rename="kebab"):
    """A layer in buildah's storage: digest and bytes of its tar."""

    diff_digest: str = ""
    diff_size: int = 0


def have(
    config: Config, wanted: Sequence[Base], platform: Platform, *, fresh: bool, emit: Emit
) -> dict[str, Image]:
    """The images of a Containerfile, by the names that it has for them: as they are written, and in full.

    One of which it wants several platforms is left to the builder, which keeps names apart by nothing else.

    Args:
        config: the settings.
        wanted: the images.
        platform: of those that say none.
        fresh: ask the registry also for what is here.
        emit: told of progress.

    Raises:
        RegistryError, ImageError: one cannot be had.
    """
    found: dict[str, Image] = {}
    for base in wanted:
        if any(other.name == base.name and other.platform != base.platform for other in wanted):
            message = f"{base.name} is wanted for several platforms: the builder pulls it without credentials"
            emit(Warned(message=message))
            continue
        of = documents.parse_platform(base.platform) if base.platform else platform
        if base.name not in found:
            found[base.name] = _have(config, base.name, of, fresh=fresh, emit=emit)
        if "=" not in base.written:  # what stands before one is the name, to the builder
            found[base.written] = found[base.name]
    return found


def _have(config: Config, name: str, platform: Platform, *, fresh: bool, emit: Emit) -> Image:
    # In a Containerfile `debian` is the registry's image, not the one that Atoll makes.
    reference = str(parse(name, default=config.default_registry).tagged())
    if not fresh:
        architecture = uname_of(platform.architecture)
        try:
            return catalog.find(config.paths, reference, architecture=architecture)
        except ImageError as error:
            if error.code not in {"image.missing", "image.corrupt"}:
                raise
    return pull(config, reference, platform, emit=emit)


async def send(session: Session, images: dict[str, Image], emit: Emit) -> dict[str, str]:
    """Have the builder have images; their ids there, by the same names.

    Raises:
        BuildError: ``build.full``, ``build.builder``: it does not take one.
        ImageError: one is damaged.
    """
    ids = {}
    there = {kept.id for kept in await _kept(session, "overlay-images/images.json", list[_Kept])}
    for name, image in images.items():
        identifier = offering.origin_of(image).config.partition(":")[2]
        if identifier not in there:
            with task(emit, "base", f"Giving {name} to the builder"):
                await _give(session, image, identifier)
            there.add(identifier)
        ids[name] = identifier
    return ids


async def diff_sizes(session: Session) -> dict[str, int]:
    """Bytes of the tars of the layers that the builder has, by their digests."""
    layers = await _kept(session, "overlay-layers/layers.json", list[_KeptLayer])
    return {layer.diff_digest: layer.diff_size for layer in layers}


async def _kept(session: Session, name: str, kind: type[list[T]]) -> list[T]:
    try:
        return msgspec.json.decode(await session.machine.files.read(f"{STORAGE}/{name}"), type=kind)
    except (FileError, msgspec.MsgspecError):  # nothing was built yet; or it is as well sent again
        return []


async def _give(session: Session, image: Image, identifier: str) -> None:
    offered = await asyncio.to_thread(offering.offer, image)
    there = await diff_sizes(session)
    lacking = [layer for layer in offered.layers if layer.diff_id not in there]
    place = f"{session.work}/base"
    pieces = _layout(offered.config, offered.layers, lacking)
    unpack = ["/bin/sh", "-c", 'mkdir -p "$1" && exec tar -xf - -C "$1"', "sh", place]
    await session.must(unpack, "an image cannot be given to the builder", feeding=_sent(pieces))
    take = 'buildah pull --quiet "oci:$1:base" && rm -rf "$1"'
    said = await session.must(["/bin/sh", "-c", take, "sh", place], "the builder does not take an image")
    if said[-1:] != [identifier]:
        message = f"the builder has an image as {' '.join(said[-1:])}, not as {identifier}"
        raise BuildError(message, code="builder", hint="`atoll builder rm` has it begin anew")


async def _sent(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    async for data in chunks(pieces):
        yield data


def _layout(config: bytes, layers: Sequence[LayerSource], lacking: Sequence[LayerSource]) -> Iterator[bytes]:
    """An archive of an OCI layout of an image, but for the layers that are not lacking."""
    described = Descriptor(documents.CONFIG, documents.digest_of(config), len(config))
    parts = tuple(Descriptor(documents.LAYER, each.diff_id, each.size or 0) for each in layers)
    manifest = documents.encode(
        Manifest(schema_version=2, media_type=documents.MANIFEST, config=described, layers=parts)
    )
    name = {"org.opencontainers.image.ref.name": "base"}
    named = Descriptor(documents.MANIFEST, documents.digest_of(manifest), len(manifest), annotations=name)
    index = documents.encode(Index(schema_version=2, manifests=(named,)))
    yield header(Entry(name=b"blobs/", kind=DIRECTORY, mode=0o755))
    yield header(Entry(name=b"blobs/sha256/", kind=DIRECTORY, mode=0o755))
    yield from _member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    yield from _member("index.json", index)
    yield from _member(_blob(named.digest), manifest)
    yield from _member(_blob(described.digest), config)
    for digest, layer in {each.diff_id: each for each in lacking}.items():
        yield header(Entry(name=_blob(digest).encode(), size=layer.size or 0))
        with layer.open() as stream:
            while data := stream.read(_STEP):
                yield data
        yield bytes(padding(layer.size or 0))
    yield END


def _blob(digest: str) -> str:
    return str(PurePosixPath("blobs", *digest.split(":", 1)))


def _member(name: str, data: bytes) -> Iterator[bytes]:
    yield header(Entry(name=name.encode(), size=len(data)))
    yield data + bytes(padding(len(data)))
