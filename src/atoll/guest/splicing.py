"""A connection of this host and a stream of the guest, spliced: each goes on where the other ends.

The way of a byte from a client: ``Splice._upload`` reads as much from the client's socket as the guest gives
credit for, and ``Stream.offer`` sends it; back: ``Splice._download`` writes what ``Stream.take`` has, and
gives credit for what the client's socket took. So nothing but one window is ever held for a connection, and
a side that does not read holds up the writer at the other end, and nobody else. No task waits for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import sys
from collections.abc import Callable

from atoll.errors import AtollError, ChannelError
from atoll.guest import wire
from atoll.guest.channel import Stream

__all__ = ["Acceptor", "Hangups", "Splice", "abort"]

#: Bytes read from a client at once: eight frames.
_READ_SIZE = 8 * wire.CHUNK
#: Clients that are accepted before others get a turn.
_AT_ONCE = 64
#: Seconds without accepting where this process has no descriptor left for another client.
_BREATH = 0.1
#: Seconds in which a server may take what a client sent that is gone.
_LINGER = 5.0
#: Payload of SO_LINGER (socket(7)): closing tells the peer of an error.
_BREAK_OFF = struct.pack("ii", 1, 0)

#: Read into by one splice after the other: what it holds is a frame before the next one reads.
_buffer = memoryview(bytearray(_READ_SIZE))


class Acceptor:
    """Accepts clients on the running event loop.

    Args:
        listener: a listening socket; owned from here on.
        on_client: called with each client's socket, which does not block; it is the callee's.
    """

    def __init__(self, listener: socket.socket, on_client: Callable[[socket.socket], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._on_client = on_client
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        listener.setblocking(False)
        self._go_on()

    def close(self, *, last: bool = False) -> None:
        """Accept no more, with ``last`` but for those who have connected, and close the socket.

        Closing twice is fine.
        """
        if self._closed:
            return
        if last:
            self._accept(sys.maxsize)
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _go_on(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self, most: int = _AT_ONCE) -> None:
        for _ in range(most):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor or no memory is left: clients wait in the queue (accept(2))
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(_BREATH, self._go_on)
                return
            client.setblocking(False)
            self._on_client(client)
            if self._closed:
                return


class Hangups:
    """Tells who has hung up, also where nobody reads from him: an end alone is no hang-up.

    A client that has shut down its sending side waits for its answer; one that has closed its socket, or was
    killed, does not. Reading tells the same of both; epoll(7) tells them apart.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told: dict[int, Callable[[bool], None]] = {}
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._on_hangup)

    def watch(self, sock: socket.socket, tell: Callable[[bool], None]) -> None:
        """Have ``tell`` called, once, when ``sock`` has hung up; with True if it broke off."""
        self._told[sock.fileno()] = tell
        self._epoll.register(sock.fileno(), select.EPOLLONESHOT)  # EPOLLHUP and EPOLLERR are always told

    def forget(self, sock: socket.socket) -> None:
        """Watch a socket no more, before it is closed."""
        if self._told.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def close(self) -> None:
        """Watch nobody. Closing twice is fine."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._told.clear()

    def _on_hangup(self) -> None:
        for fd, events in self._epoll.poll(0):
            tell = self._told.get(fd)
            if tell is not None:
                tell(bool(events & select.EPOLLERR))


class Splice:
    """One client and its stream, from when the guest has accepted it until both have ended.

    An end on either side is passed on while the other direction goes on; an error on either side, behind what
    was sent before it, is one on the other.

    Args:
        sock: connected, not blocking; owned from here on.
        stream: whose request was accepted; owned likewise.
        hangups: tells whether the client is gone.
        on_end: called once when all is over: with the error that ended it, or None.
    """

    def __init__(
        self,
        sock: socket.socket,
        stream: Stream,
        hangups: Hangups,
        on_end: Callable[[AtollError | OSError | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._stream = stream
        self._hangups = hangups
        self._on_end = on_end
        self._rest = memoryview(b"")  # taken from the stream, and not by the client
        self._reading = False
        self._writing = False
        self._client_ended = False
        self._server_ended = False
        self._linger: asyncio.TimerHandle | None = None
        self._over = False
        hangups.watch(sock, self._on_hangup)
        stream.follow(self._on_change)
        self._loop.call_soon(self._on_change)

    def close(self) -> None:
        """Break off. Closing twice is fine."""
        self._finish(ChannelError("the connection was closed", code="closed"))

    def _on_change(self) -> None:
        """Something has come from the guest."""
        if not self._over and not self._writing:
            self._download()
        if not self._over and not self._reading and not self._client_ended and self._stream.takes():
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._upload)

    def _upload(self) -> None:
        room = self._stream.takes()
        if not room:  # the guest, or the link to it, takes no more: there will be a call
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())
            return
        try:
            count = self._socket.recv_into(_buffer[:room])
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(error)
            return
        if not count:
            self._client_ended = True
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())
        self._stream.offer(_buffer[:count], end=not count)
        self._settle()

    def _download(self) -> None:
        try:
            while self._rest or (data := self._stream.take()):
                if not self._rest:
                    self._rest = memoryview(data)
                count = self._socket.send(self._rest)
                self._rest = self._rest[count:]
                self._stream.consumed(count)
                if self._over:
                    return
        except BlockingIOError:
            self._want_writable(wanted=True)
            return
        except OSError as error:
            self._finish(error)
            return
        self._want_writable(wanted=False)
        if self._stream.ended and not self._server_ended:
            self._server_ended = True
            with contextlib.suppress(OSError):  # the client is gone
                self._socket.shutdown(socket.SHUT_WR)
        self._settle()

    def _settle(self) -> None:
        """Whether it is over: called when nothing waits for the client."""
        if self._over or self._writing:
            return
        if self._stream.error is not None:
            self._finish(self._stream.error)
        elif self._client_ended and self._server_ended:
            self._finish(None)

    def _want_writable(self, *, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._socket.fileno(), self._download)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._socket.fileno())
        self._writing = wanted

    def _on_hangup(self, broken: bool) -> None:
        """The client reads no more. The server still gets what it sent, unless it does not read either."""
        if broken or self._writing:
            self._finish(ConnectionResetError("the client is gone"))
        elif not self._server_ended and not self._over:
            self._linger = self._loop.call_later(
                _LINGER, self._finish, ConnectionResetError("the client is gone")
            )

    def _finish(self, error: AtollError | OSError | None) -> None:
        if self._over:
            return
        self._over = True
        if self._linger is not None:
            self._linger.cancel()
        self._hangups.forget(self._socket)
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._rest = memoryview(b"")
        if error is None:
            self._socket.close()
        else:
            abort(self._socket)
        self._stream.cancel()
        self._on_end(error)


def abort(sock: socket.socket) -> None:
    """Close a client's socket so that it is told of an error, as far as its kind of socket tells."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _BREAK_OFF)
    sock.close()
