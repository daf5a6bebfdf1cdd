"""The last bytes of an output that nobody may be reading."""

from __future__ import annotations

import asyncio
import os

import pytest

from atoll.hypervisor.port import Capture

pytestmark = pytest.mark.anyio


@pytest.fixture
def pipe():
    """A capture and the writing end of what it reads."""
    read, write = os.pipe()
    capture = Capture(read, limit=100)
    open_ends = [write]

    def close():
        while open_ends:
            os.close(open_ends.pop())

    capture.end_of_writing = close
    yield capture, write
    close()
    capture.close()


def test_what_was_written_is_there_without_an_event_loop(pipe):
    capture, write = pipe
    assert capture.text() == ""
    os.write(write, b"one\r\n")
    assert capture.text() == "one\n"
    os.write(write, b"two")
    assert capture.text() == "one\ntwo"


def test_the_newest_bytes_are_kept(pipe):
    capture, write = pipe
    for number in range(1000):
        os.write(write, b"%05d" % number)
    assert capture.text() == "".join(f"{number:05}" for number in range(980, 1000))


def test_bytes_that_are_no_text_are_replaced(pipe):
    capture, write = pipe
    os.write(write, b"a\xffb")
    assert capture.text() == "a\N{REPLACEMENT CHARACTER}b"


def test_the_tail_has_the_last_lines_that_say_something(pipe):
    capture, write = pipe
    os.write(write, b"1\n2\n\n3\n  \n4\n\n")
    assert capture.tail(2) == "3\n4"
    assert capture.tail() == "1\n2\n3\n4"


def test_what_was_written_before_the_close_stays_readable(pipe):
    capture, write = pipe
    os.write(write, b"last words")
    capture.close()
    capture.close()
    assert capture.text() == "last words"
    with pytest.raises(BrokenPipeError):
        os.write(write, b"more")


def test_the_end_of_the_output_gives_the_descriptor_back(pipe):
    capture, write = pipe
    os.write(write, b"all")
    capture.end_of_writing()
    before = len(os.listdir("/proc/self/fd"))
    assert capture.text() == "all"
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert capture.text() == "all"


async def test_a_writer_never_waits_while_it_is_watched(pipe):
    capture, write = pipe
    capture.watch()
    capture.watch()
    payload = b"x" * 65_536

    def fill():
        for _ in range(20):
            os.write(write, payload)
        os.write(write, b"done")

    await asyncio.wait_for(asyncio.to_thread(fill), timeout=60)
    assert capture.text().endswith("xdone")


async def test_a_watched_output_that_ends_is_watched_no_more(pipe):
    capture, write = pipe
    capture.watch()
    os.write(write, b"bye")
    capture.end_of_writing()
    before = len(os.listdir("/proc/self/fd"))
    async with asyncio.timeout(60):
        while len(os.listdir("/proc/self/fd")) == before:  # noqa: ASYNC110 - only asking again tells
            await asyncio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert capture.text() == "bye"
    capture.close()


def test_closing_after_the_loop_has_ended_is_fine(pipe):
    capture, write = pipe

    async def watch():
        capture.watch()
        os.write(write, b"seen")
        await asyncio.sleep(0.01)

    asyncio.run(watch())
    capture.close()
    assert capture.text() == "seen"
