"""What a guest has not acknowledged, kept to be sent again."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

__all__ = ["Outstanding", "Store"]

_MASK: Final = (1 << 32) - 1

#: Bytes up to which pieces are joined: one for every few bytes would cost a multiple of them.
_SHORT: Final = 1024

#: Bytes that all flows of one guest may have unacknowledged, and that each may have beyond that.
MOST_KEPT: Final = 64 << 20
LEAST_KEPT: Final = 16 << 10


class Store(Protocol):
    """What the flows of one guest share.

    Attributes:
        kept: bytes that are kept for it in all of its flows.
    """

    kept: int


class Outstanding:
    """Bytes in the order of their sequence numbers, in the pieces in which they came.

    Args:
        sequence: number of the first byte that will be sent.
        store: what its flows share.

    Attributes:
        first: number of the first byte that is not acknowledged (SND.UNA of RFC 9293, section 3.3.1).
        size: bytes that are kept.
    """

    __slots__ = ("_begin", "_pieces", "_store", "first", "size")

    def __init__(self, sequence: int, store: Store) -> None:
        self._store = store
        self.first = sequence
        self.size = 0
        self._begin = 0  # bytes of the first piece that are acknowledged
        self._pieces: deque[bytes] = deque()

    def add(self, data: bytes) -> None:
        """Keep what was just sent."""
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(data) <= _SHORT:
            pieces[-1] += data
        else:
            pieces.append(data)
        self.size += len(data)
        self._store.kept += len(data)

    def room(self, most: int) -> int:
        """Bytes that may be added for a flow that may have ``most``; who is told 0 or less has some to lose.

        So it goes on when its own guest acknowledges, whatever other flows do. A flow may keep as much as is
        left for all, so that any number of them get alike.
        """
        return min(most, max(LEAST_KEPT, MOST_KEPT - self._store.kept)) - self.size

    def acknowledge(self, count: int) -> None:
        """Forget the first ``count`` bytes, at most ``size``."""
        self.first = (self.first + count) & _MASK
        self.size -= count
        self._store.kept -= count
        count += self._begin
        pieces = self._pieces
        while pieces and count >= len(pieces[0]):
            count -= len(pieces.popleft())
        self._begin = count

    def piece(self, at: int, most: int) -> memoryview:
        """Up to ``most`` bytes behind the first ``at``, as far as they lie in one piece; empty behind all."""
        at += self._begin
        for piece in self._pieces:
            if at < len(piece):
                return memoryview(piece)[at : at + most]
            at -= len(piece)
        return memoryview(b"")

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._store.kept -= self.size
        self.size = self._begin = 0
