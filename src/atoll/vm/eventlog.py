"""The events of all machines in one bounded file, a line of JSON each, appended by whoever has one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from atoll import events, store
from atoll.errors import AtollError
from atoll.events import Event

__all__ = ["EventLog", "decode"]

_LIMIT = 4 << 20

#: What is worth keeping: the rest is progress.
_KEPT = (
    events.StateChanged,
    events.VmSpawned,
    events.VmExited,
    events.StopTried,
    events.PortOpened,
    events.PortRefused,
    events.PortClosed,
    events.Warned,
)


class EventLog:
    """The log below the data directory ``data``."""

    def __init__(self, data: Path) -> None:
        self.path = data / "events.jsonl"
        self._older = data / "events.jsonl.1"

    def append(self, event: Event) -> None:
        """Add ``event`` if it is worth keeping. A full disk loses it: machines go on."""
        if not isinstance(event, _KEPT):
            return
        line = msgspec.json.encode(event) + b"\n"
        with contextlib.suppress(OSError, AtollError):
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)  # in one write: lines of several writers do not mix
                full = os.fstat(fd).st_size >= _LIMIT
            finally:
                os.close(fd)
            if full:
                self._rotate()

    def lines(self) -> Iterator[bytes]:
        """All that is kept, oldest first."""
        for path in (self._older, self.path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                yield from file

    def _rotate(self) -> None:
        with store.lock(self.path.with_name(".events.lock")):
            if self.path.stat().st_size >= _LIMIT:
                self.path.replace(self._older)


def decode(line: bytes) -> Event | None:
    """An event from its line; None if it is none that is known here."""
    kinds = tuple(_all(Event))
    try:
        return msgspec.json.decode(line, type=_union(kinds))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _all(kind: type[Event]) -> Iterator[type[Event]]:
    for child in kind.__subclasses__():
        yield child
        yield from _all(child)


def _union(kinds: tuple[type[Event], ...]) -> type[Event]:
    import functools  # noqa: PLC0415
    import operator  # noqa: PLC0415

    return functools.reduce(operator.or_, kinds)
