"""Events: each has its tag, comes back from JSON as it was, and long work always ends."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from atoll import events
from atoll.events import Event, TaskAdvanced, TaskEnded, TaskStarted, Warned, task, tee

EXAMPLES = [
    events.CommandRan(argv=("ls", "-l"), status=0, elapsed=0.25),
    events.TaskStarted(task="build", title="Building", total=10, unit="B"),
    events.TaskAdvanced(task="build", done=3, note="größer"),
    events.TaskEnded(task="build", ok=False, elapsed=1.5),
    events.AcceleratorChosen(accelerator="tcg", reason="asked for"),
    events.VmSpawned(vm="box", pid=7),
    events.StageReached(vm="box", stage="agent", elapsed=0.5),
    events.GuestBooted(vm="box", timeline={"start": 1, "ready": 2}),
    events.VmExited(vm="box", status=-9),
    events.VmCaptured(vm="box", stopped=0.05),
    events.VmForked(vm="box", children=("one", "two"), stopped=0.005),
    events.PortOpened(vm="docker", port="127.0.0.1:80/tcp", container="web"),
    events.PortRefused(vm="docker", port="[::1]:80/tcp", container="web", reason="it is taken"),
    events.PortClosed(vm="docker", port="127.0.0.1:53/udp", container="dns"),
    events.PortPublished(vm="box", port="80/tcp", host="127.0.0.1:32768"),
    events.AutoPortOpened(vm="dev", port=3000, host="127.0.0.1:3001"),
    events.AutoPortClosed(vm="dev", port=3000, host="127.0.0.1:3001"),
    events.ExecutionStarted(vm="box", execution="x1", argv=("true",), guest_pid=12),
    events.OutputReceived(vm="box", execution="x1", fd=2, text="line\n"),
    events.ExecutionEnded(vm="box", execution="x1", code=None, signal=15, elapsed=0.1),
    events.StateChanged(vm="dev", phase="failed", cause="the hypervisor died", error="state.hypervisor"),
    events.StopTried(vm="dev", how="agent", elapsed=0.5, ended=True),
    events.WaitingFor(vm="dev", what="network"),
    events.Warned(message="careful", hint="do so"),
]
KINDS = tuple(type(example) for example in EXAMPLES)


def test_there_is_an_example_of_each_event():
    exported = {getattr(events, name) for name in events.__all__}
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Event)}
    assert kinds - {Event} == set(KINDS)
    assert set(Event.__subclasses__()) == set(KINDS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_json_has_the_events_tag_and_all_its_fields(event):
    encoded = json.loads(msgspec.json.encode(event))
    assert encoded.pop("event") == type(event).__struct_config__.tag
    assert set(encoded) == set(event.__struct_fields__)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_json_as_it_was(event):
    union = KINDS[0]
    for kind in KINDS[1:]:
        union = union | kind
    assert msgspec.json.decode(msgspec.json.encode(event), type=union) == event


def test_tags_are_the_names_in_snake_case_and_differ():
    tags = [kind.__struct_config__.tag for kind in KINDS]
    assert len(set(tags)) == len(tags)
    for kind, tag in zip(KINDS, tags, strict=True):
        assert "".join(word.title() for word in tag.split("_")) == kind.__name__


def test_an_event_knows_when_it_was_made():
    before = time.time()
    assert before <= Warned(message="x").at <= time.time()


def test_long_work_is_framed_by_its_start_and_its_end():
    seen = []
    with task(seen.append, "build", "Building", total=2, unit="files") as emit:
        emit(TaskAdvanced(task="build", done=1))
    assert [type(event) for event in seen] == [TaskStarted, TaskAdvanced, TaskEnded]
    assert (seen[0].title, seen[0].total, seen[0].unit) == ("Building", 2, "files")
    assert seen[2].ok


def test_long_work_that_fails_ends_too_and_the_failure_goes_on():
    seen = []
    with pytest.raises(KeyboardInterrupt), task(seen.append, "build", "Building"):
        raise KeyboardInterrupt
    assert [type(event) for event in seen] == [TaskStarted, TaskEnded]
    assert not seen[1].ok


def test_tee_tells_each_listener_in_turn():
    seen = []
    emit = tee(lambda event: seen.append((1, event)), lambda event: seen.append((2, event)), events.ignore)
    event = Warned(message="x")
    emit(event)
    assert seen == [(1, event), (2, event)]
