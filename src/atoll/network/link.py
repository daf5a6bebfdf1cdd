"""A guest's network card: QEMU's ``stream`` network, at a socket on the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from atoll.network.wire import ethernet

__all__ = ["Card", "Link"]

#: Bytes read at once: several of the largest frames.
_READ_SIZE: Final = 8 * ethernet.LARGEST

#: Bytes that may wait to be sent until those who could send more are asked to wait, and until they go on.
_FULL: Final = 1 << 18
_ROOM: Final = 1 << 17

#: Bytes that wait, beyond which frames are dropped: nobody who was asked to wait gets there.
_MOST: Final = 1 << 22

#: Bytes that the kernel may hold for either direction, if it lets us.
_KERNEL_BUFFER: Final = 1 << 20

#: Parts of frames that are sent at once, below IOV_MAX (sendmsg(2)).
_PARTS: Final = 512

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Card(Protocol):
    """What looks at the frames."""

    def frame(self, buffer: memoryview, start: int, end: int) -> None:
        """A frame is at ``buffer[start:end]``, until this returns. Raises nothing, whatever it holds."""

    def seen(self) -> None:
        """All frames that had come have been seen."""

    def gone(self) -> None:
        """The other end has closed, or broke the framing."""


class Link:
    """Frames to and from one guest.

    Args:
        sock: a connected stream socket; owned from here on.
        card: looks at what comes.

    Attributes:
        is_full: more than a little waits to be sent, here or before it comes here: whoever can wait, waits
            with ``when_room``.
    """

    def __init__(self, sock: socket.socket, card: Card) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._card = card
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._held = 0
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._closed = False
        self._is_held = False
        self.is_full = False
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _KERNEL_BUFFER)
        self._loop.add_reader(sock.fileno(), self._readable)

    def when_room(self, call: Callable[[], None]) -> None:
        """Call ``call`` once, when little waits to be sent; in the order in which they were given."""
        self._waiting.append(call)

    @property
    def is_stuck(self) -> bool:
        """The guest does not take what it is sent."""
        return self._queued > _FULL

    def hold(self, *, full: bool) -> None:
        """Have whoever can wait do so, as more than a little waits to be given to this link; or no more."""
        self._is_held = full
        if full:
            self.is_full = True
        elif self.is_full and self._queued < _ROOM:
            self._go_on()

    def transmit(self, parts: list[bytes | memoryview]) -> None:
        """Send frames, each with its length before it, in any number of parts.

        What the guest does not take at once waits. With more waiting than anybody who waits for room can
        bring about, frames are dropped.
        """
        size = sum(map(len, parts))
        if self._closed or self._queued > _MOST:
            return
        sent = 0
        if not self._queue:
            try:
                sent = self._sock.sendmsg(parts[:_PARTS], (), _FLAGS)
            except BlockingIOError:
                pass
            except OSError:
                return  # the reader is told so
            if sent == size:
                return
            self._loop.add_writer(self._sock.fileno(), self._writable)
        self._queue.append(memoryview(b"".join(parts))[sent:])
        self._queued += size - sent
        self.is_full = self._is_held or self._queued > _FULL

    def close(self) -> None:
        """Let go of the socket; the card is not told. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._queue.clear()
            self._waiting.clear()

    def _writable(self) -> None:
        queue = self._queue
        with contextlib.suppress(BlockingIOError):
            while queue:
                try:
                    sent = self._sock.send(queue[0], _FLAGS)
                except ConnectionError:
                    self._queued = 0
                    queue.clear()
                    break
                self._queued -= sent
                if sent < len(queue[0]):
                    queue[0] = queue[0][sent:]
                else:
                    queue.popleft()
        if not queue:
            self._loop.remove_writer(self._sock.fileno())
        if self._queued < _ROOM and not self._is_held:
            self._go_on()

    def _go_on(self) -> None:
        self.is_full = False
        for _ in range(len(self._waiting)):
            if self.is_full:
                break
            self._waiting.popleft()()

    def _readable(self) -> None:
        try:
            count = self._sock.recv_into(self._buffer[self._held :])
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count or not self._split(self._held + count):
            self.close()
            self._card.gone()
            return
        self._card.seen()

    def _split(self, end: int) -> bool:
        """Pass on the frames in the first ``end`` bytes of the buffer; whether that can go on."""
        buffer, card_frame = self._buffer, self._card.frame
        at = 0
        while end - at >= 4:
            start = at + 4
            size = int.from_bytes(buffer[at:start])
            if size > ethernet.LARGEST:
                return False
            if end - start < size:
                break
            at = start + size
            card_frame(buffer, start, at)
            if self._closed:
                return True
        self._held = end - at
        if self._held and at:
            buffer[: self._held] = bytes(buffer[at:end])
        return True
