"""The images that Atoll builds by itself, and names of images."""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from atoll.errors import ImageError
from atoll.image import engine
from atoll.image.oci.reference import HUB
from atoll.image.oci.reference import parse as parse_reference

__all__ = ["RECIPES", "Flavour", "Recipe", "Reference", "canonical", "is_own", "is_recipe", "parse"]

_PART = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


class Flavour(StrEnum):
    """What an image is for: throw-away VMs, machines with systemd, or the machine of Docker's engine."""

    PLAIN = "plain"
    MACHINE = "machine"
    ENGINE = "engine"


class Recipe(msgspec.Struct, frozen=True):
    """An image that Atoll can build.

    Attributes:
        default: the tag that is meant where none is given.
        tags: tags known to work; others are tried.
        about: one line for a list.
        distribution: ``debian`` or ``ubuntu``.
        flavour: what it is for.
        programs: which must be in it. An image with such may also be imported under the recipe's name.
        optional: programs that are looked for and noted, too.
    """

    default: str
    tags: tuple[str, ...]
    about: str
    distribution: str = "debian"
    flavour: Flavour = Flavour.PLAIN
    programs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_DEBIAN = ("trixie", "bookworm")
_UBUNTU = ("noble", "jammy")

RECIPES = {
    "debian": Recipe("trixie", _DEBIAN, "Debian with apt, bash, curl, iproute2 and procps"),
    "debian-machine": Recipe(
        "trixie", _DEBIAN, "the same with systemd, sshd and sudo", flavour=Flavour.MACHINE
    ),
    "ubuntu": Recipe("noble", _UBUNTU, "Ubuntu, as debian", distribution="ubuntu"),
    "ubuntu-machine": Recipe(
        "noble", _UBUNTU, "Ubuntu, as debian-machine", distribution="ubuntu", flavour=Flavour.MACHINE
    ),
    "engine": Recipe(
        "trixie",
        ("trixie",),
        "Docker's engine with containerd and runc, for `atoll docker`",
        flavour=Flavour.ENGINE,
        programs=engine.REQUIRED,
        optional=engine.OPTIONAL,
    ),
}


class Reference(msgspec.Struct, frozen=True):
    """The name of an image, complete and safe as the name of a directory."""

    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.name}:{self.tag}"


def parse(name: str) -> Reference:
    """The image that ``debian`` or ``debian:bookworm`` means.

    Raises:
        ImageError: ``image.name``: it is malformed.
    """
    first, colon, tag = name.partition(":")
    if not colon and first in RECIPES:
        tag = RECIPES[first].default
    elif not colon and _PART.fullmatch(first):
        tag = "latest"
    if not _PART.fullmatch(first) or not _PART.fullmatch(tag) or ".." in name:
        hint = "a name is NAME or NAME:TAG of lower-case letters, digits, dots and dashes, as debian:bookworm"
        raise ImageError(f"{name!r} is no name of an image", code="name", hint=hint)
    return Reference(first, tag)


def is_own(name: str) -> bool:
    """Whether ``name`` has the form of those that Atoll builds, so that ``parse`` takes it."""
    first, colon, tag = name.partition(":")
    return bool(_PART.fullmatch(first) and (not colon or _PART.fullmatch(tag)) and ".." not in name)


def is_recipe(name: str) -> bool:
    """Whether Atoll builds the image of that name: one of its own, with a tag that is known to work."""
    first, colon, tag = name.partition(":")
    return first in RECIPES and (not colon or tag in RECIPES[first].tags)


def canonical(name: str, *, default: str = HUB) -> str:
    """The whole name that ``name`` is short for: with its tag, and for people.

    Args:
        name: ``debian``, ``python:3.12-slim``, ``registry.example/team/app@sha256:...``.
        default: the registry of a name that has none.

    Raises:
        ImageError: ``image.name``: it is malformed.
    """
    if is_recipe(name):
        return str(parse(name))
    return parse_reference(name, default=default).tagged().short(default)
