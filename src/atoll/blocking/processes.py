"""Processes in a guest and its servers, for programs without an event loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from atoll import aio
from atoll.blocking.core import Closing, Face, at_hand, blocking, in_turn

__all__ = ["Exposed", "Process", "Reader"]


class Reader(Face):
    """What a process writes to one descriptor: ``atoll.aio.Reader`` with methods that wait.

    ``for`` gives it in chunks as they come; ``lines`` gives lines.
    """

    _async: aio.Reader

    def __init__(self, original: aio.Reader) -> None:
        super().__init__(original)
        self._turn = threading.Lock()

    read = in_turn(aio.Reader.read)
    read_all = in_turn(aio.Reader.read_all)
    readline = at_hand(aio.Reader.line_at_hand, aio.Reader.readline)

    @property
    def offset(self) -> int:
        """Bytes read so far, counted from the process's start."""
        return self._async.offset

    def lines(self) -> Iterator[str]:
        """Each line as ``readline`` returns it, up to the end of the output."""
        while (line := self.readline()) is not None:
            yield line

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data


class Process(Closing):
    """A process in a guest that runs by itself: ``atoll.aio.Process`` with methods that wait."""

    _async: aio.Process

    def __init__(self, original: aio.Process) -> None:
        super().__init__(original)
        self._stdout = Reader(original.stdout)
        self._stderr = Reader(original.stderr)

    write = blocking(aio.Process.write)
    close_stdin = blocking(aio.Process.close_stdin)
    signal = blocking(aio.Process.signal)
    terminate = blocking(aio.Process.terminate)
    kill = blocking(aio.Process.kill)
    resize = blocking(aio.Process.resize)
    wait = blocking(aio.Process.wait)
    detach = blocking(aio.Process.detach)
    close = blocking(aio.Process.close)

    @property
    def id(self) -> str:
        """Its name in the guest, which ``attach`` takes."""
        return self._async.id

    @property
    def pid(self) -> int:
        """Its process id in the guest."""
        return self._async.pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The command; bytes that are no UTF-8 are replaced."""
        return self._async.argv

    @property
    def stdout(self) -> Reader:
        """What it writes to its output, and with a terminal to that."""
        return self._stdout

    @property
    def stderr(self) -> Reader:
        """What it writes to its error output; nothing if it has a terminal."""
        return self._stderr


class Exposed(Closing):
    """A server of the guest that this host's programs reach: ``atoll.aio.Exposed`` with methods that wait."""

    _async: aio.Exposed

    close = blocking(aio.Exposed.close)

    @property
    def host(self) -> str:
        """The address of this host that it listens on."""
        return self._async.host

    @property
    def port(self) -> int:
        """The port of this host that it listens on."""
        return self._async.port

    @property
    def url(self) -> str:
        """Where a browser finds it, if it is a web server."""
        return self._async.url
