"""What a network's process is asked by who manages networks: to let go of a card or a machine, or to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from atoll.errors import AtollError, NetworkError
from atoll.guest.channel import Channel
from atoll.guest.messages import Empty, Request
from atoll.paths import NetworkPaths
from atoll.vm.control import Method
from atoll.vm.network.names import known
from atoll.vm.network.reaching import ANSWER, reach, stuck
from atoll.vm.streams import LocalStream

__all__ = ["Forget", "Pull", "Retire", "ask", "methods", "pull", "pull_elsewhere"]

T = TypeVar("T")

#: Seconds in which a network answers that most likely has nothing to let go of.
_SOON = 3.0


class Pull(Request, frozen=True, tag="network.pull"):
    """Have the card pulled whose hypervisor listens at ``socket``; nothing happens if it is not there."""

    socket: str


class Forget(Request, frozen=True, tag="network.forget"):
    """Have the address of a machine that is gone be another's. ``owner`` is its id."""

    owner: str


class Retire(Request, frozen=True, tag="network.retire"):
    """Have the process end for good, unless a card is plugged in. It is asked by who removes the network."""


class Cards(Protocol):
    """The cards of a network."""

    def __len__(self) -> int: ...

    def pull(self, socket: str) -> None:
        """Pull the card out that is plugged in at that socket, if one is."""

    def forget(self, owner: str) -> None:
        """A machine is gone for good."""


def methods(cards: Cards, end: Callable[[], None]) -> Mapping[str, Method]:
    """What answers these requests.

    Args:
        cards: of the network.
        end: has its process end.
    """

    async def answer_pull(payload: bytes, stream: LocalStream) -> None:
        cards.pull(msgspec.msgpack.decode(payload, type=Pull).socket)
        stream.reply(Empty())

    async def answer_forget(payload: bytes, stream: LocalStream) -> None:
        cards.forget(msgspec.msgpack.decode(payload, type=Forget).owner)
        stream.reply(Empty())

    async def answer_retire(_: bytes, stream: LocalStream) -> None:
        if len(cards):
            raise NetworkError(
                f"{len(cards)} cards are plugged in", code="in_use", hint="stop those VMs first"
            )
        stream.reply(Empty())
        end()

    return {"network.pull": answer_pull, "network.forget": answer_forget, "network.retire": answer_retire}


async def ask(place: NetworkPaths, request: Request, reply: type[T], *, patience: float = ANSWER) -> T | None:
    """What a network's process answers; None if there is none.

    Args:
        place: of the network.
        request: what it is asked.
        reply: what it answers with.
        patience: seconds in which it has to.

    Raises:
        NetworkError: ``network.stuck``: it does not answer; or as it answers.
        ChannelError: it went away meanwhile.
    """
    sock = reach(place)
    if sock is None:
        return None
    channel = Channel(sock)
    try:
        async with asyncio.timeout(patience):
            return await channel.call(request, reply)
    except TimeoutError:
        raise stuck(place) from None
    finally:
        channel.close()


async def pull(place: NetworkPaths, socket: Path, *, patience: float = ANSWER) -> None:
    """Have a network let go of the card at ``socket``. Raises as ``ask``."""
    await ask(place, Pull(str(socket)), Empty, patience=patience)


async def pull_elsewhere(place: NetworkPaths, socket: Path) -> None:
    """Have all networks but one let go of the card at ``socket``; those that do not answer are passed over.

    A VM may have been on its way from one to the other when its supervisor was killed.
    """
    networks = place.directory.parent
    others = [NetworkPaths(networks / name) for name in known(networks) if name != place.directory.name]
    asked = await asyncio.gather(
        *(pull(other, socket, patience=_SOON) for other in others), return_exceptions=True
    )
    for failure in asked:
        if isinstance(failure, BaseException) and not isinstance(failure, AtollError):
            raise failure
