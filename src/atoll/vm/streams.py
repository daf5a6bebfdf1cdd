"""The streams of a supervisor's client: some are passed on to the guest, some are answered here."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import Protocol

import msgspec

from atoll.errors import AtollError, GuestError, ProtocolError
from atoll.guest import wire
from atoll.guest.channel import Channel, LinkResetError
from atoll.guest.messages import HOST_ERROR, LINK_RESET, Refusal
from atoll.guest.wire import FrameType

__all__ = ["CREDIT", "LocalStream", "Relay", "Sender", "refusal_of"]

#: Payload of CREDIT (docs/reference/agent-protocol.md, section 4).
CREDIT = struct.Struct("<I")

_encode = msgspec.msgpack.Encoder().encode


class Sender(Protocol):
    """The client that streams send to."""

    def send(self, kind: FrameType, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Queue a frame."""

    def forget(self, stream: int) -> None:
        """A stream is over."""

    def disown(self, execution: str) -> None:
        """An execution is not the client's."""


class Relay:
    """One stream that is passed on to the guest.

    Args:
        client: who opened it.
        channel: to the guest.
        stream: its number at the client.
        starts: the execution that it starts, which the client had not started before; empty for none.
    """

    def __init__(self, client: Sender, channel: Channel, stream: int, *, starts: str) -> None:
        self._client = client
        self._channel = channel
        self._stream = stream
        self._starts = starts
        self._number = 0
        self._unread = 0
        self._ours_ended = False
        self._theirs_ended = False

    def open(self, request: bytes, *, end: bool, window: int) -> None:
        """Send the request on, whose stream begins with ``window`` bytes."""
        self._ours_ended = end
        self._number = self._channel.forward(request, self, end=end, window=window)

    # From the guest.

    def on_reply(self, payload: bytes, *, end: bool) -> None:
        """Pass it on."""
        self._client.send(FrameType.REPLY, self._stream, payload, end=end)
        self._guest_ended(end=end)

    def on_data(self, data: bytes, *, end: bool) -> None:
        """Pass it on."""
        self._unread += len(data)
        self._client.send(FrameType.DATA, self._stream, data, end=end)
        self._guest_ended(end=end)

    def on_credit(self, count: int) -> None:
        """Pass it on."""
        self._client.send(FrameType.CREDIT, self._stream, CREDIT.pack(count))

    def on_failure(self, error: AtollError) -> None:
        """Pass it on."""
        if self._starts and isinstance(error, GuestError):
            self._client.disown(self._starts)  # it is another client's, or was never started
        self._client.forget(self._stream)
        self._client.send(FrameType.RESET, self._stream, _encode(refusal_of(error)))

    def _guest_ended(self, *, end: bool) -> None:
        self._theirs_ended = self._theirs_ended or end
        if self._ours_ended and self._theirs_ended:
            self._client.forget(self._stream)
            self._channel.forward_over(self._number)

    # From the client.

    def data(self, payload: bytes, *, end: bool) -> None:
        """Pass it on."""
        self._channel.forward_data(self._number, payload, end=end)
        self._ours_ended = self._ours_ended or end
        self._guest_ended(end=False)

    def credit(self, count: int) -> None:
        """Pass it on; too much of it would have the guest drop the link, which others use."""
        self._unread -= count
        if self._unread < 0:
            raise ProtocolError("more CREDIT than was used")
        self._channel.forward_credit(self._number, count)

    def reset(self, reason: bytes) -> None:
        """Pass it on."""
        self._channel.forward_reset(self._number, reason)


class LocalStream:
    """One stream that is answered here.

    Attributes:
        client: who opened it.
        answered: the reply was sent.
        patient: the supervisor need not stay for its answer.
    """

    def __init__(self, client: Sender, stream: int) -> None:
        self.client = client
        self.answered = False
        self.patient = False
        self._stream = stream
        self._unread = 0
        self._window = wire.WINDOW
        self._chunks: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._over = False
        self.task: asyncio.Task[None] | None = None

    def reply(self, reply: object, *, end: bool = True) -> None:
        """Answer the request; ``end`` if no data follows."""
        self.answered = True
        self._send(FrameType.REPLY, _encode(reply), end=end)

    def fail(self, error: AtollError) -> None:
        """End the stream with an error."""
        self._send(FrameType.RESET, _encode(refusal_of(error)))
        self._finish()

    async def write(self, data: bytes, *, end: bool = False) -> None:
        """Send bytes as the client gives credit."""
        rest = memoryview(data)
        while rest and not self._over:
            piece = rest[: min(wire.CHUNK, self._window)]
            if not piece:
                self._room.clear()
                await self._room.wait()
                continue
            self._window -= len(piece)
            rest = rest[len(piece) :]
            self._send(FrameType.DATA, bytes(piece))
        if end:
            self._send(FrameType.DATA, b"", end=True)

    async def read(self) -> bytes:
        """What the client sent; empty at the end."""
        while not self._chunks and not self._ended:
            self._arrived.clear()
            await self._arrived.wait()
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._unread -= len(data)
        if data and not self._ended:
            self._send(FrameType.CREDIT, CREDIT.pack(len(data)))
        return data

    # From the client.

    def data(self, payload: bytes, *, end: bool) -> None:
        """Take bytes."""
        self._unread += len(payload)
        if self._unread > wire.WINDOW:
            raise ProtocolError("DATA beyond the window")
        if payload:
            self._chunks.append(payload)
        self._ended = self._ended or end
        self._arrived.set()

    def credit(self, count: int) -> None:
        """Take credit."""
        self._window = min(self._window + count, wire.WINDOW)
        self._room.set()

    def reset(self, reason: bytes) -> None:  # noqa: ARG002 - why does not matter
        """The client wants no more of it."""
        self._finish()
        if self.task is not None:
            self.task.cancel()

    def _send(self, kind: FrameType, payload: bytes, *, end: bool = False) -> None:
        if not self._over:
            self.client.send(kind, self._stream, payload, end=end)

    def _finish(self) -> None:
        self._over = True
        self._ended = True
        self._arrived.set()
        self._room.set()


def refusal_of(error: AtollError) -> Refusal:
    """An error as a client is told of it."""
    if isinstance(error, LinkResetError):
        return Refusal(code=LINK_RESET, message=error.message)
    if isinstance(error, GuestError):
        return Refusal(error.reason, error.message, error.errno, error.stage, error.hint, error.detail)
    return Refusal(HOST_ERROR, error.message, 0, error.code, error.hint, error.detail)
