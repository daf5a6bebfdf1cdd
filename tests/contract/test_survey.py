"""What looks through a guest's files, where that is whatever a guest makes of it."""

from __future__ import annotations

import asyncio
import struct

import msgspec
import pytest
from hosted import hosted_agent

from atoll.errors import ProtocolError
from atoll.guest.file_messages import _LENGTH as LENGTH
from atoll.guest.survey import Bounds, Record, Survey

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

PATIENT = Bounds(listed=1 << 20, content=1 << 20)
HASTY = Bounds(silence=0.2)

#: The head of a piece of a file, whose bytes follow.
HEAD = struct.pack("<QI", 0, 1 << 31)


@pytest.fixture
async def surveyed(tmp_path):
    """Has a script be what surveys the guest."""
    async with hosted_agent() as agent:

        def survey(script, bounds):
            program = tmp_path / "program"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o700)
            return Survey(agent, str(program), "disk", "root", bounds)

        yield survey


async def contents(survey, paths=(b"one",)):
    return [piece async for piece in survey.contents(paths)]


async def test_records_without_an_end_are_too_many(surveyed, tmp_path):
    record = msgspec.msgpack.encode(Record(b"a" * 4000))
    (tmp_path / "list").write_bytes((LENGTH.pack(len(record)) + record) * 100)
    survey = surveyed(f"while cat {tmp_path}/list; do :; done", PATIENT)
    with pytest.raises(ProtocolError) as caught:
        await survey.records(everything=False, patience=30)
    assert caught.value.code == "protocol.too_large"


async def test_contents_without_an_end_are_too_many(surveyed, tmp_path):
    (tmp_path / "head").write_bytes(HEAD)
    survey = surveyed(f"exec cat {tmp_path}/head /dev/zero", PATIENT)
    with pytest.raises(ProtocolError) as caught:
        await contents(survey)
    assert caught.value.code == "protocol.too_large"


@pytest.mark.parametrize("script", ["exec sleep 100", "exec >&-; exec sleep 100"])
async def test_one_that_falls_silent_is_given_up_and_nobody_asks_it_on(surveyed, script):
    before = asyncio.all_tasks()
    with pytest.raises(ProtocolError) as caught:
        await contents(surveyed(script, HASTY), [b"x" * 4000] * 2000)
    assert caught.value.code == "protocol.silent"
    assert "_ask" not in {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}
