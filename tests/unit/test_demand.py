"""When an engine is started and suspended: all that can happen to two clients, and much that can to many."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.containers import demand as d
from atoll.containers.demand import Stage, begin, step
from atoll.vm.state import StateError

ERROR = StateError("no")
CLIENTS = (1, 2)


class World(msgspec.Struct, frozen=True):
    """What is known, and what is under way: all times are relative to now."""

    demand: d.Demand
    starting: bool = False
    suspending: bool = False
    looking: bool = False
    dialling: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()


def first(idle):
    return World(begin(idle, 0.0))


def possible(world, clients):
    """What can happen next, and after how many seconds."""
    there = world.demand.waiting | world.demand.served
    yield from ((d.Came(client), 0.0) for client in clients if client not in there)
    if not world.demand.closing:
        yield from ((d.Closing(engine), 0.0) for engine in (False, True))
    yield from ((d.Left(client), 0.0) for client in there)
    yield from ((d.DialFailed(client, ERROR), 0.0) for client in world.dialling)
    if world.starting:
        yield from ((d.Started(), 0.0), (d.StartFailed(ERROR), 0.0))
    if world.suspending:
        yield from ((d.Suspended(), 0.0), (d.SuspendFailed(), 0.0))
    if world.looking:
        yield from ((d.Looked(busy), 0.0) for busy in (False, True))
    if world.demand.look_at is not None:
        yield d.Due(), world.demand.look_at


def happen(world, event, later):
    """The world after ``event``, with what it has done being under way; it is as it must be."""
    demand, actions = step(world.demand, event, later)
    times = {"quiet_since": max(round(demand.quiet_since - later, 6), -demand.idle)}
    if demand.look_at is not None:
        times["look_at"] = round(demand.look_at - later, 6)
    demand = msgspec.structs.replace(demand, **times)
    gone = {event.client} if isinstance(event, d.Left | d.DialFailed) else set()
    refused = {action.client for action in actions if isinstance(action, d.Refuse)}
    dialled = [action.client for action in actions if isinstance(action, d.Dial)]
    after = World(
        demand,
        starting=_under_way(world.starting, actions, d.Start, event, d.Started | d.StartFailed),
        suspending=_under_way(world.suspending, actions, d.Suspend, event, d.Suspended | d.SuspendFailed),
        looking=_under_way(world.looking, actions, d.Look, event, d.Looked),
        dialling=(world.dialling - gone | set(dialled)) & demand.served,
        refused=frozenset(refused),
    )
    before, there = world.demand.waiting | world.demand.served, demand.waiting | demand.served
    came = {event.client} if isinstance(event, d.Came) else set()
    left = {event.client} if isinstance(event, d.Left) else set()
    assert there == (before | came) - left - refused, "a client was lost, or is there twice"
    assert not demand.waiting & demand.served
    assert len(dialled) == len(set(dialled))
    assert set(dialled) == demand.served - (world.demand.served - gone), "who is served was connected"
    if any(isinstance(action, d.Suspend) for action in actions):
        assert not there
        assert not demand.closing
    if demand.ending:
        assert d.Start() not in actions
    assert_sound(after)
    return after


def _under_way(before, actions, begins, event, ends):
    begun = sum(isinstance(action, begins) for action in actions)
    still = before and not isinstance(event, ends)
    assert begun + still <= 1, "two of a kind at once"
    return bool(begun or still)


def assert_sound(world):
    demand = world.demand
    assert world.starting is (demand.stage is Stage.STARTING)
    assert world.suspending is (demand.stage is Stage.SUSPENDING)
    assert world.looking is demand.looking
    assert demand.again <= demand.waiting | demand.served
    if demand.waiting:
        assert world.starting or world.suspending, "somebody waits for nothing"
    if demand.quiet and demand.idle and not demand.closing:
        assert demand.look_at is not None or world.looking, "an engine is left running"
    if demand.served and demand.look_at is not None:
        pytest.fail("it would be looked at while it is used")


@pytest.mark.parametrize("idle", [0.0, 0.5])
def test_whatever_happens_to_two_clients_nobody_waits_for_nothing(idle):
    start = first(idle)
    seen, frontier = {start}, [start]
    while frontier:
        world = frontier.pop()
        for event, later in possible(world, CLIENTS):
            after = happen(world, event, later)
            if after not in seen:
                seen.add(after)
                frontier.append(after)
    stages = {world.demand.stage for world in seen}
    assert stages == (set(Stage) if idle else set(Stage) - {Stage.SUSPENDING, Stage.RESTING})
    assert len(seen) > 100
    for world in seen:
        assert_served_in_the_end(world)


def assert_served_in_the_end(world):
    """If what is under way succeeds, all who wait are connected, and nothing follows by itself."""
    for _ in range(4):
        if world.suspending:
            world = happen(world, d.Suspended(), 0.0)
        elif world.starting:
            world = happen(world, d.Started(), 0.0)
    assert not world.demand.waiting
    assert not world.starting
    assert not world.suspending


@given(st.data(), st.sampled_from([0.0, 0.25, 300.0]))
def test_whatever_happens_to_many_nobody_waits_for_nothing(data, idle):
    world = first(idle)
    for _ in range(60):
        choices = list(possible(world, range(1, 7)))
        if not choices:  # all have left, and it is closing
            break
        event, later = choices[data.draw(st.integers(0, len(choices) - 1))]
        world = happen(world, event, later)
    assert_served_in_the_end(world)


def play(idle, *events):
    """The stages and what was done after each of ``events``, that is: what and when."""
    demand, done = begin(idle, 0.0), []
    for now, event in events:
        demand, actions = step(demand, event, now)
        done.append((demand.stage, *(type(action).__name__ for action in actions)))
    return done


def test_the_first_client_starts_it_and_others_wait_for_the_same_start():
    assert play(300.0, (0, d.Came(1)), (1, d.Came(2)), (2, d.Started()), (3, d.Came(3))) == [
        (Stage.STARTING, "Start"),
        (Stage.STARTING,),
        (Stage.READY, "Dial", "Dial"),
        (Stage.READY, "Dial"),
    ]


def test_a_start_that_fails_is_told_to_all_and_tried_again_for_the_next():
    assert play(300.0, (0, d.Came(1)), (1, d.Came(2)), (2, d.StartFailed(ERROR)), (3, d.Came(3))) == [
        (Stage.STARTING, "Start"),
        (Stage.STARTING,),
        (Stage.UNKNOWN, "Refuse", "Refuse"),
        (Stage.STARTING, "Start"),
    ]


def test_one_that_is_quiet_for_long_enough_is_suspended_and_not_before():
    events = [
        (0, d.Came(1)),
        (0, d.Started()),
        (50, d.Left(1)),
        (60, d.Due()),
        (60, d.Looked(busy=True)),
        (155, d.Due()),
        (155, d.Looked(busy=False)),
        (160, d.Due()),
        (160, d.Looked(busy=False)),
        (161, d.Came(2)),
        (162, d.Suspended()),
        (163, d.Started()),
    ]
    assert play(100.0, *events)[3:] == [
        (Stage.READY, "Look"),
        (Stage.READY,),
        (Stage.READY, "Look"),
        (Stage.READY,),
        (Stage.READY, "Look"),
        (Stage.SUSPENDING, "Suspend"),
        (Stage.SUSPENDING,),
        (Stage.STARTING, "Start"),
        (Stage.READY, "Dial"),
    ]


def test_a_client_that_comes_while_it_is_looked_at_keeps_it_running():
    events = [(400, d.Due()), (400, d.Came(1)), (400, d.Looked(busy=False)), (401, d.Started())]
    assert play(300.0, *events)[1:] == [(Stage.STARTING, "Start"), (Stage.STARTING,), (Stage.READY, "Dial")]


def test_an_engine_that_has_died_is_asked_for_once_more_and_then_the_client_is_told():
    events = [
        (0, d.Came(1)),
        (1, d.Started()),
        (2, d.DialFailed(1, ERROR)),
        (3, d.Started()),
        (4, d.DialFailed(1, ERROR)),
    ]
    assert play(300.0, *events)[2:] == [
        (Stage.STARTING, "Start"),
        (Stage.READY, "Dial"),
        (Stage.READY, "Refuse"),
    ]
