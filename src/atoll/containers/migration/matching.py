"""Which images two engines both have, and which travel together. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from atoll.containers.migration.inventory import Image, Inventory
from atoll.containers.migration.plans import Tagged

__all__ = ["same", "together", "twins"]

#: Bytes of images that travel together because they share layers: what is lost if it is cut off.
_TOGETHER = 4 << 30


def twins(source: Inventory, target: Inventory) -> dict[str, str]:
    """Images that both have: by id, or where stores count ids in another way, by all that they are."""
    ids = {one.id for one in target.images}
    contents = {_content(one): one.id for one in target.images}
    found = {}
    for image in source.images:
        twin = image.id if image.id in ids else contents.get(_content(image))
        if twin is not None:
            found[image.id] = twin
    return found


def _content(image: Image) -> bytes:
    """What an image is, whatever its id: engines leave empty settings out or not."""
    config = {name: value for name, value in image.config.items() if value and name != "Image"}
    told = (image.layers, image.os, image.architecture, image.created, config)
    return msgspec.json.encode(told, order="deterministic")


def together(images: list[Tagged]) -> Iterator[tuple[Tagged, ...]]:
    """Images that share their lowest layer, so that it travels once; so many that not too much is lost."""
    groups: dict[str, list[Tagged]] = {}
    for one in images:
        base = one.image.layers[0] if one.image.layers else one.image.id
        groups.setdefault(base, []).append(one)
    for group in groups.values():
        part: list[Tagged] = []
        size = 0
        for one in group:
            if part and size + one.image.size > _TOGETHER:
                yield tuple(part)
                part, size = [], 0
            part.append(one)
            size += one.image.size
        yield tuple(part)


def same(one: Image, other: Image) -> bool:
    """Whether two images are the same whatever their ids."""
    return one.id == other.id or _content(one) == _content(other)
