"""The user's terminal: raw mode, size, input, output that may not keep up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from atoll.guest.messages import TerminalSize

__all__ = ["input_chunks", "raw_mode", "terminal_size", "write"]

#: A pipe that is writable takes this much without blocking (pipe(7), PIPE_BUF).
_ATOMIC = 4096
_READ_SIZE = 65_536


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Pass every key on as it is typed; the terminal is as before afterwards."""
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
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
    if len(rest) <= _ATOMIC and _is_writable(fd):
        rest = rest[os.write(fd, rest) :]
    if rest:
        await asyncio.get_running_loop().run_in_executor(None, _write_all, fd, rest)


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


def _write_all(fd: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(fd, rest) :]


def input_chunks(fd: int) -> asyncio.Queue[bytes]:
    """What can be read from ``fd``, as it comes; empty bytes are its end.

    A thread reads, because no descriptor of the user's may be made non-blocking: others share it. The thread
    reads on only when its last chunk was taken.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    def read() -> None:
        data = b"-"
        while data:
            try:
                data = os.read(fd, _READ_SIZE)
            except OSError:
                data = b""
            with contextlib.suppress(RuntimeError):  # the loop is closed: the command has ended
                asyncio.run_coroutine_threadsafe(chunks.put(data), loop).result()

    threading.Thread(target=read, name="atoll-stdin", daemon=True).start()
    return chunks
