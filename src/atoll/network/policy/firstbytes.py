"""Whom a client wants, as its first bytes say it in the clear: TLS or HTTP, held until that is known."""

from __future__ import annotations

from enum import Enum
from typing import Final

from atoll.network.policy.httphost import read_host
from atoll.network.policy.tls import read_server_name

__all__ = ["MOST", "FirstBytes", "Progress"]

#: Bytes that are held; what has not said by then whom it wants, does not say it.
MOST: Final = 32 << 10


class Progress(Enum):
    """How far the reading is."""

    MORE = "more"
    NAME = "name"
    NONE = "none"


class FirstBytes:
    """The first bytes of one connection, from its client.

    Attributes:
        held: all bytes so far, to be passed on once that is allowed.
        progress: whether it is known whom the client wants.
        name: whom, lower case and without a dot at its end, if ``progress`` is ``NAME``.
    """

    __slots__ = ("_needed", "held", "name", "progress")

    def __init__(self) -> None:
        self.held = bytearray()
        self.progress = Progress.MORE
        self.name: str | None = None
        self._needed = 1

    def feed(self, data: bytes | bytearray | memoryview) -> Progress:
        """Take the next bytes, however few; once there is no need for more, they are held only."""
        self.held += data
        while self.progress is Progress.MORE and len(self.held) >= self._needed:
            read = read_server_name if self.held[0] == 0x16 else read_host
            found = read(bytes(self.held[:MOST]))
            if isinstance(found, int):
                self._needed = max(found, len(self.held) + 1)
                if self._needed > MOST:
                    self.progress = Progress.NONE
            else:
                self.name = found
                self.progress = Progress.NONE if found is None else Progress.NAME
        return self.progress

    def end(self) -> Progress:
        """The client says no more."""
        if self.progress is Progress.MORE:
            self.progress = Progress.NONE
        return self.progress
