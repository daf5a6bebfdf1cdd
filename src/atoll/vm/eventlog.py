"""The events of all machines in one bounded file, a line of JSON each, appended by whoever has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from atoll import events
from atoll.events import Event
from atoll.linelog import LineLog

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
    events.AutoPortOpened,
    events.AutoPortClosed,
    events.Warned,
)


class EventLog:
    """The log below the data directory ``data``."""

    def __init__(self, data: Path) -> None:
        self._log = LineLog(data / "events.jsonl", limit=_LIMIT)
        self.path = self._log.path

    def append(self, event: Event) -> None:
        """Add ``event`` if it is worth keeping. A full disk loses it: machines go on."""
        if isinstance(event, _KEPT):
            self._log.append(msgspec.json.encode(event) + b"\n")

    def lines(self) -> Iterator[bytes]:
        """All that is kept, oldest first."""
        return self._log.lines()


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
