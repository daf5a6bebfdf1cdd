"""What a migration is made of: items and what becomes of them, steps that carry them. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from atoll.containers.migration.inventory import Container, Image, Network, Volume
from atoll.containers.migration.reading import Via

__all__ = [
    "ContainerStep",
    "ImageStep",
    "Item",
    "Kind",
    "NetworkStep",
    "Plan",
    "Reason",
    "Step",
    "Tagged",
    "Verdict",
    "VolumeStep",
    "Wishes",
]


class Kind(StrEnum):
    """Of an item, in the order in which they are carried."""

    IMAGE = "image"
    VOLUME = "volume"
    NETWORK = "network"
    CONTAINER = "container"
    OTHER = "other"


class Verdict(StrEnum):
    """What becomes of an item.

    ``LEFT`` cannot be carried, ``REFUSED`` could be if something else at the target did not have its name.
    """

    CARRY = "carry"
    THERE = "there"
    LEFT = "left"
    REFUSED = "refused"


class Reason(msgspec.Struct, frozen=True):
    """Why an item is not carried: a stable code, and words."""

    code: str
    text: str


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the source has.

    Attributes:
        kind: of it.
        name: what people call it.
        verdict: what becomes of it.
        reasons: why it is not carried; empty if it is.
        losses: what of it is not carried, if it is.
        size: bytes, -1 if unknown.
    """

    kind: Kind
    name: str
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    losses: tuple[str, ...] = ()
    size: int = 0


class Tagged(msgspec.Struct, frozen=True):
    """An image and the tags that it gets; ``present`` is its id at the target, empty if it is not there."""

    image: Image
    tags: tuple[str, ...]
    present: str = ""


class ImageStep(msgspec.Struct, frozen=True):
    """Carry images that share layers."""

    images: tuple[Tagged, ...]


class VolumeStep(msgspec.Struct, frozen=True):
    """Carry a volume.

    Attributes:
        volume: as it is at the source.
        via: the container through which it is read; None for one to be made for that.
        content: whether it has any of its own.
        again: a former run has begun it: what is there goes.
    """

    volume: Volume
    via: Via | None
    content: bool
    again: bool


class NetworkStep(msgspec.Struct, frozen=True):
    """Make a network."""

    network: Network


class ContainerStep(msgspec.Struct, frozen=True):
    """Make a container.

    Attributes:
        container: as it is at the source.
        body: what makes it, all but its image.
        image: the name of its image where that is right; empty to use the image's id.
        start: whether it is started.
        needs: keys of items without which it is not made.
    """

    container: Container
    body: dict[str, Any]
    image: str
    start: bool
    needs: frozenset[str] = frozenset()


Step = ImageStep | VolumeStep | NetworkStep | ContainerStep


class Wishes(msgspec.Struct, frozen=True):
    """What the user wants of it.

    Attributes:
        kinds: what is carried.
        names: patterns (fnmatch) of names that are; empty for all. What a container needs is carried with it.
        start: whether containers that run are started.
        helper: whether a container may be made at the source to read volumes that no container mounts.
    """

    kinds: frozenset[Kind] = frozenset(Kind)
    names: tuple[str, ...] = ()
    start: bool = True
    helper: bool = False

    def choose(self, kind: Kind, names: Iterable[str]) -> bool:
        """Whether an item of these names is wanted for itself."""
        wanted = not self.names or any(fnmatch.fnmatchcase(name, one) for name in names for one in self.names)
        return kind in self.kinds and wanted


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is done. ``twins`` are ids of images at the target by those at the source, where it has them."""

    items: tuple[Item, ...]
    steps: tuple[Step, ...]
    twins: Mapping[str, str] = {}

    @property
    def size(self) -> int:
        """Bytes that are carried, as far as the source tells."""
        carried = (one.size for one in self.items if one.verdict is Verdict.CARRY)
        return sum(size for size in carried if size > 0)
