"""Images between registries and this host's own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from atoll.config import Config
from atoll.errors import ImageError
from atoll.events import Emit, ignore
from atoll.image import catalog
from atoll.image.architectures import uname_of
from atoll.image.manifest import Image
from atoll.image.oci import keeping, names, offering
from atoll.image.oci.documents import Platform
from atoll.image.oci.reference import Reference, parse
from atoll.image.recipes import is_recipe
from atoll.image.registry.pulling import offer
from atoll.image.registry.pushing import Pushed, push

__all__ = ["named", "pull", "push_kept"]


def named(name: str, config: Config) -> Reference:
    """The reference that a name of an image in a registry means, with a tag or digest.

    Raises:
        ImageError: ``image.name``: it is malformed, or that of an image that Atoll builds itself.
    """
    reference = parse(name, default=config.default_registry).tagged()
    if is_recipe(name):
        hint = f"for the registry's image write {reference}; for Atoll's `atoll image build {name}`"
        raise ImageError(f"{name!r} is the name of an image that Atoll builds", code="name", hint=hint)
    return reference


def pull(config: Config, name: str, platform: Platform, *, emit: Emit = ignore) -> Image:
    """Have an image of a registry here; what is here of it already is not had again.

    Args:
        config: the settings.
        name: as people write it.
        platform: which of several images is wanted.
        emit: told of progress.

    Raises:
        RegistryError: it cannot be had.
        ImageError: ``image.name``, ``image.platform``, ``image.archive``: it is malformed.
        StoreError: it cannot be written.
    """
    reference = named(name, config)
    with offer(reference, platform, registries=config.registries, emit=emit) as offered:
        return keeping.add(
            config.paths,
            offered,
            name=reference.short(config.default_registry),
            platform=platform,
            references=(reference,),
            emit=emit,
        )


def push_kept(
    config: Config,
    name: str,
    target: str,
    *,
    platform: Platform,
    tags: Sequence[str] = (),
    emit: Emit = ignore,
) -> Pushed:
    """Give an image that is here to a registry.

    Args:
        config: the settings.
        name: of the image here.
        target: the reference under which it is given.
        platform: of the image.
        tags: further ones.
        emit: told of progress.

    Raises:
        RegistryError: it could not be given.
        ImageError: ``image.missing``, ``image.layers``: it is not here, or does not consist of layers.
    """
    reference = named(target, config)
    architecture = uname_of(platform.architecture)
    default = config.default_registry
    image = catalog.find(config.paths, name, architecture=architecture, default=default)
    digest = offering.origin_of(image).manifest
    known = tuple(one.reference for one in names.meaning(config.paths, digest))
    offered = msgspec.structs.replace(offering.offer(image), names=known)
    return push(offered, reference, tags=tags, registries=config.registries, emit=emit)
