"""An image as it lies in a registry, to be read from there; and the tags of a repository.

Source: the OCI distribution specification 1.1, "Pull" and "Content Discovery".
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

import msgspec

from atoll.errors import ImageError, RegistryError
from atoll.events import Emit, Warned, ignore
from atoll.image.oci import documents
from atoll.image.oci.documents import Descriptor, ImageConfig, Manifest, Platform
from atoll.image.oci.reference import Reference, is_tag
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.registry.blobs import Blob, hasher_of, read_whole
from atoll.image.registry.credentials import Keyring
from atoll.image.registry.patience import Patience
from atoll.image.registry.places import Place, own_place, places_of
from atoll.image.registry.session import Answer, Ask, Session
from atoll.registries import Registries

__all__ = ["Inspected", "Tagged", "document_at", "inspect", "offer", "tags"]

_SCHEMA_1: Final = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
_ACCEPTED: Final = ", ".join((*documents.INDEXES, *documents.MANIFESTS))

#: Pages of tags that are read, tags of a page that are asked for, and tags that are taken.
_MOST_PAGES, _PAGE, _MOST_TAGS = 1000, 1000, 200_000

T = TypeVar("T")


class Tagged(msgspec.Struct, frozen=True):
    """A document under a name.

    Attributes:
        media_type: of it.
        digest: of its bytes.
        data: the bytes.
        place: where it was found.
    """

    media_type: str
    digest: str
    data: bytes
    place: Place


class Inspected(msgspec.Struct, frozen=True):
    """An image in a registry, without its layers.

    Attributes:
        reference: canonical.
        digest: of its manifest.
        index_digest: of the index that it was chosen from; empty if of none.
        manifest: its manifest.
        config: its configuration.
        platforms: of all images in that index.
        manifest_data: the manifest's bytes.
        config_data: the configuration's bytes.
        places: where its blobs may be.
    """

    reference: str
    digest: str
    index_digest: str
    manifest: Manifest
    config: ImageConfig
    platforms: tuple[str, ...]
    manifest_data: bytes
    config_data: bytes
    places: tuple[Place, ...]


@contextmanager
def offer(
    reference: Reference,
    platform: Platform,
    *,
    registries: Registries,
    keyring: Keyring | None = None,
    patience: Patience | None = None,
    emit: Emit = ignore,
) -> Iterator[Offered]:
    """An image in a registry, for as long as the block lasts.

    Args:
        reference: of it; without tag and digest it is ``latest``.
        platform: which of several images is wanted.
        registries: what the configuration says of registries.
        keyring: the user's credentials; what Docker's and Podman's clients keep by default.
        patience: how long anything is tried.
        emit: told of mirrors that fail and of long waits.

    Raises:
        RegistryError: it cannot be had; the streams of its layers raise it too.
        ImageError: ``image.platform``: there is none for that; ``image.archive``: its documents are
            malformed.
    """
    with Session(registries, keyring=keyring, patience=patience, emit=emit) as session:
        found = _inspected(session, reference.tagged(), platform, registries, emit)
        yield Offered(
            layers=_layers(session, found),
            config=found.config_data,
            manifest=found.manifest_data,
            index_digest=found.index_digest,
            names=(found.reference,),
        )


def inspect(
    reference: Reference,
    platform: Platform,
    *,
    registries: Registries,
    keyring: Keyring | None = None,
    patience: Patience | None = None,
    emit: Emit = ignore,
) -> Inspected:
    """What a registry says of an image. Arguments and errors as for ``offer``."""
    with Session(registries, keyring=keyring, patience=patience, emit=emit) as session:
        return _inspected(session, reference.tagged(), platform, registries, emit)


def tags(
    reference: Reference,
    *,
    registries: Registries,
    keyring: Keyring | None = None,
    patience: Patience | None = None,
    emit: Emit = ignore,
) -> tuple[str, ...]:
    """The tags of a repository, sorted.

    Raises:
        RegistryError: they cannot be had.
    """
    with Session(registries, keyring=keyring, patience=patience, emit=emit) as session:
        return tuple(sorted(_tags(session, own_place(reference), pages=_MOST_PAGES)))


def document_at(session: Session, place: Place, name: str) -> Tagged:
    """The manifest or index under a tag or digest, which it has.

    Raises:
        RegistryError: it cannot be had, or is another.
    """
    is_digest = ":" in name

    def take(answer: Answer) -> Tagged:
        data = answer.beginning(documents.MOST_JSON + 1)
        if len(data) > documents.MOST_JSON:
            raise _protocol(place, f"{name} has a manifest of more than {documents.MOST_JSON >> 20} MiB")
        promised = name if is_digest else answer.headers.get("docker-content-digest", "")
        hasher = hasher_of(promised if promised.startswith("sha512:") else "sha256:")
        hasher.update(data)
        found = f"{hasher.name}:{hasher.hexdigest()}"
        if promised and found != promised:
            message = f"the manifest {promised} of {place} arrived with other content: its digest is {found}"
            hint = "nothing of it was kept; ask who runs the registry"
            raise RegistryError(message, code="digest", hint=hint)
        return Tagged(_media_type(answer, data, place, name), found, data, place)

    joint = "@" if is_digest else ":"
    headers = {"Accept": _ACCEPTED}
    what = f"{place.repository}{joint}{name}"
    return session.have(
        Ask(place=place, what=what, address=place.path("manifests", name), headers=headers), take
    )


def _inspected(
    session: Session, reference: Reference, wanted: Platform, registries: Registries, emit: Emit
) -> Inspected:
    name = reference.digest or reference.tag
    places = places_of(reference, registries)
    found = _from_first(places, lambda place: _named(session, place, name), emit)
    # The rest is asked for where that was; what is not there is looked for behind it.
    places = places[places.index(found.place) :]
    index_digest = ""
    platforms: tuple[str, ...] = ()
    size: int | None = None
    if found.media_type in documents.INDEXES:
        index = documents.index_of(found.data)
        platforms = tuple(str(one.platform) for one in index.manifests if _is_image(one))
        chosen = documents.choose(index.manifests, wanted)
        index_digest, size = found.digest, chosen.size
        found = _from_first(places, lambda place: document_at(session, place, chosen.digest), emit)
    if size is not None and len(found.data) != size:
        message = f"the manifest {found.digest} has {len(found.data)} bytes, its index says {size}"
        raise RegistryError(message, code="digest", hint="ask who made the image")
    if found.media_type not in documents.MANIFESTS:
        raise _protocol(found.place, f"{name} is no image but {found.media_type[:80] or 'of no type'}")
    manifest = documents.manifest_of(found.data)
    data = _config_data(session, places, manifest)
    config = documents.config_of(data)
    _check(config, manifest, wanted)
    return Inspected(
        str(reference), found.digest, index_digest, manifest, config, platforms, found.data, data, places
    )


def _config_data(session: Session, places: Sequence[Place], manifest: Manifest) -> bytes:
    if manifest.config.size > documents.MOST_JSON:
        message = f"the image's configuration has {manifest.config.size} bytes"
        raise RegistryError(message, code="protocol", hint="ask who made the image")
    return read_whole(session, places, manifest.config.digest, manifest.config.size)


def _layers(session: Session, found: Inspected) -> tuple[LayerSource, ...]:
    pairs = zip(found.manifest.layers, found.config.rootfs.diff_ids, strict=True)
    return tuple(
        LayerSource(
            open=functools.partial(Blob, session, found.places, layer.digest, layer.size),
            digest=layer.digest,
            size=layer.size,
            media_type=layer.media_type,
            diff_id=diff_id,
            verified=True,
        )
        for layer, diff_id in pairs
    )


def _check(config: ImageConfig, manifest: Manifest, wanted: Platform) -> None:
    """What the documents must agree upon."""
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        message = f"the image has {len(manifest.layers)} layers, and digests of {len(config.rootfs.diff_ids)}"
        raise ImageError(message, code="archive", hint="nothing was imported")
    if config.architecture != wanted.architecture:
        there = Platform(config.architecture[:40], "linux", config.variant[:40])
        hint = f"it is for {there}: ask for that with --platform"
        raise ImageError(f"the image does not exist for {wanted}", code="platform", hint=hint)


def _is_image(descriptor: Descriptor) -> bool:
    return descriptor.platform is not None and descriptor.platform.os not in {"", "unknown"}


def _from_first(places: Sequence[Place], had: Callable[[Place], T], emit: Emit) -> T:
    """What the first place has that has it. A mirror that lacks it is passed over without a word."""
    for place in places[:-1]:
        try:
            return had(place)
        except RegistryError as error:
            if error.code != "registry.missing":
                emit(Warned(message=f"the mirror {place.registry} is passed over: {error.message}"))
    return had(places[-1])


def _named(session: Session, place: Place, name: str) -> Tagged:
    """The document of that name; if there is none, the error says which names are like it."""
    try:
        return document_at(session, place, name)
    except RegistryError as error:
        if error.code == "registry.missing" and ":" not in name:
            near: list[str] = []
            with suppress(RegistryError):
                near = difflib.get_close_matches(name, _tags(session, place, pages=1), n=3)
            if near:
                error.hint = f"{place.repository} has {', '.join(near)}"
        raise


def _media_type(answer: Answer, data: bytes, place: Place, name: str) -> str:
    """What a document is: what it says itself, or else what the registry says."""

    class Head(msgspec.Struct, rename="camel"):
        schema_version: int = 2
        media_type: str = ""

    said = answer.headers.get("content-type", "").partition(";")[0].strip()
    try:
        head = msgspec.json.decode(data, type=Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _protocol(place, f"{name} is no manifest, but something else") from error
    if head.schema_version == 1 or said in _SCHEMA_1:
        hint = "pull it with a Docker of its time and push it again with a current one, or choose another tag"
        message = f"{place}: {name} has a manifest of Docker's schema 1, which nobody makes any more"
        raise RegistryError(message, code="schema", hint=hint)
    return head.media_type or said


def _tags(session: Session, place: Place, *, pages: int) -> list[str]:
    """The tags of a repository page by page."""

    class Listed(msgspec.Struct):
        tags: list[str] | None = None

    def take(answer: Answer) -> tuple[list[str], str]:
        data = answer.beginning(documents.MOST_JSON)
        try:
            listed = msgspec.json.decode(data, type=Listed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _protocol(place, "its list of tags cannot be read") from error
        return listed.tags or [], _next_page(answer)

    found: list[str] = []
    address: str = place.path("tags", "list")
    parameters: tuple[tuple[str, str], ...] = (("n", str(_PAGE)),)
    for _ in range(pages):
        ask = Ask(
            place=place, what=f"the repository {place.repository}", address=address, parameters=parameters
        )
        more, following = session.have(ask, take)
        found += filter(is_tag, more)
        if not following or not more or len(found) > _MOST_TAGS:
            break
        address, parameters = following, ()
    return found


def _next_page(answer: Answer) -> str:
    """The address that a field Link names as the next (RFC 8288); only one of the same host."""
    link = re.match(r'\s*<([^>]+)>\s*;\s*rel="?next"?', answer.headers.get("link", ""))
    if link is None:
        return ""
    following = answer.url.join(link[1])
    return str(following) if following.host == answer.url.host else ""


def _protocol(place: Place, what: str) -> RegistryError:
    return RegistryError(f"{place}: {what}", code="protocol", hint="is it an image? ask who made it")
