"""A guest's share of bandwidth: who may read or write how much now, and who waits for it, in turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from atoll.network.policy.buckets import TokenBucket

__all__ = ["Lane", "Pacer"]

#: Bytes that may pass at once after a rest, at least: the largest datagram is one of them.
_LEAST_BURST: Final = 65536

#: Bytes for which a turn is worth while, at most; and parts of a second's rate.
_TURN: Final = 65536
_TURNS: Final = 50


class Lane:
    """One direction, on the running event loop.

    Args:
        rate: bytes in a second.
    """

    def __init__(self, rate: int) -> None:
        burst = max(rate // 10, _LEAST_BURST)
        self._bucket = TokenBucket(rate, burst, time.monotonic())
        self._turn = max(1, min(rate // _TURNS, _TURN))
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._is_calling = False
        self._left = 0  # bytes of the turn of who is called

    def grant(self, want: int) -> int:
        """Bytes of ``want`` that may pass now; with 0 it is the caller's to ``wait``."""
        if self._waiting and not self._is_calling:
            return 0
        room = self._bucket.room(time.monotonic())
        if self._is_calling:
            return min(want, room, self._left)
        return min(want, room) if room >= min(want, self._turn) else 0

    def spend(self, count: int) -> None:
        """So many bytes have passed."""
        self._bucket.owe(count, time.monotonic())
        self._left -= count

    def take(self, size: int) -> bool:
        """Whether a datagram may pass, which cannot wait."""
        return self._bucket.take(size, time.monotonic())

    def wait(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once, in its turn: what it asks for by ``grant`` it then gets."""
        self._waiting.append(call)
        if self._timer is None and not self._is_calling:
            self._set_timer()

    def close(self) -> None:
        """Let all go on who wait: there is no limit any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call()

    def _set_timer(self) -> None:
        wait = self._bucket.wait(self._turn, time.monotonic())
        self._timer = self._loop.call_later(max(wait, 0.001), self._call)

    def _call(self) -> None:
        self._timer = None
        self._is_calling = True
        try:
            for _ in range(len(self._waiting)):
                if self._bucket.room(time.monotonic()) < self._turn:
                    break
                self._left = self._turn
                self._waiting.popleft()()
        finally:
            self._is_calling = False
        if self._waiting:
            self._set_timer()


class Pacer:
    """Both directions of one guest.

    Args:
        rate: bytes in a second, in each of them.

    Attributes:
        up: from the guest.
        down: to the guest.
    """

    def __init__(self, rate: int) -> None:
        self.up = Lane(rate)
        self.down = Lane(rate)

    def close(self) -> None:
        """See ``Lane.close``."""
        self.up.close()
        self.down.close()
