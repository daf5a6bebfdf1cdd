"""Limits on how much may pass in a time."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """``rate`` units in a second, and ``burst`` at once after a rest. Units are bytes, packets, connections.

    Args:
        rate: units in a second, above 0.
        burst: units that may pass at once, at least 1.
        now: seconds of a monotonic clock.
    """

    __slots__ = ("_at", "_held", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        assert rate > 0
        assert burst >= 1
        self.rate = rate
        self.burst = burst
        self._held = burst
        self._at = now

    def room(self, now: float) -> int:
        """Whole units that may pass now; 0 while something is owed."""
        return max(0, int(self._fill(now)))

    def take(self, count: float, now: float) -> bool:
        """Let ``count`` units pass, or none and say False."""
        if self._fill(now) < count:
            return False
        self._held -= count
        return True

    def owe(self, count: float, now: float) -> None:
        """``count`` units have passed, whether there was room or not: what follows waits for it."""
        self._fill(now)
        self._held -= count

    def wait(self, count: float, now: float) -> float:
        """Seconds until ``count`` units may pass; those above ``burst`` pass as soon as it is full."""
        return max(0.0, (min(count, self.burst) - self._fill(now)) / self.rate)

    def _fill(self, now: float) -> float:
        if now > self._at:
            self._held = min(self.burst, self._held + (now - self._at) * self.rate)
            self._at = now
        return self._held
