"""An image into a registry: its blobs first, several at once, and its manifest when all are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from atoll import threads
from atoll.errors import ImageError, RegistryError
from atoll.events import Emit, ignore, progress, task
from atoll.image.oci import documents
from atoll.image.oci.documents import Descriptor, ImageConfig, Manifest
from atoll.image.oci.reference import Reference, check_tag, parse
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.registry.blobs import read_whole
from atoll.image.registry.credentials import Keyring
from atoll.image.registry.packed import found_form, is_compressed
from atoll.image.registry.patience import Patience
from atoll.image.registry.places import Place, own_place
from atoll.image.registry.pulling import document_at
from atoll.image.registry.session import Session
from atoll.image.registry.uploads import Uploads, pieces_of
from atoll.registries import Registries

__all__ = ["Pushed", "push"]

#: Blobs that are sent at once.
_ABREAST = 4

_TASK = "push"

#: What an old image under the same tag may fail with: it is then of no use, and no more.
_USELESS = frozenset(
    f"registry.{code}" for code in ("missing", "schema", "digest", "protocol", "auth", "denied")
)

#: Docker's names of layers, and those of the OCI for the same.
_RENAMED = {
    "application/vnd.docker.image.rootfs.diff.tar.gzip": documents.LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": documents.LAYER_ZSTD,
    "application/vnd.docker.image.rootfs.diff.tar": documents.LAYER,
}


class Pushed(msgspec.Struct, frozen=True):
    """What was pushed.

    Attributes:
        reference: canonical, with the first tag and the digest.
        digest: of the manifest.
        tags: that it has there.
        sent: bytes of blobs that were sent.
        there: blobs that the registry had already.
    """

    reference: str
    digest: str
    tags: tuple[str, ...]
    sent: int
    there: int


def push(
    offered: Offered,
    reference: Reference,
    *,
    tags: Sequence[str] = (),
    registries: Registries,
    keyring: Keyring | None = None,
    patience: Patience | None = None,
    emit: Emit = ignore,
) -> Pushed:
    """Give an image to a registry.

    If all its layers are there, or are sent, as its manifest has them, the manifest stays as it is, byte for
    byte. Else it is made anew, with layers compressed by gzip.

    Args:
        offered: the image.
        reference: its name there; without a tag it is ``latest``.
        tags: further ones.
        registries: what the configuration says of registries.
        keyring: the user's credentials; what Docker's and Podman's clients keep by default.
        patience: how long anything is tried.
        emit: told of progress.

    Raises:
        RegistryError: it could not be given; the registry shows nothing of it under the tags that are left.
        ImageError: ``image.name``: the reference has a digest, or a tag is none; ``image.archive``: the image
            is malformed.
    """
    if reference.digest:
        hint = "a digest is what comes out of a push: leave it away"
        raise ImageError(f"{reference} cannot be pushed to", code="name", hint=hint)
    all_tags = tuple(dict.fromkeys((reference.tagged().tag, *map(check_tag, tags))))
    config = documents.config_of(offered.config)
    if len(config.rootfs.diff_ids) != len(offered.layers):
        message = f"the image has {len(offered.layers)} layers, and digests of {len(config.rootfs.diff_ids)}"
        raise ImageError(message, code="archive", hint="nothing was pushed")
    with (
        Session(registries, keyring=keyring, patience=patience, emit=emit) as session,
        task(emit, _TASK, f"pushing {reference.short()}", unit="bytes"),
    ):
        place = own_place(reference)
        uploads = Uploads(session, place, _neighbours(offered, reference), progress(emit, _TASK))
        return _Push(session, place, uploads).run(offered, config, all_tags)


def _neighbours(offered: Offered, reference: Reference) -> tuple[str, ...]:
    """Other repositories of the same registry that may have the image's blobs."""
    known = (parse(name) for name in offered.names)
    found = (one.path for one in known if one.domain == reference.domain and one.path != reference.path)
    return tuple(dict.fromkeys(found))


class _Push:
    """One push of one image."""

    def __init__(self, session: Session, place: Place, uploads: Uploads) -> None:
        self._session = session
        self._place = place
        self._uploads = uploads
        self._there: set[str] = set()

    def run(self, offered: Offered, config: ImageConfig, tags: tuple[str, ...]) -> Pushed:
        """Give all of it, the manifest last."""
        original = documents.manifest_of(offered.manifest) if offered.manifest else None
        forms = self._known_forms(config, original, tags)
        layers = self._layers(offered.layers, config.rootfs.diff_ids, forms)
        own = documents.digest_of(offered.config)
        if self._uploads.has(own):
            self._there.add(own)
        else:
            self._uploads.send(own, len(offered.config), lambda: iter((offered.config,)))
        data, media_type = _manifest(offered, original, layers)
        digest = documents.digest_of(data)
        for tag in tags:
            self._uploads.put_manifest(tag, data, digest, media_type)
        name = f"{self._place}:{tags[0]}@{digest}"
        return Pushed(name, digest, tags, self._uploads.sent, len(self._there))

    def _layers(
        self,
        layers: Sequence[LayerSource],
        diff_ids: Sequence[str],
        forms: dict[str, tuple[Descriptor, ...]],
    ) -> tuple[Descriptor, ...]:
        """Have all layers be there. The same one several times is sent once."""
        made: dict[str, Descriptor] = {}
        wanted = dict(zip(diff_ids, layers, strict=True))

        def work(items: Iterable[str]) -> None:
            for diff_id in items:
                made[diff_id] = self._layer(wanted[diff_id], diff_id, forms.get(diff_id, ()))

        # The largest first, so that none of them is left for the end.
        order = sorted(wanted, key=lambda one: -(wanted[one].size or 0))
        threads.share(work, order, threads=max(1, min(_ABREAST, len(order))))
        return tuple(made[diff_id] for diff_id in diff_ids)

    def _layer(self, layer: LayerSource, diff_id: str, forms: Sequence[Descriptor]) -> Descriptor:
        """Have a layer be there, in the form that is returned."""
        for form in forms:
            if self._uploads.has(form.digest):
                self._there.add(form.digest)
                return form
        for form in forms:
            if layer.digest == form.digest and form.media_type != documents.LAYER:
                self._uploads.send(form.digest, form.size, lambda: pieces_of(layer))
                return form
        with layer.open() as stream:
            compressed = is_compressed(stream.read(4))
        if not compressed:
            return self._uploads.send_packed(layer, diff_id)
        found = found_form(pieces_of(layer))
        if self._uploads.has(found.digest):
            self._there.add(found.digest)
        else:
            self._uploads.send(found.digest, found.size, lambda: pieces_of(layer))
        return found

    def _known_forms(
        self, config: ImageConfig, original: Manifest | None, tags: tuple[str, ...]
    ) -> dict[str, tuple[Descriptor, ...]]:
        """What compressed forms of layers there are, by the layer's diff_id.

        They are those of the image's own manifest, and of what the registry has under these tags: most often
        that is an earlier version of the same image.
        """
        pairs = [] if original is None else [(config, original)]
        pairs += [pair for tag in tags if (pair := self._there_now(tag)) is not None]
        found: dict[str, tuple[Descriptor, ...]] = {}
        for one, manifest in pairs:
            if len(one.rootfs.diff_ids) == len(manifest.layers):
                for diff_id, layer in zip(one.rootfs.diff_ids, manifest.layers, strict=True):
                    found[diff_id] = tuple(dict.fromkeys((*found.get(diff_id, ()), _plain(layer))))
        return found

    def _there_now(self, tag: str) -> tuple[ImageConfig, Manifest] | None:
        """The image that the registry has under a tag, if anything of it can be used."""
        try:
            manifest = documents.manifest_of(document_at(self._session, self._place, tag).data)
            if manifest.config.size > documents.MOST_JSON:
                return None
            data = read_whole(self._session, [self._place], manifest.config.digest, manifest.config.size)
            return documents.config_of(data), manifest
        except ImageError:
            return None
        except RegistryError as error:
            if error.code in _USELESS:
                return None
            raise


def _plain(layer: Descriptor) -> Descriptor:
    """The bytes of a layer and no more of it, as a manifest of the OCI has it."""
    return Descriptor(_RENAMED.get(layer.media_type, layer.media_type), layer.digest, layer.size)


def _manifest(
    offered: Offered, original: Manifest | None, layers: tuple[Descriptor, ...]
) -> tuple[bytes, str]:
    """The manifest of what is there now, and its media type."""
    config = Descriptor(documents.CONFIG, documents.digest_of(offered.config), len(offered.config))
    if (
        original is not None
        and original.config.digest == config.digest
        and [layer.digest for layer in original.layers] == [layer.digest for layer in layers]
    ):
        return offered.manifest, original.media_type or documents.MANIFEST
    annotations = None if original is None else original.annotations
    made = Manifest(
        schema_version=2,
        media_type=documents.MANIFEST,
        config=config,
        layers=layers,
        annotations=annotations,
    )
    return documents.encode(made), documents.MANIFEST
