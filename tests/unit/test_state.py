"""The states of a machine: every way between them, and none but those."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.process import Identity
from atoll.vm.state import TRANSITIONS, Cause, Failure, Phase, State, StateError, advance, truth

AT_REST = {Phase.CREATED, Phase.STOPPED, Phase.FAILED, Phase.SUSPENDED}
VM = Identity(pid=7, started=70, boot="this")
OTHER = Identity(pid=7, started=70, boot="another")

#: Where each cause leads from each phase, written out once more: what is not here cannot be.
WAYS = {
    (Phase.CREATED, Cause.STARTED): Phase.STARTING,
    (Phase.STOPPED, Cause.STARTED): Phase.STARTING,
    (Phase.FAILED, Cause.STARTED): Phase.STARTING,
    (Phase.SUSPENDED, Cause.STARTED): Phase.STARTING,
    (Phase.STOPPED, Cause.RESTARTED): Phase.STARTING,
    (Phase.FAILED, Cause.RESTARTED): Phase.STARTING,
    (Phase.RUNNING, Cause.REBOOTED): Phase.STARTING,
    (Phase.PAUSED, Cause.REBOOTED): Phase.STARTING,
    (Phase.STARTING, Cause.BOOTED): Phase.RUNNING,
    (Phase.STARTING, Cause.NOT_BOOTED): Phase.STOPPED,  # the origin, as ``known`` makes it
    (Phase.RUNNING, Cause.PAUSED): Phase.PAUSED,
    (Phase.RUNNING, Cause.HELD): Phase.PAUSED,
    (Phase.PAUSED, Cause.RESUMED): Phase.RUNNING,
    (Phase.STARTING, Cause.STOP_ASKED): Phase.STOPPING,
    (Phase.RUNNING, Cause.STOP_ASKED): Phase.STOPPING,
    (Phase.PAUSED, Cause.STOP_ASKED): Phase.STOPPING,
    (Phase.PAUSED, Cause.SUSPEND_ASKED): Phase.STOPPING,
    (Phase.STOPPING, Cause.STOP_FAILED): Phase.RUNNING,
    (Phase.STOPPING, Cause.STOPPED): Phase.STOPPED,
    (Phase.STOPPING, Cause.SUSPENDED): Phase.SUSPENDED,
    (Phase.RUNNING, Cause.POWERED_OFF): Phase.STOPPED,
    (Phase.PAUSED, Cause.POWERED_OFF): Phase.STOPPED,
    (Phase.RUNNING, Cause.PANICKED): Phase.FAILED,
    (Phase.PAUSED, Cause.PANICKED): Phase.FAILED,
    (Phase.RUNNING, Cause.HYPERVISOR_DIED): Phase.FAILED,
    (Phase.PAUSED, Cause.HYPERVISOR_DIED): Phase.FAILED,
    (Phase.STARTING, Cause.KILLED): Phase.FAILED,
    (Phase.RUNNING, Cause.KILLED): Phase.FAILED,
    (Phase.PAUSED, Cause.KILLED): Phase.FAILED,
    (Phase.STOPPING, Cause.KILLED): Phase.FAILED,
    (Phase.STARTING, Cause.HOST_RESTARTED): Phase.STOPPED,
    (Phase.RUNNING, Cause.HOST_RESTARTED): Phase.STOPPED,
    (Phase.PAUSED, Cause.HOST_RESTARTED): Phase.STOPPED,
    (Phase.STOPPING, Cause.HOST_RESTARTED): Phase.STOPPED,
}


def known(phase, **fields):
    """A state in ``phase`` with what it would have."""
    vm = None if phase in AT_REST else VM
    return State(**{"phase": phase, "since": 1.0, "origin": Phase.STOPPED, "vm": vm, "booted": 0.5, **fields})


@pytest.mark.parametrize("phase", Phase)
def test_each_cause_leads_from_each_phase_where_the_table_says_or_nowhere(phase):
    for cause in Cause:
        assert_leads(phase, cause)


def assert_leads(phase, cause):
    state = known(phase)
    wanted = WAYS.get((phase, cause))
    if wanted is None:
        with pytest.raises(StateError) as caught:
            advance(state, cause, 2.0)
        assert caught.value.code == "state.transition"
        assert phase in caught.value.message
    else:
        after = advance(state, cause, 2.0)
        assert (after.phase, after.cause, after.since) == (wanted, cause, 2.0)
        assert after.active is (wanted not in AT_REST)
        assert after.active or after.vm is None
        assert state == known(phase), "a state is never changed"


def test_every_cause_but_the_first_leads_somewhere():
    assert set(TRANSITIONS) == set(Cause) - {Cause.CREATED}


@pytest.mark.parametrize("origin", sorted(AT_REST))
def test_a_start_that_fails_goes_back_to_where_it_came_from_and_says_why(origin):
    why = Failure("boot.root", "no root")
    starting = advance(known(origin), Cause.STARTED, 2.0)
    assert starting.origin is origin
    after = advance(starting, Cause.NOT_BOOTED, 3.0, failure=why)
    assert (after.phase, after.failure, after.vm) == (origin, why, None)


def test_a_reboot_that_fails_is_a_failure():
    starting = advance(known(Phase.RUNNING), Cause.REBOOTED, 2.0)
    assert advance(starting, Cause.NOT_BOOTED, 3.0).phase is Phase.FAILED


def test_the_last_failure_is_known_until_a_start_succeeds():
    why = Failure("state.hypervisor", "it died")
    failed = advance(known(Phase.RUNNING), Cause.HYPERVISOR_DIED, 2.0, failure=why)
    starting = advance(failed, Cause.RESTARTED, 3.0)
    assert starting.failure == why
    assert advance(starting, Cause.BOOTED, 4.0).failure is None


def test_restarts_are_counted_until_somebody_starts_it_by_hand():
    state = known(Phase.FAILED)
    for count in (1, 2, 3):
        state = advance(advance(state, Cause.RESTARTED, 2.0), Cause.BOOTED, 3.0)
        assert state.restarts == count
        state = advance(state, Cause.HYPERVISOR_DIED, 4.0)
    assert advance(state, Cause.STARTED, 5.0).restarts == 0


def test_what_was_suspended_goes_on_whoever_was_killed_at_the_last_step():
    for was in (known(Phase.PAUSED), advance(known(Phase.RUNNING), Cause.HELD, 2.0)):
        asked = advance(was, Cause.SUSPEND_ASKED, 3.0)
        for boot in ("this", "another"):
            found = truth(asked, supervised=False, alive=False, boot=boot, at=4.0)
            assert (found.phase, found.cause, found.vm) == (Phase.SUSPENDED, Cause.SUSPENDED, None)


def test_the_vm_is_known_from_the_spawn_to_the_end():
    starting = advance(known(Phase.STOPPED), Cause.STARTED, 2.0)
    assert starting.vm is None
    running = advance(starting, Cause.BOOTED, 3.0, vm=VM)
    assert (running.vm, running.booted) == (VM, 3.0)
    paused = advance(running, Cause.PAUSED, 4.0)
    assert paused.vm == VM
    assert advance(paused, Cause.STOP_ASKED, 5.0).vm == VM


@given(st.lists(st.sampled_from(list(Cause)), max_size=60), st.booleans())
def test_whatever_happens_in_whatever_order_a_state_stays_whole(causes, failing):
    state = State(since=0.0)
    for number, cause in enumerate(causes, 1):
        try:
            after = advance(state, cause, float(number), failure=Failure("x", "y") if failing else None)
        except StateError:
            continue
        assert after.since == number
        assert after.active or after.vm is None
        assert after.origin in AT_REST
        assert after.restarts >= 0
        assert (state.phase, cause) in WAYS
        state = after


@pytest.mark.parametrize("phase", Phase)
def test_the_truth_is_the_record_as_long_as_somebody_keeps_it(phase):
    for case in itertools.product((None, VM, OTHER), (False, True), (False, True), ("this", "another")):
        assert_truth(phase, *case)


def assert_truth(phase, vm, supervised, alive, boot):
    state = known(phase, vm=vm)
    seen = truth(state, supervised=supervised, alive=alive, boot=boot, at=9.0)
    if supervised or alive or phase in AT_REST:
        assert seen == state
        return
    assert not seen.active
    assert seen.vm is None
    if phase is Phase.STOPPING:
        assert (seen.phase, seen.cause) == (Phase.STOPPED, Cause.STOPPED)
    elif vm is not None and vm.boot != boot:
        assert (seen.phase, seen.cause, seen.failure) == (Phase.STOPPED, Cause.HOST_RESTARTED, None)
    else:
        assert (seen.phase, seen.cause, seen.failure.code) == (Phase.FAILED, Cause.KILLED, "state.killed")


@given(st.sampled_from(list(Phase)), st.booleans(), st.booleans())
def test_the_truth_of_the_truth_is_the_same(phase, supervised, alive):
    once = truth(known(phase), supervised=supervised, alive=alive, boot="this", at=9.0)
    assert truth(once, supervised=supervised, alive=alive, boot="this", at=10.0) == once
