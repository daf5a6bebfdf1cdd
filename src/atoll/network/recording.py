"""Frames of cards as the pieces of one pcapng file, in bounded memory, without any I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from atoll.network import pcapng
from atoll.network.line import Tap
from atoll.network.pcapng import Direction

__all__ = ["Recording"]

#: Bytes that wait to be taken, beyond which frames are dropped.
_MOST: Final = 4 << 20

_APPLICATION: Final = "Atoll"


class Recording:
    """What is recorded of one or several cards.

    Args:
        cards: name and further words of each.
        snap: bytes that are kept of each frame.
        count: frames after which it is complete; 0 for no end.
        clock: nanoseconds since the epoch.
        wake: called when there is something to take, or it is complete.

    Attributes:
        is_complete: ``count`` frames were recorded.
    """

    def __init__(
        self,
        cards: Sequence[tuple[str, str]],
        *,
        snap: int = pcapng.LARGEST,
        count: int = 0,
        clock: Callable[[], int] = time.time_ns,
        wake: Callable[[], None],
    ) -> None:
        self.is_complete = False
        self._snap = snap
        self._left = count
        self._clock = clock
        self._wake = wake
        self._received = [0] * len(cards)
        self._dropped = [0] * len(cards)
        self._pieces = [pcapng.section(_APPLICATION)]
        self._pieces += [pcapng.interface(name, snap=snap, comment=words) for name, words in cards]
        self._size = sum(map(len, self._pieces))

    def tap(self, number: int) -> Tap:
        """What records the frames of that card, counted from 0."""
        return partial(self._record, number)

    def _record(self, number: int, direction: Direction, frame: memoryview) -> None:
        if self.is_complete:
            return
        self._received[number] += 1
        if self._size > _MOST:
            self._dropped[number] += 1
            return
        block = pcapng.packet(number, self._clock(), frame, snap=self._snap, direction=direction)
        if not self._pieces:
            self._wake()
        self._pieces.append(block)
        self._size += len(block)
        if self._left:
            self._left -= 1
            self.is_complete = not self._left
            if self.is_complete:
                self._wake()

    def take(self) -> bytes:
        """What was recorded since it was last taken: whole blocks."""
        pieces, self._pieces = self._pieces, []
        self._size = 0
        return b"".join(pieces)

    def statistics(self) -> bytes:
        """The blocks with which the file ends: for each card how many frames there were and were dropped."""
        at = self._clock()
        counts = zip(self._received, self._dropped, strict=True)
        return b"".join(
            pcapng.statistics(number, at, received=received, dropped=dropped)
            for number, (received, dropped) in enumerate(counts)
        )
