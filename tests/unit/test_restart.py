"""When a machine that ended is started again."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.vm.restart import Policy, delay, settled
from atoll.vm.state import Phase, State


@pytest.mark.parametrize(("policy", "phase"), list(itertools.product(Policy, Phase)))
def test_a_machine_that_came_to_rest_is_started_again_as_its_policy_says(policy, phase):
    wanted = (policy is not Policy.NO and phase is Phase.FAILED) or (
        policy is Policy.ALWAYS and phase is Phase.STOPPED
    )
    assert (delay(policy, State(phase=phase)) is not None) is wanted


def test_pauses_double_from_half_a_second_to_ten():
    pauses = [delay(Policy.ALWAYS, State(phase=Phase.FAILED, restarts=count)) for count in range(8)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


@given(st.integers(0, 1 << 60))
def test_however_often_it_was_restarted_the_pause_is_bounded(count):
    assert 0.5 <= delay(Policy.ON_FAILURE, State(phase=Phase.FAILED, restarts=count)) <= 10.0


def test_a_guest_that_was_up_for_ten_seconds_begins_anew():
    assert settled(State(booted=100.0), 110.0)
    assert not settled(State(booted=100.0), 109.9)
    assert not settled(State(booted=0.0), 1e9), "it was never up"
