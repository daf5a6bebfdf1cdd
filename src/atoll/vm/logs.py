"""What a guest or a process in the background writes without end, kept in a file that is bounded."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["LogStream", "RotatedLog", "Tap", "say", "tail"]


class RotatedLog:
    """A log that is moved to ``NAME.1`` when it is full, and that to ``NAME.2``.

    Args:
        path: of the log.
        limit: bytes after which it is moved.
        keep: how many moved ones are kept.
    """

    def __init__(self, path: Path, *, limit: int = 1 << 20, keep: int = 2) -> None:
        self._path = path
        self._limit = limit
        self._keep = keep
        self._fd = -1
        self._size = 0
        self._open()

    def write(self, data: bytes) -> None:
        """Add ``data``. A full disk loses it: the guest must not stop for that."""
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._open()  # the disk was full when it was moved
            self._size += os.write(self._fd, data)
            if self._size >= self._limit:
                self._rotate()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        self.close()
        self._open()


class LogStream(io.TextIOBase):
    """A bounded log in the place of a standard stream."""

    def __init__(self, path: Path) -> None:
        self._log = RotatedLog(path)

    def write(self, text: str) -> int:
        """Write down what is printed; all of it is taken."""
        self._log.write(text.encode(errors="replace"))
        return len(text)


def say(text: str) -> None:
    """Tell who looks after this process what happens."""
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stderr, flush=True)  # noqa: T201


class Tap:
    """One output of the guest: logged, its last bytes kept, and passed on to who listens.

    Args:
        log: where it is written.
        limit: bytes kept in memory, the newest.
    """

    def __init__(self, log: RotatedLog, *, limit: int = 65_536) -> None:
        self._log = log
        self._limit = limit
        self._kept = bytearray()
        self.listeners: set[Callable[[bytes], None]] = set()

    def feed(self, data: bytes) -> None:
        """Take what the guest wrote."""
        self._log.write(data)
        self._kept += data
        del self._kept[: -self._limit]
        for listener in tuple(self.listeners):
            listener(data)

    def forget(self) -> None:
        """Keep nothing of an earlier guest in memory."""
        self._kept.clear()

    def recent(self) -> bytes:
        """What is kept in memory."""
        return bytes(self._kept)

    def text(self) -> str:
        """What is kept in memory, as text."""
        return self._kept.decode(errors="replace").replace("\r\n", "\n")

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def tail(path: Path, limit: int = 65_536) -> bytes:
    """The last ``limit`` bytes of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read()
    except OSError:
        return b""
