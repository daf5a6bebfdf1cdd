"""The guest channel: a ``Session`` on a socket, driven by the event loop.

The way of a byte from the guest: ``_on_readable`` takes it from the socket, ``Session.receive`` names the
stream it belongs to, ``_dispatch`` hands it to that ``Stream``, and ``Stream.read`` to whoever waits for it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar

import msgspec

from atoll.errors import AtollError, ChannelError, GuestError, ProtocolError, revive
from atoll.guest import wire
from atoll.guest.messages import HOST_ERROR, LINK_RESET, Empty, Refusal, Request
from atoll.guest.session import Data, Replied, Reset, Session, SessionEvent, Welcomed, Writable

__all__ = ["Channel", "LinkResetError", "Receiver", "Stream"]

T = TypeVar("T")

#: Most bytes queued for the link before writers wait.
_LINK_QUEUE = 262_144
#: Size of one read from the link, bytes.
_READ_SIZE = 262_144
#: Buffers given to one sendmsg(2).
_GATHER = 16
#: Resyncs after broken frames that are tried before the channel is given up.
_MAX_RESYNCS = 4

_encode = msgspec.msgpack.Encoder().encode


class LinkResetError(ChannelError):
    """The link was brought in step again; this stream died with the former session, its execution lives."""

    family = "channel.reset"


class Receiver(Protocol):
    """What becomes of what the guest sends on one stream. Called on the event loop; nothing may wait."""

    def on_reply(self, payload: bytes, *, end: bool) -> None:
        """The guest accepted the request."""

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Bytes of the stream."""

    def on_credit(self, count: int) -> None:
        """The guest has consumed ``count`` bytes."""

    def on_failure(self, error: AtollError) -> None:
        """The stream ended with an error."""


class Channel:
    """The host's end of the channel to one guest. Lives on one event loop; not thread-safe.

    Args:
        sock: the connected stream socket whose other end the hypervisor has; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._session = Session(lambda: os.urandom(16))
        self._streams: dict[int, Receiver] = {}
        self._standing: set[int] = set()
        self._posted: dict[int, Request] = {}
        self._buffer = bytearray(_READ_SIZE)
        self._writing = False
        self._corked = False
        self._room = asyncio.Event()
        self._room.set()
        self._held_back: list[Callable[[], None]] = []
        self._version: int | None = None
        self._changed = asyncio.Event()
        self._resyncs = 0
        self._broken: ChannelError | None = None
        self._last = time.monotonic()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LINK_QUEUE)
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._session.begin()
        self._flush()

    async def ready(self) -> int:
        """Wait until the guest has answered HELLO; the protocol version spoken.

        Raises:
            ChannelError: the link broke first.
        """
        while self._version is None:
            self._check_usable()
            self._changed.clear()
            await self._changed.wait()
        return self._version

    def resync(self) -> None:
        """Bring the link in step again, as after a restore. Streams end with ``LinkResetError``."""
        self._check_usable()
        self._version = None
        streams, self._streams = self._streams, {}
        self._session.begin()
        for stream in streams.values():
            stream.on_failure(LinkResetError("the link was brought in step again"))
        posted, self._posted = self._posted, {}
        for request in posted.values():
            self.post(request)
        self._flush()

    async def call(self, request: Request, reply: type[T]) -> T:
        """Send a request that has no body and return its reply.

        Raises:
            GuestError: the agent refused it.
            ChannelError: the link broke.
        """
        stream = self.open(request, end=True)
        try:
            return await stream.reply(reply)
        finally:
            stream.cancel()

    async def call_again(self, request: Request, reply: type[T]) -> T:
        """``call`` for a request that may be repeated: it is sent again after each loss of step."""
        while True:
            try:
                return await self.call(request, reply)
            except LinkResetError:
                await self.ready()

    def open(self, request: Request, *, end: bool = False, window: int = wire.WINDOW) -> Stream:
        """Send a request whose stream carries data.

        Args:
            request: what is asked for.
            end: no data will be sent from here.
            window: bytes with which either direction begins, as the request says.
        """
        self._check_usable()
        stream = Stream(self, self._session.open(_encode(request), end=end, window=window))
        self._streams[stream.id] = stream
        self._flush()
        return stream

    def post(self, request: Request) -> None:
        """Send a request whose reply does not matter and that may be repeated, without waiting.

        It is sent again after a loss of step; on a broken channel nothing happens.
        """
        if self._broken is None:
            self._posted[self._session.open(_encode(request), end=True)] = request
            self._flush()

    def forward(self, request: bytes, receiver: Receiver, *, end: bool, window: int = wire.WINDOW) -> int:
        """Open a stream for somebody else, as ``open`` does for this process; its number on the link.

        What follows in both directions is passed on as it is: credit goes from end to end.
        """
        self._check_usable()
        stream = self._session.open(request, end=end, window=window)
        self._streams[stream] = receiver
        self._flush()
        return stream

    def forward_data(self, stream: int, data: bytes, *, end: bool) -> None:
        """Pass on bytes. Raises ``ProtocolError`` if they are more than the guest gave credit for."""
        if stream not in self._streams:
            return
        if self._session.send(stream, memoryview(data), end=end) < len(data):
            raise ProtocolError("DATA beyond the window")
        self._flush()

    def forward_credit(self, stream: int, count: int) -> None:
        """Pass on credit."""
        if stream in self._streams:
            self._session.consume(stream, count)
            self._flush()

    def forward_over(self, stream: int) -> None:
        """A stream that was opened by ``forward`` has ended in both directions: forget it."""
        self._streams.pop(stream, None)

    def forward_reset(self, stream: int, reason: bytes) -> None:
        """Pass on the end of a stream."""
        if self._streams.pop(stream, None) is not None:
            self._session.cancel(stream, reason)
            self._flush()

    async def lost(self) -> ChannelError:
        """Wait until the link is no more; why."""
        while self._broken is None:
            self._changed.clear()
            await self._changed.wait()
        return self._broken

    @property
    def broken(self) -> bool:
        """Whether the link is no more, also where nobody has read that yet."""
        if self._broken is None:
            try:
                if not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    self._on_readable()
            except OSError:  # nothing to read
                pass
        return self._broken is not None

    @property
    def idle(self) -> float:
        """Seconds for which nothing has been under way; 0 while something is."""
        busy = self._posted or self._streams.keys() - self._standing
        return 0.0 if busy else time.monotonic() - self._last

    def disregard(self, stream: Stream) -> None:
        """Have a stream be nothing that is under way: it waits for whatever may come."""
        self._standing &= self._streams.keys()  # those that are over
        self._standing.add(stream.id)

    @property
    def congested(self) -> bool:
        """Whether so much is queued for the link that nobody should add to it: wait for ``room``."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until the link takes more, or is broken."""
        await self._room.wait()

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Write what is queued inside the block at its end, at once."""
        self._corked = True
        try:
            yield
        finally:
            self._corked = False
            if self._broken is None:
                self._flush()

    def close(self) -> None:
        """Give up the link; whoever waits gets ``ChannelError``. Closing twice is fine."""
        self._lose(ChannelError("the channel was closed", code="closed"))

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _lose(self, error: ChannelError) -> None:
        if self._broken is not None:
            return
        self._broken = error
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._room.set()
        self._changed.set()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.on_failure(error)

    def _on_readable(self) -> None:
        try:
            count = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self._lose(ChannelError("the guest is gone: its channel was closed", code="gone"))
            return
        self._last = time.monotonic()
        try:
            with self.corked():  # what many frames make their readers send leaves at once
                for event in self._session.receive(memoryview(self._buffer)[:count]):
                    self._dispatch(event)
        except ProtocolError as error:
            self._resyncs += 1
            if self._resyncs > _MAX_RESYNCS or error.code == "protocol.version":
                self._lose(error)
            else:
                self.resync()

    def _dispatch(self, event: SessionEvent) -> None:
        if isinstance(event, Welcomed):
            self._version = event.version
            self._changed.set()
            return
        stream = self._streams.get(event.stream)
        if stream is None:
            request = self._posted.pop(event.stream, None)
            if request is not None and isinstance(event, Reset) and _is_link_reset(event.payload):
                self.post(request)  # a supervisor on the way lost step with the guest
            return
        if isinstance(event, Data):
            stream.on_data(event.data, end=event.end)
        elif isinstance(event, Replied):
            stream.on_reply(event.payload, end=event.end)
        elif isinstance(event, Writable):
            stream.on_credit(event.credit)
        elif isinstance(event, Reset):
            del self._streams[event.stream]
            stream.on_failure(_refusal(event.payload))

    def _flush(self) -> None:
        """Write what the socket takes now; the event loop writes the rest."""
        if self._corked:
            return
        self._last = time.monotonic()
        session = self._session
        outgoing = session.outgoing()
        try:
            while outgoing:
                batch = [outgoing[index] for index in range(min(_GATHER, len(outgoing)))]
                session.sent(self._socket.sendmsg(batch))
        except BlockingIOError:
            pass
        except OSError:
            self._lose(ChannelError("the guest is gone: its channel was closed", code="gone"))
            return
        self._want_writable(wanted=bool(outgoing))
        if session.pending < _LINK_QUEUE:
            self._room.set()
            held_back, self._held_back = self._held_back, []
            for go_on in held_back:
                self._loop.call_soon(go_on)
        else:
            self._room.clear()

    def _want_writable(self, *, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._socket.fileno())
        self._writing = wanted

    # What follows is called by Stream only.

    async def _send(self, stream: Stream, data: memoryview, *, end: bool) -> int:
        await self._room.wait()
        self._check_usable()
        if stream._error is not None:  # noqa: SLF001 - it ended while this waited
            raise stream._error  # noqa: SLF001
        taken = self._session.send(stream.id, data, end=end)
        self._flush()
        return taken

    def _takes(self, stream: Stream, go_on: Callable[[], None]) -> int:
        if self._broken is not None:
            return 0
        if self.congested:
            self._held_back.append(go_on)
            return 0
        return self._session.room(stream.id)

    def _offer(self, stream: Stream, data: memoryview, *, end: bool) -> None:
        if self._broken is None and self._streams.get(stream.id) is stream:
            self._session.send(stream.id, data, end=end)
            self._flush()

    def _consume(self, stream: Stream, count: int) -> None:
        if self._broken is None and self._streams.get(stream.id) is stream:
            self._session.consume(stream.id, count)
            self._flush()

    def _cancel(self, stream: Stream) -> None:
        if self._streams.get(stream.id) is stream:
            del self._streams[stream.id]
            self._session.cancel(
                stream.id, _encode(Refusal(code="cancelled", message="cancelled by the host"))
            )
            self._flush()


class Stream:
    """One request and its data. Made by ``Channel.open``.

    Attributes:
        id: its number on the link.
    """

    def __init__(self, channel: Channel, number: int) -> None:
        self.id = number
        self._channel = channel
        self._reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._chunks: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._failing = asyncio.Event()
        self._ended = False
        self._error: AtollError | None = None
        self._tell: Callable[[], None] | None = None

    async def reply(self, kind: type[T]) -> T:
        """Wait for the reply and decode it.

        Raises:
            GuestError: the agent refused the request.
            ChannelError: the link broke, or the reply is not what the protocol says.
        """
        payload = await asyncio.shield(self._reply)
        return _decode(payload, kind)

    async def accepted(self) -> Self:
        """Wait until the request is accepted; this stream, which is over if not. Errors as of ``reply``."""
        try:
            await self.reply(Empty)
        except BaseException:
            self.cancel()
            raise
        return self

    async def read(self) -> bytes:
        """Wait for data and return all that has come; empty at the end.

        Returning it here counts as consumed: credit for it goes back to the guest.

        Raises:
            GuestError: the agent ended the stream with an error.
            ChannelError: the link broke.
        """
        data = await self.fetch()
        self.consumed(len(data))
        return data

    async def fetch(self) -> bytes:
        """``read`` for who says with ``consumed`` how much has reached its reader. Raises as ``read``."""
        while not self._chunks:
            if self._ended:
                return b""
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        return self.take()

    def consumed(self, count: int) -> None:
        """Credit for ``count`` bytes goes back to the guest."""
        self._channel._consume(self, count)  # noqa: SLF001

    async def failure(self) -> AtollError:
        """Wait until the stream ends with an error, also behind the end of its data; that error."""
        while self._error is None:
            self._failing.clear()
            await self._failing.wait()
        return self._error

    async def write(self, data: bytes | memoryview, *, end: bool = False) -> None:
        """Send all of ``data`` as credit allows, then end this direction if ``end``.

        Raises:
            GuestError: the agent ended the stream with an error.
            ChannelError: the link broke.
        """
        rest = memoryview(data)
        while True:
            if self._error is not None:
                raise self._error
            self._writable.clear()
            taken = await self._channel._send(self, rest, end=end)  # noqa: SLF001
            rest = rest[taken:]
            if not rest:
                return
            await self._writable.wait()

    # For one that is told of what comes instead of waiting for it.

    def follow(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called on the event loop whenever data, credit, the end or an error has come."""
        self._tell = tell

    def take(self) -> bytes:
        """What has come, without waiting; ``consumed`` says when it has reached its reader."""
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        return data

    def takes(self) -> int:
        """How many bytes can be sent now; if none, there will be a call when there is room."""
        return self._channel._takes(self, self._changed)  # noqa: SLF001

    def offer(self, data: memoryview, *, end: bool = False) -> None:
        """Send at most ``takes`` bytes, then end this direction if ``end``. What a dead link gets is lost."""
        self._channel._offer(self, data, end=end)  # noqa: SLF001

    @property
    def ended(self) -> bool:
        """Whether all has been read, and nothing more comes."""
        return self._ended and not self._chunks

    @property
    def error(self) -> AtollError | None:
        """With what the stream has ended; what came before can still be read."""
        return self._error

    def _changed(self) -> None:
        self._arrived.set()
        if self._tell is not None:
            self._tell()

    def finish(self) -> None:
        """Take what has come as all there is: readers get the end after it."""
        self._ended = True
        self._changed()

    def cancel(self) -> None:
        """End the stream from this side if it has not ended; whoever waits on it gets ``ChannelError``."""
        if self._error is None:
            self.on_failure(ChannelError("the stream was closed", code="closed"))
        self._channel._cancel(self)  # noqa: SLF001

    def on_reply(self, payload: bytes, *, end: bool) -> None:
        """The guest accepted the request."""
        if not self._reply.done():
            self._reply.set_result(payload)
        if end:
            self.finish()

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Bytes of the stream."""
        if data:
            self._chunks.append(data)
        if end:
            self.finish()
        else:
            self._changed()

    def on_credit(self, count: int) -> None:  # noqa: ARG002 - the session counts
        """There is room for more."""
        self._writable.set()
        if self._tell is not None:
            self._tell()

    def on_failure(self, error: AtollError) -> None:
        """The stream ended with an error."""
        self._error = error
        if not self._reply.done():
            self._reply.set_exception(error)
            self._reply.exception()  # it may be that nobody awaits it
        self._writable.set()
        self._failing.set()
        self._changed()


def _decode(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed reply from the guest: {error}") from error


def _is_link_reset(payload: bytes) -> bool:
    return isinstance(_refusal(payload), LinkResetError)


def _refusal(payload: bytes) -> AtollError:
    try:
        refusal: Any = _decode(payload, Refusal)
    except ProtocolError as error:
        return error
    if refusal.code == LINK_RESET:
        return LinkResetError(refusal.message)
    if refusal.code == HOST_ERROR:
        return revive(refusal.stage, refusal.message, hint=refusal.hint, detail=refusal.detail)
    return GuestError(
        refusal.message or refusal.code, reason=refusal.code, errno=refusal.errno, stage=refusal.stage
    )
