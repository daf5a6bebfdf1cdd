"""Captures of cards: what a network's process is asked for, how it answers, and who asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from atoll.errors import AtollError, ChannelError, NetworkError, UsageError
from atoll.guest.channel import Stream
from atoll.guest.messages import Empty, Request
from atoll.network import pcapng
from atoll.network.recording import Recording
from atoll.paths import NetworkPaths
from atoll.vm.control import Method
from atoll.vm.network.lines import Find, Lined, find_lined, not_plugged
from atoll.vm.network.reaching import ANSWER, reach, stuck
from atoll.vm.network.requests import NetworkControl
from atoll.vm.streams import LocalStream

if TYPE_CHECKING:  # who asks does without a network's inside
    from atoll.network.lan import Guest

__all__ = ["CaptureStart", "Captured", "Frames", "check_snap", "methods"]

#: Bytes of a frame that are worth keeping at least: those of its Ethernet header.
_LEAST_SNAP = 14

#: Cards in one capture.
_MOST_CARDS = 256


class CaptureStart(Request, frozen=True, tag="network.capture"):
    """Capture frames of cards. The stream carries a pcapng file, until the client ends its direction.

    It ends by itself when ``count`` frames were captured, or all the cards were pulled.

    Attributes:
        owners: of the cards, as they were plugged in.
        snap: bytes of a frame that are kept.
        count: frames after which it ends; 0 for no end.
    """

    owners: tuple[str, ...]
    snap: int = pcapng.LARGEST
    count: int = 0


class Captured(msgspec.Struct, frozen=True):
    """What became of frames.

    Attributes:
        frames: how many there were.
        dropped: how many of them are not in the capture, as it was read too slowly.
    """

    frames: int
    dropped: int


def check_snap(snap: int) -> int:
    """Bytes of a frame that are kept. Raises ``UsageError``: ``usage.capture``."""
    if not _LEAST_SNAP <= snap <= pcapng.LARGEST:
        hint = f"say {_LEAST_SNAP} to {pcapng.LARGEST} bytes"
        raise UsageError(f"{snap} bytes of a frame cannot be kept", code="capture", hint=hint)
    return snap


def methods(find: Find) -> dict[str, Method]:
    """What a network's process answers; ``find`` has its cards."""

    async def answer(payload: bytes, stream: LocalStream) -> None:
        order = msgspec.msgpack.decode(payload, type=CaptureStart)
        check_snap(order.snap)
        if not 0 < len(order.owners) <= _MOST_CARDS or order.count < 0:
            raise UsageError("no such capture", code="capture")
        await _record([find_lined(find, owner) for owner in dict.fromkeys(order.owners)], order, stream)

    return {"network.capture": answer}


async def _record(cards: list[tuple[Lined, Guest]], order: CaptureStart, stream: LocalStream) -> None:
    """Send what passes at these cards until that is to end."""
    awake = asyncio.Event()
    named = [
        (card.order.hostname or card.order.owner, f"{card.order.mac}, {card.plugged.address}")
        for card, _ in cards
    ]
    recording = Recording(named, snap=order.snap, count=order.count, wake=awake.set)
    taps = [(guest.line, recording.tap(number)) for number, (_, guest) in enumerate(cards)]
    waits = (_asked_to_end(stream), _all([card.gone for card, _ in cards]))
    ends = [asyncio.create_task(wait) for wait in waits]
    for end in ends:
        end.add_done_callback(lambda _: awake.set())
    try:
        for line, tap in taps:
            line.tap(tap)
        stream.reply(Empty(), end=False)
        while not (recording.is_complete or any(end.done() for end in ends)):
            await stream.write(recording.take())
            await awake.wait()
            awake.clear()
    finally:
        for line, tap in taps:
            line.untap(tap)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
    await stream.write(recording.take() + recording.statistics(), end=True)


async def _all(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _asked_to_end(stream: LocalStream) -> None:
    while await stream.read():
        pass


class Frames:
    """A capture, as it is read: blocks of a pcapng file. Belongs to one event loop.

    Args:
        place: the network.
        owners: of the cards, each with the name by which errors call it.
        snap: bytes of a frame that are kept.
        count: frames after which it ends; 0 for no end.

    Attributes:
        captured: what the end of the file says; None before.
    """

    def __init__(
        self, place: NetworkPaths, owners: Sequence[tuple[str, str]], *, snap: int, count: int = 0
    ) -> None:
        self.captured: Captured | None = None
        self._place = place
        self._names = dict(owners)
        self._order = CaptureStart(owners=tuple(self._names), snap=check_snap(snap), count=count)
        self._blocks = pcapng.Blocks()
        self._control: NetworkControl | None = None
        self._stream: Stream | None = None
        self._frames = self._dropped = 0
        self._asked = False

    @property
    def was_asked(self) -> bool:
        """Whether the end was asked for."""
        return self._asked

    async def open(self) -> None:
        """Begin: what passes from here on is captured.

        Raises:
            NetworkError: ``network.unplugged``: a card is not plugged in; ``network.stuck``.
        """
        sock = reach(self._place)
        if sock is None:
            raise not_plugged(", ".join(self._names.values()))
        self._control = NetworkControl(sock)
        self._stream = self._control.open(self._order)
        try:
            async with asyncio.timeout(ANSWER):
                await self._stream.reply(Empty)
        except TimeoutError:
            self.close()
            raise stuck(self._place) from None
        except ChannelError:  # it was about to end, as nothing is plugged in
            self.close()
            raise not_plugged(", ".join(self._names.values())) from None
        except AtollError as error:
            self.close()
            raise _named(error, self._names) from None

    async def read(self) -> list[bytes]:
        """The next blocks; none when the capture has ended.

        Raises:
            NetworkError: ``network.gone``: the network's process is gone, and what it had captured with it.
        """
        assert self._stream is not None
        while True:
            try:
                data = await self._stream.read()
                blocks = self._blocks.feed(data)
            except (ChannelError, ValueError) as error:
                message = f"the network's process is gone: {error}"
                hint = "what was captured until then can be read; begin again"
                raise NetworkError(message, code="gone", hint=hint) from error
            for block in blocks:
                self._count(block)
            if blocks or not data:
                return blocks

    def _count(self, block: bytes) -> None:
        said = pcapng.parse_statistics(block)
        if said is not None:
            self._frames += said.received
            self._dropped += said.dropped
            self.captured = Captured(self._frames, self._dropped)

    async def end(self) -> None:
        """Ask for the end: what was captured until then still comes. Asking twice is fine."""
        if not self._asked and self._stream is not None:
            self._asked = True
            with contextlib.suppress(AtollError):  # whoever reads is told
                await self._stream.write(b"", end=True)

    def close(self) -> None:
        """Let go of it. Closing twice is fine."""
        if self._control is not None:
            self._control.close()


def _named(error: AtollError, names: dict[str, str]) -> AtollError:
    """The error of the network's process, which knows owners by their ids alone."""
    owner, _, _ = error.message.partition(":")
    return not_plugged(names[owner]) if error.code == "network.unplugged" and owner in names else error
