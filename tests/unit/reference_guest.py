"""A guest's end of the agent protocol, written from sections 2 to 4 of the specification and nothing else.

Slow and simple: it takes one byte at a time. Property tests hold the real ends against it.
"""

from __future__ import annotations

import struct


class ReferenceGuest:
    """Receives bytes; keeps the frames it accepted; answers HELLO; counts windows."""

    def __init__(self):
        self.accepted: list[tuple[int, int, int, bytes]] = []
        self._header = b""
        self._payload = b""
        self._skipping = False
        self.session = 0

    def receive(self, data: bytes) -> None:
        for byte in data:
            self._take(bytes([byte]))

    def _take(self, byte: bytes) -> None:
        if self._skipping:
            self._skipping = byte != b"\0"
        elif len(self._header) < 12:
            if self._header or byte != b"\0":
                self._header += byte
            if len(self._header) == 12 and not self._valid():
                self._header = b""
                self._skipping = byte != b"\0"
        elif len(self._payload) < self._length():
            self._payload += byte
        else:
            self._complete(byte)

    def _valid(self) -> bool:
        kind, flags, reserved, _, length = struct.unpack("<BBHII", self._header)
        return 1 <= kind <= 6 and flags in {0, 1} and reserved == 0 and length <= 32768

    def _length(self) -> int:
        return struct.unpack_from("<I", self._header, 8)[0]

    def _complete(self, mark: bytes) -> None:
        kind, flags, _, stream, _ = struct.unpack("<BBHII", self._header)
        if mark == b"\xa5":
            if kind == 1:
                self.session += 1
                self.accepted.clear()
            self.accepted.append((kind, stream, flags, self._payload))
        elif mark != b"\0":
            self._skipping = True
        self._header = self._payload = b""

    @property
    def at_boundary(self) -> bool:
        return not self._header and not self._skipping


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack("<BBHII", kind, flags, 0, stream, len(payload)) + payload + b"\xa5"


def hello(nonce: bytes, low: int = 1, high: int = 1) -> bytes:
    return frame(1, 0, b"ATOL" + struct.pack("<HH", low, high) + nonce)
