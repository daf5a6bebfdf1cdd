"""The user's terminal and pipes: nothing is lost, nothing waits, all is as before."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import tty

import pytest

from atoll.cli.terminal import input_chunks, raw_mode, terminal_size, write
from atoll.guest.messages import TerminalSize

pytestmark = pytest.mark.anyio


@pytest.fixture
def pipe():
    read, write_end = os.pipe()
    ends = [read, write_end]
    yield ends
    for fd in ends:
        os.close(fd)


@pytest.fixture
def terminal():
    parent, child = pty.openpty()
    yield parent, child
    os.close(parent)
    os.close(child)


class LateReader:
    """Reads ``count`` bytes in a thread, but not before the event loop has done something else meanwhile."""

    def __init__(self, fd, count):
        self._may_read = threading.Event()
        self._reading = asyncio.get_running_loop().run_in_executor(None, self._read, fd, count)

    def _read(self, fd, count):
        waited_for = not self._may_read.wait(60)  # then whoever writes holds up the loop
        got = bytearray()
        while len(got) < count:
            got += os.read(fd, 65_536)
        return bytes(got), waited_for

    async def beside(self, work):
        """What was read of all that ``work`` wrote."""
        task = asyncio.ensure_future(work)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not task.done()
        self._may_read.set()
        await task
        got, waited_for = await self._reading
        assert not waited_for, "the event loop stood still"
        return got


async def test_a_slow_reader_of_a_pipe_does_not_hold_up_the_loop_and_gets_everything(pipe):
    data = os.urandom(600_000)
    reader = LateReader(pipe[0], len(data))

    async def send():
        for at in range(0, len(data), 50_000):
            await write(pipe[1], data[at : at + 50_000])

    assert await reader.beside(send()) == data


async def test_small_writes_to_a_full_pipe_do_not_hold_up_the_loop(pipe):
    reader = LateReader(pipe[0], 400_000)

    async def send():
        for _ in range(400):
            await write(pipe[1], b"x" * 1000)

    assert await reader.beside(send()) == b"x" * 400_000


@pytest.mark.parametrize("size", [100, 3000, 4000])
@pytest.mark.parametrize("raw", [True, False])
async def test_a_slow_terminal_does_not_hold_up_the_loop(terminal, size, raw):
    parent, child = terminal
    if raw:
        tty.setraw(child)

    reader = LateReader(parent, 120_000)

    async def send():
        for _ in range(120_000 // size):
            await write(child, b"x" * size)

    assert await reader.beside(send()) == b"x" * 120_000


async def test_an_idle_pipe_is_written_at_once(pipe):
    await write(pipe[1], b"hello")
    assert os.read(pipe[0], 100) == b"hello"
    await write(pipe[1], b"")
    os.set_blocking(pipe[0], False)
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)


STUCK = """
import asyncio, sys
from atoll.cli.terminal import write
async def main():
    try:
        async with asyncio.timeout(0.2):
            await write(1, bytes(1 << 20))
    except TimeoutError:
        print("given up", file=sys.stderr)
asyncio.run(main())
"""


def test_a_reader_that_never_reads_does_not_hold_up_the_end_of_the_program(pipe):
    done = subprocess.run(
        [sys.executable, "-c", STUCK], stdout=pipe[1], stderr=subprocess.PIPE, timeout=60, check=True
    )
    assert done.stderr == b"given up\n"


@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_a_reader_that_is_gone_is_told(size):
    read, write_end = os.pipe()
    os.close(read)
    try:
        with pytest.raises(BrokenPipeError):
            await write(write_end, b"x" * size)
    finally:
        os.close(write_end)


async def test_a_regular_file_takes_everything(tmp_path):
    with (tmp_path / "out").open("wb") as file:
        await write(file.fileno(), b"a" * 100_000)
        await write(file.fileno(), b"b")
    assert (tmp_path / "out").read_bytes() == b"a" * 100_000 + b"b"


def test_raw_mode_passes_keys_on_and_puts_the_settings_back(terminal):
    parent, child = terminal
    before = termios.tcgetattr(child)
    with raw_mode(child):
        assert not termios.tcgetattr(child)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(parent, b"\x03")
        assert os.read(child, 10) == b"\x03"
    assert termios.tcgetattr(child) == before


def test_raw_mode_puts_the_settings_back_after_a_failure(terminal):
    _, child = terminal
    before = termios.tcgetattr(child)
    with pytest.raises(KeyError), raw_mode(child):
        raise KeyError
    assert termios.tcgetattr(child) == before


def test_the_size_is_that_of_the_terminal(terminal):
    _, child = terminal
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    assert terminal_size(child) == TerminalSize(rows=33, cols=111)


def test_a_size_that_is_not_known_is_24_by_80(terminal, pipe):
    _, child = terminal
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    assert terminal_size(child) == TerminalSize(rows=24, cols=80)
    assert terminal_size(pipe[0]) == TerminalSize(rows=24, cols=80)


async def test_input_comes_as_it_is_written_and_ends(pipe):
    chunks = input_chunks(pipe[0])
    os.write(pipe[1], b"one")
    assert await anext(chunks) == b"one"
    os.write(pipe[1], b"two")
    assert await anext(chunks) == b"two"
    os.close(pipe.pop())
    assert await anext(chunks, b"") == b""


async def test_input_is_read_no_further_than_it_is_taken(pipe):
    chunks = input_chunks(pipe[0])
    payload = os.urandom(65_536)

    def fill():
        for _ in range(10):
            os.write(pipe[1], payload)

    filling = threading.Thread(target=fill)
    filling.start()
    await asyncio.sleep(0.2)
    assert filling.is_alive()
    got = b""
    while len(got) < 10 * len(payload):
        got += await anext(chunks)
    filling.join()
    assert got == payload * 10
    os.close(pipe.pop())
    assert await anext(chunks, b"") == b""


async def test_input_that_cannot_be_read_is_at_its_end(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert [chunk async for chunk in input_chunks(fd)] == []
    finally:
        os.close(fd)
