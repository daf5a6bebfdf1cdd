"""Bounded logs of lines, appended by whoever has one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from atoll import store
from atoll.errors import AtollError

__all__ = ["LineLog"]


class LineLog:
    """A log at ``path`` of about ``limit`` bytes, and as many before those in ``path`` with ``.1`` added.

    Attributes:
        path: of the log.
        older: of what is older.
    """

    def __init__(self, path: Path, *, limit: int) -> None:
        self.path = path
        self.older = path.with_name(f"{path.name}.1")
        self._limit = limit
        self._torn = False

    def append(self, lines: bytes) -> None:
        """Add whole lines. A full disk loses them: what they tell of goes on."""
        with contextlib.suppress(OSError, AtollError):
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                data = b"\n" + lines if self._torn else lines
                written = os.write(fd, data)  # in one write: lines of several writers do not mix
                self._torn = written < len(data)  # a disk that was full may have taken half a line
                full = os.fstat(fd).st_size >= self._limit
            finally:
                os.close(fd)
            if full:
                self._rotate()

    def lines(self) -> Iterator[bytes]:
        """All that is kept, oldest first."""
        for path in (self.older, self.path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                yield from file

    def _rotate(self) -> None:
        with store.lock(self.path.with_name(f".{self.path.stem}.lock")):
            if self.path.stat().st_size >= self._limit:
                self.path.replace(self.older)
