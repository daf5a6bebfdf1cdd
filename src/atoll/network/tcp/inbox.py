"""What a guest sends in one flow, on its way to the host's socket."""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

__all__ = ["WINDOW", "Allowance", "Inbox", "Sink"]

_MASK: Final = (1 << 32) - 1

#: Bytes that one flow holds at most for each end.
WINDOW: Final = 4 << 20

#: Bytes that a guest may send in any flow, however many there are.
LEAST_WINDOW: Final = 16 << 10

#: Bytes up to which what waits is joined: a piece for every short segment would cost a multiple of them.
_PIECE: Final = 64 << 10


class Allowance(Protocol):
    """What the flows of one guest share.

    Attributes:
        allowance: bytes that the guest may still be told to send; below 0 each flow has its least window.
    """

    allowance: int


class Sink(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Send what can be sent now; the number of bytes taken, 0 after an error, which it keeps."""

    def want_drain(self) -> None:
        """Call ``Flow.drain`` when it takes data again."""


class Inbox:
    """The receive sequence variables of RFC 9293, section 3.3.1, and what waits for the host's socket.

    No guest is told to send more than there is room for, in this flow and in all of its flows together; and
    what it sends beyond that is not taken.

    Args:
        guest: what its flows share.
        sink: takes the bytes.

    Attributes:
        first: number of the first byte of all.
        next: number of the byte that is expected (RCV.NXT).
        told: what the guest was last told of it.
        waiting: bytes that the sink has not taken yet.
    """

    __slots__ = ("_edge", "_guest", "_pieces", "_sink", "first", "next", "told", "waiting")

    def __init__(self, guest: Allowance, sink: Sink) -> None:
        self._guest = guest
        self._sink = sink
        self._pieces: deque[bytearray] = deque()
        self.first = self.next = self.told = self._edge = 0
        self.waiting = 0

    def begin(self, sequence: int) -> None:
        """The guest's SYN has this number."""
        self.first = self.next = self.told = self._edge = (sequence + 1) & _MASK

    def offer(self, most: int = WINDOW) -> int:
        """The window to tell the guest, in bytes; from here on it may send them."""
        promised = (self._edge - self.next) & _MASK
        grow = min(most, self._share()) - promised - self.waiting
        if grow > 0:
            self._guest.allowance -= grow
            self._edge = (self._edge + grow) & _MASK
            promised += grow
        self.told = self.next
        return promised

    def is_wider(self) -> bool:
        """Whether the window could be larger than the guest knows, by enough to tell it."""
        share = self._share()
        return share - self.waiting - ((self._edge - self.next) & _MASK) >= share // 4

    def _share(self) -> int:
        """Bytes that this flow may have: as many as are left for all, so that any number get alike."""
        return min(WINDOW, max(LEAST_WINDOW, self._guest.allowance))

    def take(self, payload: memoryview) -> None:
        """Take what follows what was taken before; no more than the window."""
        size = len(payload)
        self.next = (self.next + size) & _MASK
        taken = 0 if self._pieces else self._sink.write(payload)
        self._guest.allowance += taken
        if taken < size:
            self._keep(payload[taken:])

    def _keep(self, rest: memoryview) -> None:
        pieces = self._pieces
        if not pieces:
            self._sink.want_drain()
        if pieces and len(pieces[-1]) + len(rest) <= _PIECE:
            pieces[-1] += rest
        else:
            pieces.append(bytearray(rest))
        self.waiting += len(rest)

    def skip(self) -> None:
        """Take a FIN, which has a number of its own; it may lie just beyond the window."""
        self.next = (self.next + 1) & _MASK
        if (self._edge - self.next) & _MASK > WINDOW:
            self._edge = self.next
        else:
            self._guest.allowance += 1

    def fits(self) -> int:
        """Bytes that the guest may send."""
        return (self._edge - self.next) & _MASK

    def drain(self) -> None:
        """Go on with what waits."""
        pieces = self._pieces
        while pieces:
            piece = pieces[0]
            taken = self._sink.write(piece)
            self.waiting -= taken
            self._guest.allowance += taken
            if taken < len(piece):
                del piece[:taken]
                self._sink.want_drain()
                return
            pieces.popleft()

    def close(self) -> None:
        """Forget what waits, and give back what the guest was told that it may send."""
        self._guest.allowance += self.waiting + ((self._edge - self.next) & _MASK)
        self._edge = self.next
        self._pieces.clear()
        self.waiting = 0
