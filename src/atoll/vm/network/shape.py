"""Shapes of links to guests: what a network's process is asked for, how it answers, and who asks."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from atoll.errors import ChannelError, NetworkError, UsageError
from atoll.guest.messages import Request
from atoll.network.line import Line, Shaped
from atoll.network.shaping import Shape
from atoll.paths import NetworkPaths
from atoll.vm.control import Method
from atoll.vm.network.lines import Find, find_lined, not_plugged
from atoll.vm.network.reaching import ANSWER, reach, stuck
from atoll.vm.network.requests import NetworkControl
from atoll.vm.streams import LocalStream

__all__ = ["Lane", "Lanes", "ShapeRequest", "ask_shape", "methods", "shape_order"]


_DIRECTIONS: Final = {"in": ("inward",), "out": ("outward",), "both": ("inward", "outward")}


class ShapeRequest(Request, frozen=True, tag="network.shape"):
    """Ask how the link to a guest is shaped, and have it shaped otherwise before.

    Attributes:
        owner: of the card.
        inward: frames to the guest are to be so; None for no change.
        outward: frames from the guest, likewise.
        off: nothing is to be done to frames of ``inward`` and ``outward`` any more, before what these say.
    """

    owner: str
    inward: Shape | None = None
    outward: Shape | None = None
    off: tuple[str, ...] = ()


class Lane(msgspec.Struct, frozen=True):
    """One direction that is shaped.

    Attributes:
        shape: what it is like.
        passed: frames that have passed, or are on their way.
        lost: frames that were lost because of ``loss``.
        dropped: frames for which the queue had no room.
    """

    shape: Shape
    passed: int
    lost: int
    dropped: int


class Lanes(msgspec.Struct, frozen=True):
    """Both directions as the guest sees them; None is one that is not shaped."""

    inward: Lane | None = None
    outward: Lane | None = None


def methods(find: Find) -> dict[str, Method]:
    """What a network's process answers; ``find`` has its cards."""

    async def answer(payload: bytes, stream: LocalStream) -> None:
        order = msgspec.msgpack.decode(payload, type=ShapeRequest)
        _, guest = find_lined(find, order.owner)
        _shape(guest.line, order)
        stream.reply(Lanes(inward=_lane(guest.line.to_guest), outward=_lane(guest.line.from_guest)))

    return {"network.shape": answer}


def _shape(line: Line, order: ShapeRequest) -> None:
    if order.inward is not None or "inward" in order.off:
        line.shape_to_guest(order.inward)
    if order.outward is not None or "outward" in order.off:
        line.shape_from_guest(order.outward)


def _lane(shaped: Shaped | None) -> Lane | None:
    return None if shaped is None else Lane(*shaped)


def shape_order(owner: str, shape: Shape, direction: str) -> ShapeRequest:
    """Have frames of ``direction``, ``in``, ``out`` or ``both``, meet ``shape``, which may be of nothing.

    Raises:
        UsageError: ``usage.shape``: that is no direction.
    """
    if direction not in _DIRECTIONS:
        hint = f"say {', '.join(_DIRECTIONS)}"
        raise UsageError(f"direction: {direction!r} is none", code="shape", hint=hint)
    wanted = None if shape == Shape() else shape
    off = _DIRECTIONS[direction]
    return ShapeRequest(
        owner=owner,
        inward=wanted if "inward" in off else None,
        outward=wanted if "outward" in off else None,
        off=off,
    )


async def ask_shape(place: NetworkPaths, name: str, order: ShapeRequest) -> Lanes:
    """How the link of ``order.owner``, who is called ``name``, is shaped from here on.

    Raises:
        NetworkError: ``network.unplugged``: its card is not plugged in; ``network.stuck``.
    """
    sock = reach(place)
    if sock is None:
        raise not_plugged(name)
    control = NetworkControl(sock)
    try:
        async with asyncio.timeout(ANSWER):
            return await control.call(order, Lanes)
    except TimeoutError:
        raise stuck(place) from None
    except ChannelError:  # it was about to end, as nothing is plugged in
        raise not_plugged(name) from None
    except NetworkError as error:
        raise (not_plugged(name) if error.code == "network.unplugged" else error) from None
    finally:
        control.close()
