"""Ordinary sockets of this host, in which connections and datagrams of guests go on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from atoll.network.link import Link
from atoll.network.policy.firstbytes import FirstBytes, Progress
from atoll.network.tcp.flow import Flow

__all__ = ["TcpSocket"]

#: Bytes read at once, before others get a turn: four of the largest segments.
_BURST: Final = 4 * 65470

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

#: Payload of SO_LINGER (socket(7)): closing tells the peer of an error.
_BREAK_OFF: Final = struct.pack("ii", 1, 0)


class TcpSocket:
    """The host's side of one flow, on the running event loop.

    Args:
        sock: connected, or about to be; owned from here on.
        link: the guest's.
        allows: whether the guest may go on, asked once, with whom its first bytes want, None if they do not
            say; nothing of the guest's passes before. Without it all passes.
    """

    __slots__ = (
        "_allows",
        "_drains",
        "_ends",
        "_fd",
        "_first",
        "_flow",
        "_is_reading",
        "_link",
        "_loop",
        "_sock",
    )

    def __init__(
        self, sock: socket.socket, link: Link, allows: Callable[[str | None], bool] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._sock = sock
        self._fd = sock.fileno()
        self._flow: Flow | None = None
        self._is_reading = self._drains = self._ends = False
        self._allows = allows
        self._first = None if allows is None else FirstBytes()

    def dial(self, flow: Flow) -> None:
        """``flow`` waits for the socket, which is connecting."""
        self._flow = flow
        try:
            self._sock.getpeername()
        except OSError:
            self._loop.add_writer(self._fd, self._connected)
        else:  # this host itself answers before ``connect`` returns
            flow.connected(time.monotonic())

    def attach(self, flow: Flow) -> None:
        """``flow`` goes on in the socket, which is connected."""
        self._flow = flow

    @property
    def is_asking(self) -> bool:
        """Whether its first bytes have not said yet whom they want."""
        return self._allows is not None and self._first is not None and self._first.progress is Progress.MORE

    # What a flow calls

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """See ``Sink``."""
        return self._send(data) if self._first is None else self._hold(self._first, data)

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._sock.send(data, _FLAGS)
        except BlockingIOError:
            return 0
        except OSError:
            self._loop.call_soon(self._broken)
            return 0

    def want_drain(self) -> None:
        """See ``Sink``."""
        if not self._drains:
            self._drains = True
            self._loop.add_writer(self._fd, self._writable)

    def end(self) -> None:
        """See ``Host``."""
        self._ends = True
        if self._first is None:
            self._shut()
        elif self._first.progress is Progress.MORE:
            self._first.end()
            self._decide(self._first)

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def resume(self) -> None:
        """See ``Host``."""
        if not self._is_reading and self._flow is not None:
            self._is_reading = True
            self._loop.add_reader(self._fd, self._readable)

    def closed(self, *, reset: bool) -> None:
        """See ``Host``."""
        if self._first is not None and self._flow is not None:
            self._flow.hold(-len(self._first.held))
        self._flow = None
        self._pause()
        self._loop.remove_writer(self._fd)
        if reset:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BREAK_OFF)
        self._sock.close()

    # Whom the guest wants, where that decides

    def _hold(self, first: FirstBytes, data: bytes | bytearray | memoryview) -> int:
        if first.progress is not Progress.MORE:
            return 0 if self._allows is None else len(data)  # what was held goes first, or all is denied
        assert self._flow is not None
        if not self._flow.hold(len(data)):
            first.held += data
            first.end()  # others of this guest's hold all that there is room for
            self._decide(first)
        elif first.feed(data) is not Progress.MORE:
            self._decide(first)
        return len(data)

    def _decide(self, first: FirstBytes) -> None:
        assert self._allows is not None
        if self._allows(first.name):
            self._allows = None
            self._pass_on(first)
        else:
            self._loop.call_soon(self._broken)

    def _pass_on(self, first: FirstBytes) -> None:
        sent = self._send(first.held)
        del first.held[:sent]
        if self._flow is not None:
            self._flow.hold(-sent)
        if first.held:
            self.want_drain()
            return
        self._first = None
        if self._ends:
            self._shut()

    # What the event loop calls

    def _connected(self) -> None:
        assert self._flow is not None
        self._loop.remove_writer(self._fd)
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._flow.reset()
        else:
            self._flow.connected(time.monotonic())

    def _broken(self) -> None:
        if self._flow is not None:
            self._flow.reset()

    def _writable(self) -> None:
        self._drains = False
        assert self._flow is not None
        if self._first is not None:
            self._pass_on(self._first)
        if self._first is None:
            self._flow.drain()
        if not self._drains and self._flow is not None:
            self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        flow = self._flow
        assert flow is not None
        room = self._room(flow)
        if room:
            self._receive(flow, min(room, _BURST))

    def _room(self, flow: Flow) -> int:
        """Bytes that may be read now; where it is none, nothing is read until there is room."""
        if self._link.is_full:
            self._pause()
            self._link.when_room(self.resume)
            return 0
        room = flow.room()
        if room <= 0:
            self._pause()
            return 0
        return room

    def _receive(self, flow: Flow, most: int) -> int:
        """Read at most so many bytes, for the guest; how many there were."""
        try:
            data = self._sock.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            flow.reset()
            return 0
        if data:
            flow.send(data, time.monotonic(), more=len(data) == most)
        else:
            self._pause()
            flow.end(time.monotonic())
        return len(data)

    def _pause(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._fd)
