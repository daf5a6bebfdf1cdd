"""What the engine keeps, and what of it nobody uses."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote

import msgspec

from atoll.containers import api
from atoll.containers.engine import Engine
from atoll.errors import EngineError

T = TypeVar("T")

__all__ = ["Part", "Pruned", "Usage", "prune", "usage"]


_EVERY = quote('{"all":["true"]}')


class Part(msgspec.Struct, frozen=True):
    """One kind of things that the engine keeps; sizes in bytes.

    Attributes:
        name: of the kind.
        count: how many there are.
        size: of all.
        unused: of those that no container uses.
    """

    name: str
    count: int
    size: int
    unused: int


class Usage(msgspec.Struct, frozen=True):
    """What the engine keeps.

    Attributes:
        parts: by its kind.
        host: bytes of this host's disk that its disk takes.
        disk: bytes that it may have.
    """

    parts: tuple[Part, ...]
    host: int
    disk: int


class Pruned(msgspec.Struct, frozen=True):
    """What was removed, bytes as the engine counts them, and what this host got back of its disk."""

    removed: int
    given_back: int


class _Image(msgspec.Struct, rename="pascal"):
    size: int = 0
    containers: int = 0


class _Container(msgspec.Struct, rename="pascal"):
    size_rw: int = 0
    state: str = ""


class _VolumeUse(msgspec.Struct, rename="pascal"):
    size: int = 0
    ref_count: int = 0


class _Volume(msgspec.Struct, rename="pascal"):
    usage_data: _VolumeUse = msgspec.field(default_factory=_VolumeUse)


class _Built(msgspec.Struct, rename="pascal"):
    size: int = 0
    in_use: bool = False


class _Kept(msgspec.Struct, rename="pascal"):
    layers_size: int = 0
    images: list[_Image] | None = None
    containers: list[_Container] | None = None
    volumes: list[_Volume] | None = None
    build_cache: list[_Built] | None = None


class _Reclaimed(msgspec.Struct, rename="pascal"):
    space_reclaimed: int = 0


async def usage(engine: Engine) -> Usage:
    """What the engine, which answers, keeps.

    Raises:
        EngineError: ``engine.answer``; ChannelError, StateError: it has gone.
    """
    kept = _decoded(await api.get(await engine.connected(), "/system/df"), _Kept)
    images, containers = kept.images or [], kept.containers or []
    volumes, built = [one.usage_data for one in kept.volumes or []], kept.build_cache or []
    parts = (
        Part("images", len(images), kept.layers_size, sum(one.size for one in images if not one.containers)),
        Part(
            "containers",
            len(containers),
            sum(one.size_rw for one in containers),
            sum(one.size_rw for one in containers if one.state != "running"),
        ),
        Part(
            "volumes",
            len(volumes),
            sum(one.size for one in volumes),
            sum(one.size for one in volumes if not one.ref_count),
        ),
        Part(
            "build cache",
            len(built),
            sum(one.size for one in built),
            sum(one.size for one in built if not one.in_use),
        ),
    )
    return Usage(parts, engine.allocated(), (await engine.status()).disk)


async def prune(engine: Engine, *, every: bool = False, volumes: bool = False) -> Pruned:
    """Remove what no container uses, and have the machine give the space back.

    Args:
        engine: which answers.
        every: images that have names, too.
        volumes: volumes, too, of which nothing else has a copy.

    Raises:
        EngineError: ``engine.answer``; ChannelError, StateError: it has gone.
    """
    before = engine.allocated()
    named = quote('{"dangling":["false"]}') if every else quote('{"dangling":["true"]}')
    paths = ["/containers/prune", "/networks/prune", f"/images/prune?filters={named}", "/build/prune"]
    if volumes:
        paths.insert(1, f"/volumes/prune?filters={_EVERY}")
    removed = 0
    for path in paths:
        removed += _decoded(
            await api.call(await engine.connected(), "POST", path), _Reclaimed
        ).space_reclaimed
    await engine.trim()
    return Pruned(removed, max(before - engine.allocated(), 0))


def _decoded(answer: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"dockerd's answer: {error}", code="answer") from error
