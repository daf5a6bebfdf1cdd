"""Frames of the agent protocol (docs/reference/agent-protocol.md, sections 2 and 3), free of I/O."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from atoll.errors import ProtocolError

__all__ = [
    "CHUNK",
    "MAX_FRAME",
    "MAX_PAYLOAD",
    "VERSION",
    "WINDOW",
    "Decoder",
    "Frame",
    "FrameType",
    "Hello",
    "encode",
    "resync_preamble",
]

#: The version of the protocol spoken here.
VERSION = 1
#: Largest payload of a frame, bytes.
MAX_PAYLOAD = 32_768
#: Credit with which each direction of a stream starts, and the most it may ever have, bytes.
WINDOW = 1_048_576

_HEADER = struct.Struct("<BBHII")
_HELLO = struct.Struct("<4sHH16s")
_MAGIC = b"ATOL"
_MARK = 0xA5
_MARK_BYTE = bytes((_MARK,))
_END = 0x01
_NOT_PADDING = re.compile(rb"[^\0]")

#: Largest frame: header, payload and mark, bytes.
MAX_FRAME = _HEADER.size + MAX_PAYLOAD + 1
#: Payload of the DATA frames that are sent: a frame then fits the 32 KiB buffer of the guest's driver.
CHUNK = MAX_PAYLOAD - _HEADER.size - 1


class FrameType(IntEnum):
    """What a frame is for."""

    HELLO = 1
    OPEN = 2
    REPLY = 3
    DATA = 4
    RESET = 5
    CREDIT = 6


class Frame(NamedTuple):
    """One frame as received. ``end`` says that its sender sends no more DATA on the stream."""

    type: FrameType
    stream: int
    payload: bytes
    end: bool


class Hello(NamedTuple):
    """Payload of HELLO: the range of versions and the host's nonce (16 bytes)."""

    lowest: int
    highest: int
    nonce: bytes

    def encode(self) -> bytes:
        """The payload, 24 bytes."""
        return _HELLO.pack(_MAGIC, self.lowest, self.highest, self.nonce)

    @classmethod
    def decode(cls, payload: bytes) -> Hello | None:
        """Read a payload; None if it is no HELLO."""
        if len(payload) != _HELLO.size:
            return None
        magic, lowest, highest, nonce = _HELLO.unpack(payload)
        return cls(lowest, highest, nonce) if magic == _MAGIC else None


def encode(kind: FrameType, stream: int, payload: bytes | memoryview = b"", *, end: bool = False) -> bytes:
    """One frame, ready for the link."""
    assert len(payload) <= MAX_PAYLOAD
    header = _HEADER.pack(kind, _END if end else 0, 0, stream, len(payload))
    return b"".join((header, payload, _MARK_BYTE))


def resync_preamble() -> bytes:
    """Zeros that bring a guest to a frame boundary wherever it was (section 3)."""
    return bytes(MAX_FRAME)


class Decoder:
    """Turns the host's input into frames, however it was split.

    It begins, and begins again after ``resync``, by discarding everything up to the answer to HELLO.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._nonce = b""

    def resync(self, nonce: bytes) -> None:
        """Discard what is buffered and all that comes before the guest's HELLO with ``nonce``."""
        assert len(nonce) == 16
        self._buffer.clear()
        self._nonce = nonce

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """Take input and yield the frames that are complete by it.

        Raises:
            ProtocolError: an invalid header or mark: the input can only be used after a resync.
        """
        self._buffer += data
        if self._nonce and not self._find_hello():
            return
        buffer = self._buffer
        at = 0
        try:
            while True:
                at = _skip_padding(buffer, at)
                if len(buffer) - at < _HEADER.size:
                    return
                kind, flags, reserved, stream, length = _HEADER.unpack_from(buffer, at)
                if kind > FrameType.CREDIT or flags & ~_END or reserved or length > MAX_PAYLOAD:
                    raise ProtocolError(f"invalid frame header (type {kind}, length {length})")
                body = at + _HEADER.size
                if len(buffer) - body <= length:
                    return
                mark = buffer[body + length]
                if mark not in {_MARK, 0}:
                    raise ProtocolError(f"invalid frame mark {mark:#04x}")
                payload = bytes(memoryview(buffer)[body : body + length])
                at = body + length + 1
                if mark:
                    yield Frame(FrameType(kind), stream, payload, bool(flags & _END))
        finally:
            del buffer[:at]

    def _find_hello(self) -> bool:
        """Drop what comes before the awaited HELLO; whether it has come."""
        buffer = self._buffer
        size = _HEADER.size + _HELLO.size + 1
        before_nonce = _HEADER.size + _HELLO.size - len(self._nonce)
        header = _HEADER.pack(FrameType.HELLO, 0, 0, 0, _HELLO.size) + _MAGIC
        search_from = 0
        while (found := buffer.find(self._nonce, search_from)) >= 0:
            start = found - before_nonce
            whole = start >= 0 and len(buffer) - start >= size
            if whole and buffer.startswith(header, start) and buffer[start + size - 1] == _MARK:
                del buffer[:start]
                self._nonce = b""
                return True
            if start >= 0 and not whole:
                break
            search_from = found + 1
        del buffer[: max(0, len(buffer) - size + 1)]
        return False


def _skip_padding(buffer: bytearray, at: int) -> int:
    found = _NOT_PADDING.search(buffer, at)
    return found.start() if found else len(buffer)
