"""What may lie between a guest's card and its network: captures of its frames, and a shape.

The way of a frame from the guest: the card, captures, the shape, the station. To the guest it is the other
way round: a capture has what the guest's card has. With neither of them, nothing is in the way.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from atoll.network.link import Link
from atoll.network.pcapng import Direction
from atoll.network.shaping import Shape, Shaper
from atoll.network.wire import ethernet

__all__ = ["Line", "Receive", "Shaped", "Tap", "Transmit"]

#: Seconds for which frames may wait for their turn until those who could send more to the guest are asked to
#: wait, and until they go on; and bytes that are held, beyond which they are asked, too.
_FULL: Final = 0.1
_ROOM: Final = 0.05
_MOST_HELD: Final = 16 << 20

#: Segments that are kept of those that came behind others that were lost.
_MOST_EARLY: Final = 4096

Receive = Callable[[memoryview, int, int], None]
Transmit = Callable[[list[bytes | memoryview]], None]

#: Told of each frame: where it goes, and what it is. The frame is there until this returns.
Tap = Callable[[Direction, memoryview], None]


class Shaped(NamedTuple):
    """What one direction is like, and what has become of its frames since it is."""

    shape: Shape
    passed: int
    lost: int
    dropped: int


class Line:
    """Between one guest's card and its network, on the running event loop.

    Args:
        link: the card.
        receive: given what comes from the guest, as ``Card.frame``.
        seen: told after each frame that was held.
        lead: has what comes from the card given to the one, and what goes to it to the other.
    """

    def __init__(
        self,
        link: Link,
        receive: Receive,
        seen: Callable[[], None],
        lead: Callable[[Receive, Transmit], None],
    ) -> None:
        self._link = link
        self._receive = receive
        self._seen = seen
        self._lead = lead
        self._loop = asyncio.get_running_loop()
        self._taps: tuple[Tap, ...] = ()
        self._transmit: Transmit = link.transmit
        self._to_guest: _Lane | None = None
        self._from_guest: _Lane | None = None

    # Captures

    def tap(self, tap: Tap) -> None:
        """Have ``tap`` told of each frame from here on."""
        self._taps = (*self._taps, tap)
        self._lay()

    def untap(self, tap: Tap) -> None:
        """Have it told no more; it need not have been."""
        self._taps = tuple(other for other in self._taps if other is not tap)
        self._lay()

    # Shapes

    @property
    def to_guest(self) -> Shaped | None:
        """What frames to the guest meet; None if nothing."""
        return None if self._to_guest is None else self._to_guest.shaped

    @property
    def from_guest(self) -> Shaped | None:
        """What frames from the guest meet; None if nothing."""
        return None if self._from_guest is None else self._from_guest.shaped

    def shape_to_guest(self, shape: Shape | None) -> None:
        """Have frames to the guest meet this from here on; those that are held are let go at once."""
        former, self._to_guest = self._to_guest, None
        if former is not None:
            former.close()
        if shape is not None:
            self._to_guest = _Lane(shape, self._give, self._hold)
        self._hold(full=False)
        self._lay()

    def shape_from_guest(self, shape: Shape | None) -> None:
        """Have frames from the guest meet this from here on; those that are held are let go at once."""
        former, self._from_guest = self._from_guest, None
        if former is not None:
            former.close()
        if shape is not None:
            self._from_guest = _Lane(shape, self._take, None)
        self._lay()

    @property
    def delay(self) -> float:
        """Seconds that a frame and its answer take at most because of the shapes."""
        now = self._loop.time()
        return sum(
            lane.shaper.slowest(now) for lane in (self._to_guest, self._from_guest) if lane is not None
        )

    @property
    def most_early(self) -> int:
        """Segments that flows may keep which came behind others that are lost."""
        return 0 if self._from_guest is None and self._to_guest is None else _MOST_EARLY

    def close(self) -> None:
        """Let go of what is held, which goes nowhere. Closing twice is fine."""
        for lane in (self._to_guest, self._from_guest):
            if lane is not None:
                lane.drop()
        self._to_guest = self._from_guest = None
        self._taps = ()

    # Frames

    def _lay(self) -> None:
        """Put in the way what is to be there, and nothing else."""
        self._transmit = self._tapped_transmit if self._taps else self._link.transmit
        transmit = self._transmit if self._to_guest is None else self._shaped_transmit
        receive = self._receive if self._from_guest is None else self._shaped_receive
        self._lead(self._tapped_receive if self._taps else receive, transmit)

    def _tapped_receive(self, buffer: memoryview, start: int, end: int) -> None:
        for tap in self._taps:
            tap(Direction.OUTBOUND, buffer[start:end])
        receive = self._receive if self._from_guest is None else self._shaped_receive
        receive(buffer, start, end)

    def _tapped_transmit(self, parts: list[bytes | memoryview]) -> None:
        for frame in _frames(parts):
            for tap in self._taps:
                tap(Direction.INBOUND, frame)
        self._link.transmit(parts)

    def _shaped_receive(self, buffer: memoryview, start: int, end: int) -> None:
        # Whatever comes is read: QEMU, and with it the guest, stands still while its network reads nothing.
        assert self._from_guest is not None
        self._from_guest.put(bytes(buffer[start:end]))

    def _shaped_transmit(self, parts: list[bytes | memoryview]) -> None:
        assert self._to_guest is not None
        for frame in _frames(parts):
            self._to_guest.put(bytes(frame))

    def _take(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._receive(memoryview(frame), 0, len(frame))
            self._seen()  # each by itself: what the guest sends after a loss is to be answered one by one

    def _give(self, frames: list[bytes]) -> None:
        parts: list[bytes | memoryview] = []
        for frame in frames:
            parts += (ethernet.LENGTH.pack(len(frame)), frame)
        self._transmit(parts)

    def _hold(self, *, full: bool) -> None:
        self._link.hold(full=full)


class _Lane:
    """One direction that is shaped.

    Args:
        shape: what it is like.
        pass_on: given frames when they are due.
        hold: told when whoever sends is to wait, and when they may go on; None if they do not wait.
    """

    def __init__(
        self, shape: Shape, pass_on: Callable[[list[bytes]], None], hold: Callable[..., None] | None
    ) -> None:
        self.shaper = Shaper(shape, int.from_bytes(os.urandom(8)))
        self._shape = shape
        self._pass_on = pass_on
        self._hold = hold
        self._is_full = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def shaped(self) -> Shaped:
        shaper = self.shaper
        return Shaped(self._shape, shaper.passed, shaper.lost, shaper.dropped)

    def put(self, frame: bytes) -> None:
        now = self._loop.time()
        if self.shaper.put(frame, now):
            self._look(now)

    def close(self) -> None:
        """Pass on at once what is held."""
        self._stop()
        frames = self.shaper.take(math.inf)
        if frames:
            self._pass_on(frames)

    def drop(self) -> None:
        self._stop()
        self._pass_on = _nowhere

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hold = None

    def _look(self, now: float) -> None:
        """See whether there is room, and be called when something is due."""
        shaper = self.shaper
        if self._hold is not None:
            backlog = shaper.backlog(now)
            is_full = backlog > (_ROOM if self._is_full else _FULL) or shaper.held > _MOST_HELD
            if is_full != self._is_full:
                self._is_full = is_full
                self._hold(full=is_full)
        at = shaper.next
        if self._is_full:
            at = min(now + max(0.001, shaper.backlog(now) - _ROOM), math.inf if at is None else at)
        if at is not None and (self._timer is None or at < self._timer.when()):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        frames = self.shaper.take(now)
        if frames:
            self._pass_on(frames)
        self._look(self._loop.time())


def _nowhere(_: list[bytes]) -> None:
    """What is held is gone."""


def _frames(parts: list[bytes | memoryview]) -> list[memoryview]:
    """The frames in what is given to ``Link.transmit``."""
    data = memoryview(b"".join(parts))
    frames = []
    at = 0
    while at < len(data):
        start = at + ethernet.LENGTH.size
        at = start + int.from_bytes(data[at:start])
        frames.append(data[start:at])
    return frames
