"""What a guest has sent behind a segment that was lost, for links that are made to lose some."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["Early", "Keeper"]

_MASK: Final = (1 << 32) - 1
_HALF: Final = 1 << 31


class Keeper(Protocol):
    """What the flows of one guest share.

    Attributes:
        early: segments that are kept in all of its flows.
        most_early: how many may be; none while its link loses nothing.
    """

    early: int
    most_early: int


class Early:
    """Segments of one flow that came before one that belongs in front of them.

    Args:
        keeper: what flows share.
    """

    __slots__ = ("_keeper", "_segments")

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._segments: dict[int, tuple[bytes, bool]] = {}

    def __bool__(self) -> bool:
        return bool(self._segments)

    def keep(self, sequence: int, payload: memoryview, *, fin: bool) -> None:
        """Keep a segment, if there is room; of two that begin alike the longer one."""
        former = self._segments.get(sequence)
        if former is None:
            if self._keeper.early >= self._keeper.most_early:
                return
            self._keeper.early += 1
        elif len(former[0]) + former[1] >= len(payload) + fin:
            return
        self._segments[sequence] = bytes(payload), fin

    def take(self, expected: int) -> tuple[bytes, bool] | None:
        """What goes on at number ``expected``, and whether it is the end; None if that is still missing."""
        found = self._pop(expected) if expected in self._segments else None
        if found is not None:
            return found
        for sequence in tuple(self._segments):
            behind = (expected - sequence) & _MASK
            if behind < _HALF:
                payload, fin = self._pop(sequence)
                if behind < len(payload) + fin:
                    return payload[behind:], fin
        return None

    def _pop(self, sequence: int) -> tuple[bytes, bool]:
        self._keeper.early -= 1
        return self._segments.pop(sequence)

    def clear(self) -> None:
        """Forget all."""
        self._keeper.early -= len(self._segments)
        self._segments.clear()
