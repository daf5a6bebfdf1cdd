"""The machines on disk: who gets a name, who may change what, and what is true of them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from machines import hosted_spec
from msgspec.structs import replace

from atoll import process, store
from atoll.errors import StoreError, UsageError
from atoll.machine import registry
from atoll.machine.spec import Service
from atoll.paths import Paths
from atoll.vm.state import Cause, Phase, State, StateError


@pytest.fixture
def paths(tmp_path):
    return Paths(data=tmp_path / "data", cache=tmp_path / "cache")


def make(paths, name="dev", **wishes):
    return registry.add(paths, name, hosted_spec(**wishes), lambda place: place.data.touch())


def refused(act, *arguments, kind=StoreError):
    with pytest.raises(kind) as caught:
        act(*arguments)
    return caught.value


def remove(paths, name):
    with registry.change(paths, name) as machine:
        registry.forget(paths, machine)


def running(place):
    """Have the record say that it runs."""
    me = process.identify(os.getpid())
    store.write_record(place.state, State(phase=Phase.RUNNING, cause=Cause.BOOTED, vm=me))


def test_a_new_machine_is_there_with_all_that_belongs_to_it_and_nobody_else_may_look(paths):
    spec = hosted_spec(cpus=3)
    place = registry.add(paths, "dev", spec, lambda place: place.data.write_bytes(b"disk"))
    found = registry.find(paths, "dev")
    assert (found.spec, found.state.phase, found.supervised) == (spec, Phase.CREATED, False)
    assert found.place.data.read_bytes() == b"disk"
    assert place.directory.stat().st_mode & 0o777 == 0o700
    assert os.listdir(paths.machines) == ["dev"]


def test_a_name_that_is_taken_is_told_and_what_was_there_stays(paths):
    make(paths, cpus=1)
    error = refused(make, paths)
    assert error.code == "store.already_exists"
    assert "dev" in error.message
    assert registry.find(paths, "dev").spec.cpus == 1
    assert os.listdir(paths.machines) == ["dev"]


def _race(data, start, name, results):
    paths = Paths(data=data, cache=data)
    start.wait()
    try:
        registry.add(paths, name, hosted_spec(image=str(os.getpid())), lambda place: place.data.touch())
    except StoreError as error:
        results.put((os.getpid(), error.code))
    else:
        results.put((os.getpid(), "made"))


def test_of_many_that_want_a_name_at_once_one_gets_it_and_the_others_are_told(paths):
    context = multiprocessing.get_context("fork")
    results, start = context.Queue(), context.Event()
    racers = [
        context.Process(target=_race, args=(paths.data, start, "dev", results), daemon=True) for _ in range(6)
    ]
    for racer in racers:
        racer.start()
    start.set()
    ends = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
        racer.close()
    results.close()
    results.join_thread()
    assert sorted(ends.values()) == ["made"] + ["store.already_exists"] * 5
    winner = next(pid for pid, end in ends.items() if end == "made")
    assert registry.find(paths, "dev").spec.image == str(winner)
    assert os.listdir(paths.machines) == ["dev"]


def test_a_maker_that_fails_leaves_nothing(paths):
    def fail(place):
        place.data.touch()
        raise UsageError("no such disk")

    refused(registry.add, paths, "dev", hosted_spec(), fail, kind=UsageError)
    assert os.listdir(paths.machines) == []


MAKER = """
import sys, time
from pathlib import Path
from machines import hosted_spec
from atoll.machine import registry
from atoll.machine.spec import Service
from atoll.paths import Paths
data = Path(sys.argv[1])
def fill(place):
    place.data.touch()
    print("ready", flush=True)
    time.sleep(60)
registry.add(Paths(data=data, cache=data), "half", hosted_spec(), fill)
"""


def test_what_a_killed_maker_left_is_swept_by_the_next_and_what_a_living_one_makes_is_not(paths):
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(paths.data)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    with maker.stdout:
        assert maker.stdout.readline() == b"ready\n"
    (partial,) = os.listdir(paths.machines)
    assert registry.listed(paths) == []
    os.utime(paths.machines / partial, (time.time() - 60,) * 2)
    make(paths, "one")
    assert partial in os.listdir(paths.machines), "its maker lives"
    maker.kill()
    maker.wait()
    make(paths, "two")
    assert sorted(os.listdir(paths.machines)) == ["one", "two"]


def test_what_a_killed_remover_left_is_swept(paths):
    make(paths)
    (paths.machines / "dev").rename(paths.machines / ".removed-dev-00000000")
    make(paths, "next")
    assert os.listdir(paths.machines) == ["next"]


def test_a_machine_that_is_not_there_is_missing_and_the_hint_names_a_near_one(paths):
    make(paths, "webserver")
    error = refused(registry.find, paths, "webservre")
    assert (error.code, error.hint) == ("store.missing", "did you mean webserver?")
    assert "`atoll create" in refused(registry.find, paths, "x").hint
    assert refused(registry.find, paths, "../etc", kind=UsageError).code == "usage.name"


@pytest.mark.parametrize("record", ["spec", "state"])
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "store.corrupt"),
        (b"{", "store.corrupt"),
        (b"[]", "store.corrupt"),
        (b"\xff", "store.corrupt"),
        (b'{"schema": 0}', "store.corrupt"),
        (b'{"schema": -1}', "store.corrupt"),
        (b'{"schema": 1, "phase": "dreaming", "id": 5}', "store.corrupt"),
        (b"[" * 100_000, "store.corrupt"),
        (b'{"schema": 99, "anything": true}', "store.newer"),
        (None, "store.missing"),
    ],
)
def test_a_record_that_cannot_be_read_is_reported_and_kept_and_the_others_are_listed(
    paths, record, content, code
):
    for name in ("a", "dev", "z"):
        make(paths, name)
    path = getattr(paths.machine("dev"), record)
    path.unlink() if content is None else path.write_bytes(content)
    entries = {entry.name: entry for entry in registry.listed(paths)}
    assert list(entries) == ["a", "dev", "z"]
    assert (entries["dev"].machine, entries["dev"].error.code) == (None, code)
    assert entries["a"].error is None is entries["z"].error
    assert refused(registry.find, paths, "dev").code == code
    assert refused(make, paths, "dev").code == "store.already_exists"
    assert content is None or path.read_bytes() == content


def test_what_is_no_machine_is_listed_as_such(paths):
    make(paths)
    (paths.machines / "file").touch()
    (paths.machines / "Odd_Name").mkdir()
    (paths.machines / "empty").mkdir()
    errors = {entry.name: entry.error and entry.error.code for entry in registry.listed(paths)}
    assert errors == {
        "dev": None,
        "Odd_Name": "usage.name",
        "empty": "store.missing",
        "file": "store.missing",
    }


def test_a_removed_machine_is_gone_with_its_disk_and_its_name_is_free(paths):
    make(paths)
    remove(paths, "dev")
    assert os.listdir(paths.machines) == []
    make(paths)


def test_a_renamed_machine_keeps_its_id_and_a_taken_name_is_refused(paths):
    spec = registry.find(paths, make(paths).directory.name).spec
    make(paths, "other")
    with registry.change(paths, "dev") as machine:
        assert refused(registry.rename, paths, machine, "other").code == "store.already_exists"
        assert refused(registry.rename, paths, machine, "No", kind=UsageError).code == "usage.name"
        registry.rename(paths, machine, "new")
    assert registry.find(paths, "new").spec == spec
    assert sorted(os.listdir(paths.machines)) == ["new", "other"]


def test_a_machine_with_a_vm_is_neither_removed_nor_renamed(paths):
    place = make(paths)
    running(place)
    lock = store.hold(place.vm_lock)
    with registry.change(paths, "dev") as machine:
        assert refused(registry.forget, paths, machine, kind=StateError).code == "state.active"
        assert refused(registry.rename, paths, machine, "new", kind=StateError).code == "state.active"
    os.close(lock)
    assert registry.find(paths, "dev").state.phase is Phase.FAILED
    remove(paths, "dev")


def test_a_supervisor_that_is_about_to_leave_is_waited_for(paths):
    place = make(paths)
    lock = store.hold(place.supervisor_lock)
    began = time.monotonic()
    threading.Timer(0.3, os.close, [lock]).start()
    remove(paths, "dev")
    assert time.monotonic() - began >= 0.3


def test_no_supervisor_comes_while_a_machine_is_kept_at_rest(paths):
    place = make(paths)
    machine = registry.find(paths, "dev")
    with registry.at_rest(machine, "looked at"):
        assert store.hold(place.supervisor_lock) is None
    lock = store.hold(place.supervisor_lock)
    assert lock is not None
    os.close(lock)


def test_a_command_that_waited_for_a_machine_that_is_removed_does_not_bring_it_back(paths):
    make(paths)
    ends = []

    def wait():
        try:
            with registry.change(paths, "dev"):
                ends.append("changed")
        except StoreError as error:
            ends.append(error.code)

    with registry.change(paths, "dev") as machine:
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.1)
        registry.forget(paths, machine)
    waiter.join(60)
    assert ends == ["store.missing"]
    assert os.listdir(paths.machines) == []


def test_a_command_that_waited_for_a_machine_that_is_replaced_changes_the_new_one(paths):
    make(paths, image="old")
    seen = []

    def wait():
        with registry.change(paths, "dev") as machine:
            seen.append(machine.spec.image)

    with registry.change(paths, "dev") as machine:
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.1)
        registry.forget(paths, machine)
        make(paths, image="new")
    waiter.join(60)
    assert seen == ["new"]


def test_what_two_commands_change_is_changed_one_after_the_other(paths):
    make(paths, cpus=1)

    def add_one():
        for _ in range(10):
            with registry.change(paths, "dev") as machine:
                registry.save(machine, replace(machine.spec, cpus=machine.spec.cpus + 1))

    threads = [threading.Thread(target=add_one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.find(paths, "dev").spec.cpus == 31


def test_what_is_true_depends_on_locks_not_on_what_is_recorded(paths):
    place = make(paths)
    running(place)
    assert registry.observe(place)[0].cause is Cause.KILLED
    for lock in (place.vm_lock, place.supervisor_lock):
        held = store.hold(lock)
        state, supervised = registry.observe(place)
        assert (state.phase, supervised) == (Phase.RUNNING, lock == place.supervisor_lock)
        os.close(held)
    stale = replace(
        store.read_record(place.state, State), vm=replace(process.identify(os.getpid()), boot="x")
    )
    store.write_record(place.state, stale)
    assert registry.observe(place)[0].cause is Cause.HOST_RESTARTED
    assert store.read_record(place.state, State) == stale, "looking changes nothing"


def test_the_name_of_atolls_own_machine_is_not_a_users_to_take_change_or_remove(paths):
    assert refused(make, paths, "docker", kind=UsageError).code == "usage.reserved"
    make(paths, "dev")
    make(paths, "docker", service=Service("true"))
    with registry.change(paths, "dev") as dev, registry.change(paths, "docker") as own:
        assert refused(registry.rename, paths, dev, "docker", kind=UsageError).code == "usage.reserved"
        assert refused(registry.rename, paths, own, "mine", kind=UsageError).code == "usage.reserved"
        assert refused(registry.require_users, own, "removed", kind=UsageError).code == "usage.reserved"
        registry.require_users(dev, "removed")
    assert [entry.name for entry in registry.listed(paths)] == ["dev", "docker"]


def test_a_machine_that_a_user_made_under_a_name_that_was_free_then_can_be_renamed(paths):
    make(paths, "dev")
    paths.machine("dev").directory.rename(paths.machine("docker").directory)
    with registry.change(paths, "docker") as machine:
        registry.rename(paths, machine, "mine")
    assert registry.find(paths, "mine").spec.service is None
