"""When a machine counts as idle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import UsageError
from atoll.machine.spec import parse_idle
from atoll.vm.idleness import observed, pause_between


def looked(*looks):
    """What is seen after looks at (at, cpu, used)."""
    seen = None
    for at, cpu, used in looks:
        seen = observed(seen, at=at, cpu=cpu, used=used)
    return seen


def test_it_is_idle_since_it_was_last_seen_at_work():
    assert looked((10, 1.0, False)).since == 10
    assert looked((10, 1.0, False), (20, 1.1, False), (30, 1.2, False)).since == 10
    assert looked((10, 1.0, False), (20, 9.0, False), (30, 9.1, False)).since == 20
    assert looked((10, 1.0, False), (20, 1.0, True), (30, 1.0, False)).since == 20


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 10), st.booleans()), min_size=1))
def test_it_is_never_idle_for_longer_than_it_was_looked_at(steps):
    at = cpu = 0.0
    looks = [(at := at + wait, cpu := cpu + took, used) for wait, took, used in steps]
    seen = looked(*looks)
    assert looks[0][0] <= seen.since <= seen.at == looks[-1][0]


@given(st.floats(1, 1e6))
def test_looks_are_often_enough(limit):
    assert 0 < pause_between(limit) <= max(limit / 4, 0.25)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("", 0), (90, 90), ("10m", 600), ("1.5h", 5400), ("2s", 2)]
)
def test_a_time_is_read(text, seconds):
    assert parse_idle(text) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "0.5", "1d", "10 m"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_idle(text)
    assert caught.value.code == "usage.idle"
