"""A worse link than there is, for tests: latency, jitter, loss and bandwidth of frames in one direction.

Frames keep their order, whatever the jitter: the network's end of TCP relies on it.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Final

import msgspec

__all__ = ["Shape", "Shaper"]

#: Bytes that are held in all, whatever is wanted; frames beyond are dropped.
_MOST: Final = 32 << 20

#: Bytes that a held frame costs beside what it holds.
_COST: Final = 256

#: Seconds for which is remembered at least how long frames took.
_SPAN: Final = 1.0


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a link is to be like.

    Attributes:
        latency: seconds that each frame takes.
        jitter: seconds by which that differs at most, either way, each time alike.
        loss: part of the frames that is lost, 0 to 1.
        rate: bytes in a second; 0 is no limit.
        queue: bytes that may wait for their turn where there is a rate.
    """

    latency: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    queue: int = 1 << 20

    def __post_init__(self) -> None:
        if min(self.latency, self.jitter, self.rate, self.queue) < 0 or not 0 <= self.loss <= 1:
            raise ValueError("neither a time, a rate nor a size is negative, and loss is from 0 to 1")


class Shaper:
    """Holds frames until they are due.

    Args:
        shape: of the link.
        seed: the same frames at the same times are lost and delayed alike with the same seed.

    Attributes:
        passed: frames that were taken.
        lost: frames that were lost as ``shape`` wants it.
        dropped: frames for which there was no room.
        held: bytes of frames that are held, and what they cost.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self.passed = self.lost = self.dropped = self.held = 0
        self._shape = shape
        self._random = Random(seed)
        self._frames: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0
        self._slowest = self._slowest_before = 0.0
        self._slowest_until = 0.0

    @property
    def next(self) -> float | None:
        """When the next frame is due; None if none is held."""
        return self._frames[0][0] if self._frames else None

    def backlog(self, now: float) -> float:
        """Seconds for which a frame that came now would wait for its turn."""
        return max(0.0, self._free_at - now)

    def slowest(self, now: float) -> float:
        """Seconds that any frame has taken that could be on its way now, or has just arrived.

        A frame is remembered for at least as long as it took: what it took counts in the span in which it
        came and in the next one, and no span is shorter than that.
        """
        if now >= self._slowest_until:
            is_long_ago = now >= self._slowest_until + self._span()
            self._slowest_before = 0.0 if is_long_ago else self._slowest
            self._slowest = 0.0
            self._slowest_until = now + self._span()
        return max(self._slowest, self._slowest_before)

    def _span(self) -> float:
        return max(_SPAN, self._slowest, self._slowest_before)

    def put(self, frame: bytes, now: float) -> bool:
        """Take a frame at ``now``, in seconds of a monotonic clock; False if it is lost or dropped."""
        shape = self._shape
        if shape.loss and self._random.random() < shape.loss:
            self.lost += 1
            return False
        begins = now
        if shape.rate:
            begins = max(now, self._free_at)
            waiting = (begins - now) * shape.rate
            if waiting + len(frame) > max(shape.queue, len(frame)):
                self.dropped += 1
                return False
        if self.held + len(frame) + _COST > _MOST:
            self.dropped += 1
            return False
        self._free_at = begins + (len(frame) / shape.rate if shape.rate else 0.0)
        delay = shape.latency
        if shape.jitter:
            delay += self._random.uniform(-shape.jitter, shape.jitter)
        due = self._free_at + max(0.0, delay)
        self._frames.append((due, frame))
        self.held += len(frame) + _COST
        self.passed += 1
        if due - now > self.slowest(now):
            self._slowest = due - now
            self._slowest_until = now + self._span()
        return True

    def take(self, now: float) -> list[bytes]:
        """The frames that are due at ``now``, in their order: none before one that came before it."""
        due = []
        while self._frames and self._frames[0][0] <= now:
            _, frame = self._frames.popleft()
            self.held -= len(frame) + _COST
            due.append(frame)
        return due
