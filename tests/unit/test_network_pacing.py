"""A guest's share of bandwidth, and its log on a disk that is full."""

from __future__ import annotations

import asyncio
import os

import pytest

from atoll import linelog
from atoll.linelog import LineLog
from atoll.network import pacing
from atoll.network.pacing import Lane

pytestmark = pytest.mark.anyio


async def test_what_was_granted_is_owed_and_who_waits_gets_a_turn(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(pacing.time, "monotonic", lambda: now)
    lane = Lane(1_000_000)
    assert lane.grant(1 << 20) == 100_000
    lane.spend(100_000)
    assert lane.grant(1) == 0
    assert not lane.take(1)
    turns = []

    def turn(number):
        got = lane.grant(15_000)
        lane.spend(got)
        turns.append((number, got))

    for number in range(3):
        lane.wait(lambda number=number: turn(number))
    now += 0.03
    assert lane.grant(1) == 0  # others were there before
    lane._call()
    assert turns == [(0, 15_000)]
    now += 0.05
    lane._call()
    assert turns == [(0, 15_000), (1, 15_000), (2, 15_000)]
    assert lane.grant(1) == 1
    lane.close()


async def test_without_a_limit_any_more_all_go_on():
    lane = Lane(1000)
    lane.spend(1_000_000)
    went = asyncio.Event()
    lane.wait(went.set)
    lane.close()
    assert went.is_set()


def test_a_line_that_a_full_disk_cut_off_does_not_spoil_the_next(tmp_path, monkeypatch):
    log = LineLog(tmp_path / "log", limit=1000)
    write = os.write
    monkeypatch.setattr(linelog.os, "write", lambda fd, data: write(fd, data[:3]))
    log.append(b"first\n")
    monkeypatch.setattr(linelog.os, "write", write)
    log.append(b"second\n")
    assert list(log.lines()) == [b"fir\n", b"second\n"]
