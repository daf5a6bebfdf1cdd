"""Streams with credit over one link: the host's end of the agent protocol, free of I/O.

Bytes from the link go into ``Session.receive``, which tells what they mean; what is to be sent comes out of
``Session.outgoing``. See docs/reference/agent-protocol.md, sections 3 and 4.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from atoll.errors import ProtocolError
from atoll.guest import wire
from atoll.guest.wire import Frame, FrameType, Hello

__all__ = ["Data", "Replied", "Reset", "Session", "SessionEvent", "Welcomed", "Writable"]

_CREDIT = struct.Struct("<I")


class Welcomed(NamedTuple):
    """The guest has answered HELLO: the link is in step, streams may be opened."""

    version: int


class Replied(NamedTuple):
    """The guest accepted a request; ``payload`` is a MessagePack map."""

    stream: int
    payload: bytes
    end: bool


class Data(NamedTuple):
    """Bytes of a stream; ``end`` if they are its last."""

    stream: int
    data: bytes
    end: bool


class Reset(NamedTuple):
    """The guest ended a stream with an error; ``payload`` is a MessagePack map."""

    stream: int
    payload: bytes


class Writable(NamedTuple):
    """A stream got ``credit`` back, bytes."""

    stream: int
    credit: int


SessionEvent = Welcomed | Replied | Data | Reset | Writable


@dataclass(slots=True)
class _Stream:
    window: int
    send_window: int
    receive_window: int
    consumed: int = 0
    local_ended: bool = False
    remote_ended: bool = False
    replied: bool = False


class Session:
    """The host's end of the link.

    Args:
        nonce: makes 16 random bytes for each HELLO.
    """

    def __init__(self, nonce: Callable[[], bytes]) -> None:
        self._make_nonce = nonce
        self._decoder = wire.Decoder()
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1
        self._out: deque[bytes] = deque()
        self._welcomed = False
        self.pending = 0  #: bytes queued for the link

    def begin(self) -> None:
        """Start, or start again after a restore or an invalid frame: all streams are forgotten."""
        self._streams.clear()
        self._out.clear()
        self.pending = 0
        self._welcomed = False
        nonce = self._make_nonce()
        self._decoder.resync(nonce)
        self._queue(wire.resync_preamble())
        self._queue(wire.encode(FrameType.HELLO, 0, Hello(wire.VERSION, wire.VERSION, nonce).encode()))

    def open(self, request: bytes, *, end: bool, window: int = wire.WINDOW) -> int:
        """Send a request and return its stream's id.

        Args:
            request: a MessagePack map.
            end: no DATA will follow from this side.
            window: bytes with which either direction begins, as the request says.

        Raises:
            ProtocolError: the request is larger than a frame.
        """
        if len(request) > wire.MAX_PAYLOAD:
            message = f"request of {len(request)} bytes; a frame holds {wire.MAX_PAYLOAD}"
            raise ProtocolError(message, code="too_large", hint="pass large input through stdin or a file")
        stream = self._next_stream
        self._next_stream += 2
        self._streams[stream] = _Stream(window, window, window, local_ended=end)
        self._queue(wire.encode(FrameType.OPEN, stream, request, end=end))
        return stream

    def room(self, stream: int) -> int:
        """How many bytes of a stream the guest has given credit for."""
        state = self._streams.get(stream)
        return 0 if state is None or state.local_ended else state.send_window

    def send(self, stream: int, data: memoryview, *, end: bool = False) -> int:
        """Queue as much of ``data`` as the credit allows; the number of bytes taken.

        ``end`` takes effect only if all was taken.
        """
        state = self._streams.get(stream)
        if state is None or state.local_ended:
            return len(data)  # the guest has ended the stream: nobody will read this
        taken = min(len(data), state.send_window)
        ends = end and taken == len(data)
        for at in range(0, taken, wire.CHUNK):
            piece = data[at : min(at + wire.CHUNK, taken)]
            last = ends and at + wire.CHUNK >= taken
            self._queue(wire.encode(FrameType.DATA, stream, piece, end=last))
        if ends and not taken:
            self._queue(wire.encode(FrameType.DATA, stream, end=True))
        state.send_window -= taken
        if ends:
            state.local_ended = True
            self._forget_if_over(stream, state)
        return taken

    def consume(self, stream: int, count: int) -> None:
        """Say that ``count`` bytes of a stream have reached their reader; gives credit back in time."""
        state = self._streams.get(stream)
        if state is None or state.remote_ended:
            return
        state.consumed += count
        if state.consumed >= state.window // 4:
            state.receive_window += state.consumed
            self._queue(wire.encode(FrameType.CREDIT, stream, _CREDIT.pack(state.consumed)))
            state.consumed = 0

    def cancel(self, stream: int, reason: bytes) -> None:
        """End a stream from this side; ``reason`` is a MessagePack map."""
        if self._streams.pop(stream, None) is not None:
            self._queue(wire.encode(FrameType.RESET, stream, reason))

    def outgoing(self) -> deque[bytes]:
        """What is to be written to the link, in order. The writer removes it with ``sent``."""
        return self._out

    def sent(self, count: int) -> None:
        """Say that the first ``count`` bytes of ``outgoing`` are written."""
        self.pending -= count
        while count:
            first = self._out[0]
            if count < len(first):
                self._out[0] = first[count:]
                return
            count -= len(first)
            self._out.popleft()

    def receive(self, data: bytes | memoryview) -> Iterator[SessionEvent]:
        """Take input from the link and yield what it means.

        Raises:
            ProtocolError: the guest broke the protocol; ``begin`` may bring the link in step again.
        """
        for frame in self._decoder.feed(data):
            event = self._on_hello(frame) if frame.type is FrameType.HELLO else self._on_frame(frame)
            if event is not None:
                yield event

    def _on_hello(self, frame: Frame) -> SessionEvent:
        hello = Hello.decode(frame.payload)
        if hello is None or self._welcomed:
            raise ProtocolError("unexpected HELLO from the guest")
        if hello.highest != wire.VERSION:
            message = f"the guest's agent does not speak version {wire.VERSION} of the protocol"
            raise ProtocolError(message, code="version", hint="use the agent that came with this Atoll")
        self._welcomed = True
        return Welcomed(hello.highest)

    def _on_frame(self, frame: Frame) -> SessionEvent | None:
        if frame.type is FrameType.OPEN:
            raise ProtocolError("the guest opened a stream, which version 1 does not have")
        state = self._streams.get(frame.stream)
        if state is None:
            return None  # it crossed our RESET
        if frame.type is FrameType.CREDIT:
            return self._on_credit(frame, state)
        if frame.type is FrameType.RESET:
            del self._streams[frame.stream]
            return Reset(frame.stream, frame.payload)
        if (frame.type is FrameType.REPLY) is state.replied or state.remote_ended:
            raise ProtocolError(f"unexpected {frame.type.name} on stream {frame.stream}")
        state.remote_ended = frame.end
        if frame.type is FrameType.REPLY:
            state.replied = True
            self._forget_if_over(frame.stream, state)
            return Replied(frame.stream, frame.payload, frame.end)
        state.receive_window -= len(frame.payload)
        if state.receive_window < 0:
            raise ProtocolError(f"DATA beyond the window of stream {frame.stream}")
        self._forget_if_over(frame.stream, state)
        return Data(frame.stream, frame.payload, frame.end)

    @staticmethod
    def _on_credit(frame: Frame, state: _Stream) -> SessionEvent | None:
        if len(frame.payload) != _CREDIT.size:
            raise ProtocolError("malformed CREDIT")
        (credit,) = _CREDIT.unpack(frame.payload)
        state.send_window += credit
        if state.send_window > state.window:
            raise ProtocolError(f"more CREDIT than was used on stream {frame.stream}")
        return Writable(frame.stream, credit) if credit else None

    def _forget_if_over(self, stream: int, state: _Stream) -> None:
        if state.local_ended and state.remote_ended:
            del self._streams[stream]

    def _queue(self, frame: bytes) -> None:
        self._out.append(frame)
        self.pending += len(frame)
