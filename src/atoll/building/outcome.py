"""From the builder into this host's store: only what it lacks of an image is read, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

from atoll.building.bases import diff_sizes
from atoll.building.session import Session
from atoll.building.streaming import Pulled
from atoll.config import Config
from atoll.errors import BuildError
from atoll.events import Emit
from atoll.image import catalog
from atoll.image.manifest import Image
from atoll.image.oci import documents, keeping, names
from atoll.image.oci.documents import Descriptor, Manifest, Platform
from atoll.image.oci.reference import Reference
from atoll.image.oci.source import LayerSource, Offered
from atoll.patience import to_its_end

__all__ = ["take"]

#: Has an image as an OCI layout, but for layers whose digests come on its input: buildah takes those for
#: written whose files it finds. Its arguments are a directory and the image's id. What is left of the empty
#: files is removed.
_GIVE = """\
mkdir -p "$1/blobs/sha256"
while read -r digest; do : > "$1/blobs/sha256/$digest"; done
buildah push --quiet --compression-level 1 "$2" "oci:$1:image" && find "$1" -size 0 -delete
"""

#: Bytes of an index, manifest or configuration.
_MOST = 4 << 20


async def take(
    session: Session,
    config: Config,
    identifier: str,
    references: Sequence[Reference],
    platform: Platform,
    emit: Emit,
) -> Image:
    """Have an image here that the builder has made; one that is here already gets its references only.

    Args:
        session: the build.
        config: the settings.
        identifier: the image's id: the digest of its configuration.
        references: that mean it from now on.
        platform: of the image.
        emit: told of progress.

    Raises:
        BuildError: ``build.builder``: the builder does not give it.
        ImageError: ``image.archive``: what it gives is no image.
        StoreError: it cannot be written.
    """
    here = await asyncio.to_thread(_here, config, identifier, references)
    if here is not None:
        return here
    place = f"{session.work}/image"
    known = await asyncio.to_thread(_layers_here, config)
    words = ["/bin/sh", "-c", _GIVE, "sh", place, identifier]
    await session.must(words, "the builder does not give the image", feeding=_once(known))
    data, layers = await _documents(session, place)
    sizes = await diff_sizes(session)
    pulled: list[Pulled] = []
    loop = asyncio.get_running_loop()

    def source(number: int, diff_id: str) -> LayerSource:
        blob = layers[number]
        start = partial(session.machine.files.read_chunks, _blob(place, blob.digest))
        pulled.append(Pulled(start, loop))
        return LayerSource(open=pulled[-1], digest=blob.digest, size=blob.size, diff_id=diff_id)

    ids = documents.config_of(data).rootfs.diff_ids
    if len(ids) != len(layers):
        raise BuildError("the builder gives another image than it made", code="builder")
    offered = Offered(
        layers=tuple(source(number, diff_id) for number, diff_id in enumerate(ids)),
        config=data,
        manifest=_manifest(data, [(one, sizes.get(one, 0)) for one in ids]),
    )
    adding = partial(
        keeping.add,
        config.paths,
        offered,
        name=references[0].short(config.default_registry) if references else identifier[:12],
        platform=platform,
        references=references,
        emit=emit,
    )

    def hurry() -> None:
        for one in pulled:
            one.end()

    return await to_its_end(asyncio.to_thread(adding), hurry=hurry)


def _here(config: Config, identifier: str, references: Sequence[Reference]) -> Image | None:
    for listed in catalog.installed(config.paths):
        image = listed.image
        if image is None or image.manifest.origin is None:
            continue
        if image.manifest.origin.config == f"sha256:{identifier}":
            for reference in references:
                names.point(
                    config.paths, reference, image.manifest.architecture, image.manifest.origin.manifest
                )
            return image
    return None


def _layers_here(config: Config) -> bytes:
    found = {
        layer.diff_id.partition(":")[2]
        for listed in catalog.installed(config.paths)
        if listed.image is not None and listed.image.manifest.origin is not None
        for layer in listed.image.manifest.origin.layers
        if layer.diff_id.startswith("sha256:")
    }
    return "".join(f"{digest}\n" for digest in sorted(found)).encode()


async def _documents(session: Session, place: str) -> tuple[bytes, tuple[Descriptor, ...]]:
    """The configuration of the image in a layout, and its layers as they lie there."""
    index = documents.index_of(await _read(session, f"{place}/index.json"))
    if len(index.manifests) != 1:
        raise BuildError("the builder gives no image", code="builder")
    manifest = documents.manifest_of(await _read(session, _blob(place, index.manifests[0].digest)))
    return await _read(session, _blob(place, manifest.config.digest)), manifest.layers


async def _read(session: Session, path: str) -> bytes:
    return await session.machine.files.read(path, limit=_MOST)


def _blob(place: str, digest: str) -> str:
    return f"{place}/blobs/{documents.check_digest(digest).replace(':', '/')}"


def _manifest(config: bytes, layers: Sequence[tuple[str, int]]) -> bytes:
    """A manifest that is the same however the layers came; empty if a size is unknown."""
    if not all(size for _, size in layers):
        return b""
    return documents.encode(
        Manifest(
            schema_version=2,
            media_type=documents.MANIFEST,
            config=Descriptor(documents.CONFIG, documents.digest_of(config), len(config)),
            layers=tuple(Descriptor(documents.LAYER, digest, size) for digest, size in layers),
        )
    )


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
