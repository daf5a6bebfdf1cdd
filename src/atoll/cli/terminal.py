"""The user's terminal: raw mode, size, input, output that may not keep up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import queue
import select
import termios
import threading
import tty
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from atoll.guest.messages import TerminalSize

__all__ = ["input_chunks", "post", "raw_mode", "send", "terminal_size", "write"]

#: A pipe that is writable takes this much without blocking (pipe(7), PIPE_BUF). A terminal need not.
_ATOMIC = 4096
_READ_SIZE = 65_536


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Pass every key on as it is typed; the terminal is as before afterwards."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is kept
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def terminal_size(fd: int) -> TerminalSize:
    """Its size; 24 by 80 where it does not know."""
    try:
        size = os.get_terminal_size(fd)
    except OSError:
        return TerminalSize()
    return TerminalSize(rows=size.lines or 24, cols=size.columns or 80)


async def write(fd: int, data: bytes) -> None:
    """Write all of ``data`` without holding up the event loop when the reader is slow.

    Raises:
        BrokenPipeError: there is no reader any more.
    """
    rest = memoryview(data)
    if len(rest) <= _ATOMIC and not os.isatty(fd) and _is_writable(fd):
        with contextlib.suppress(BlockingIOError):  # the thread waits until it can be written
            rest = rest[os.write(fd, rest) :]
    if rest:
        await _writer(fd).write(rest)


async def send(fd: int, data: bytes) -> None:
    """Write ``data`` behind all that was posted. Raises as ``write``."""
    await _writer(fd).write(memoryview(data))


def post(fd: int, data: bytes) -> None:
    """Have ``data`` written in its turn, without waiting."""
    _writer(fd).post(memoryview(data))


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


class _Writer:
    """A thread that writes to ``fd``. A daemon: who never reads cannot hold up the end of this process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._jobs: queue.SimpleQueue[tuple[memoryview, Callable[[OSError | None], None]]]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"atoll-write-{fd}", daemon=True).start()

    async def write(self, data: memoryview) -> None:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()

        def settle(error: OSError | None) -> None:
            if not written.done():
                written.set_result(None) if error is None else written.set_exception(error)

        def tell(error: OSError | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, error)

        self._jobs.put((data, tell))
        await written

    def post(self, data: memoryview) -> None:
        self._jobs.put((data, lambda _: None))

    def _work(self) -> None:
        while True:
            rest, tell = self._jobs.get()
            try:
                while rest:
                    rest = rest[_write_some(self._fd, rest) :]
            except OSError as error:
                tell(error)
            else:
                tell(None)


_writer = functools.cache(_Writer)


async def input_chunks(fd: int) -> AsyncIterator[bytes]:
    """What can be read from ``fd``, as it comes, to its end.

    A thread reads, because no descriptor of the user's may be made non-blocking: others share it. The thread
    reads on only when its last chunk was taken.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    def read() -> None:
        data = b"-"
        while data:
            data = _read(fd)
            put = chunks.put(data)
            try:
                asyncio.run_coroutine_threadsafe(put, loop).result()
            except (RuntimeError, concurrent.futures.CancelledError):  # the loop is closed, or closing
                put.close()
                return

    threading.Thread(target=read, name="atoll-stdin", daemon=True).start()
    while data := await chunks.get():
        yield data


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _READ_SIZE)
        except BlockingIOError:  # somebody else made it non-blocking
            _wait(fd, select.POLLIN)
        except OSError:
            return b""


def _write_some(fd: int, data: memoryview) -> int:
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            _wait(fd, select.POLLOUT)


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    poll.poll()
