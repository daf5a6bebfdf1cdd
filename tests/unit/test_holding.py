"""Locks that live as long as processes, and processes that are what they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from atoll import process, store
from atoll.errors import StoreError
from atoll.process import UNKNOWN_STATUS, Adopted, Identity, has_open, identify


@pytest.fixture
def path(tmp_path):
    return tmp_path / "supervisor.lock"


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestHold:
    def test_one_holds_and_others_see_it(self, path):
        assert not store.is_held(path)
        held = store.hold(path)
        assert store.is_held(path)
        assert store.hold(path) is None
        os.close(held)
        assert not store.is_held(path)

    def test_asking_neither_makes_the_file_nor_frees_the_lock(self, path):
        assert not store.is_held(path)
        assert not path.exists()
        held = store.hold(path)
        for _ in range(3):
            assert store.is_held(path)
        os.close(held)

    def test_a_place_that_is_not_there_cannot_be_held(self, tmp_path):
        with pytest.raises(StoreError):
            store.hold(tmp_path / "none" / "lock")

    def test_a_child_that_inherits_it_holds_it_until_it_ends_too(self, path):
        held = store.hold(path)
        child = process.spawn(["sleep", "60"], pass_fds=[held], die_with_parent=False)
        os.close(held)
        assert store.is_held(path)
        assert store.hold(path) is None
        child.close()
        assert not store.is_held(path)

    def test_a_child_that_does_not_inherit_it_does_not_hold_it(self, path):
        held = store.hold(path)
        child = process.spawn(["sleep", "60"], die_with_parent=False)
        os.close(held)
        assert not store.is_held(path)
        child.close()

    def test_the_kernel_frees_the_lock_of_a_killed_holder(self, path):
        script = (
            "import sys, pathlib, time; from atoll import store; "
            "store.hold(pathlib.Path(sys.argv[1])); print('ready', flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
        with holder.stdout:
            assert holder.stdout.readline() == b"ready\n"
        assert store.is_held(path)
        holder.kill()
        holder.wait()
        assert not store.is_held(path)


class TestLock:
    def test_a_lock_whose_file_was_replaced_meanwhile_is_taken_anew(self, tmp_path):
        path, taken = tmp_path / "change.lock", []

        def wait():
            with store.lock(path, wait=60):
                taken.append(os.stat(path).st_ino)

        with store.lock(path):
            waiter = threading.Thread(target=wait)
            waiter.start()
            time.sleep(0.1)
            path.rename(tmp_path / "old.lock")
            path.touch()
            fresh = path.stat().st_ino
        waiter.join(60)
        assert taken == [fresh]

    def test_a_lock_of_its_own_directory_does_not_make_it(self, tmp_path):
        with pytest.raises(StoreError) as caught, store.lock(tmp_path / "gone" / "x.lock", parents=False):
            pass
        assert caught.value.code == "store.missing"
        assert not (tmp_path / "gone").exists()


class Aged(msgspec.Struct):
    """A record of a third schema."""

    SCHEMA: ClassVar[int] = 3
    MIGRATIONS: ClassVar[dict] = {
        1: lambda fields: {**fields, "names": [fields["name"]]},
        2: lambda fields: {**fields, "names": [name.upper() for name in fields["names"]]},
    }

    names: list[str]
    schema: int = 3


class TestMigration:
    @pytest.mark.parametrize(
        ("content", "names"),
        [
            (b'{"schema": 1, "name": "a"}', ["A"]),
            (b'{"schema": 2, "names": ["a", "b"]}', ["A", "B"]),
            (b'{"schema": 3, "names": ["a"]}', ["a"]),
        ],
    )
    def test_older_records_are_carried_up_and_left_as_they_are(self, tmp_path, content, names):
        path = tmp_path / "record.json"
        path.write_bytes(content)
        assert store.read_record(path, Aged) == Aged(names)
        assert path.read_bytes() == content
        store.write_record(path, store.read_record(path, Aged))
        assert b'"schema": 3' in path.read_bytes()

    @pytest.mark.parametrize(
        "content",
        [
            b'{"schema": 0, "name": "a"}',
            b'{"schema": -5}',
            b'{"schema": 1}',
            b'{"schema": 2, "names": 7}',
            b'{"schema": 2, "names": [7]}',
            b'{"schema": 2}',
        ],
    )
    def test_older_records_that_no_migration_fits_are_corrupt(self, tmp_path, content):
        path = tmp_path / "record.json"
        path.write_bytes(content)
        with pytest.raises(StoreError) as caught:
            store.read_record(path, Aged)
        assert caught.value.code == "store.corrupt"
        assert path.read_bytes() == content


@pytest.fixture
def sleeper():
    child = process.spawn(["sleep", "60"], die_with_parent=False)
    yield child
    child.close()


class TestIdentity:
    def test_a_process_is_the_same_as_long_as_it_lives(self, sleeper):
        assert identify(sleeper.pid) == identify(sleeper.pid)
        assert identify(sleeper.pid).boot == process.boot_id()

    def test_a_process_that_has_ended_is_nobody_although_it_waits_to_be_reaped(self, sleeper):
        os.kill(sleeper.pid, signal.SIGKILL)
        until(lambda: identify(sleeper.pid) is None)
        assert Path(f"/proc/{sleeper.pid}").exists()

    def test_a_name_with_parentheses_and_spaces_confuses_nobody(self, tmp_path):
        program = tmp_path / "a) R 1 (b"
        os.symlink("/bin/sleep", program)
        child = process.spawn([str(program), "60"], die_with_parent=False)
        until(lambda: Path(f"/proc/{child.pid}/comm").read_text().startswith("a) R"))
        assert identify(child.pid).started > identify(os.getpid()).started
        child.close()

    def test_what_a_process_has_open_is_known_by_the_file_not_by_its_name(self, sleeper, path, tmp_path):
        held = store.hold(path)
        child = process.spawn(["sleep", "60"], pass_fds=[held], die_with_parent=False)
        os.close(held)
        assert has_open(child.pid, path)
        assert not has_open(sleeper.pid, path)
        path.rename(tmp_path / "renamed")
        assert has_open(child.pid, tmp_path / "renamed")
        assert not has_open(child.pid, path)
        child.close()
        assert not has_open(child.pid, tmp_path / "renamed")


class TestAdopted:
    def test_it_is_waited_for_and_killed_like_a_child(self, sleeper):
        adopted = Adopted.of(identify(sleeper.pid))
        assert adopted.poll() is None
        assert adopted.wait(0.01) is None
        adopted.kill()
        assert adopted.wait(60) == UNKNOWN_STATUS
        assert sleeper.wait(60) == -signal.SIGKILL
        adopted.kill()
        adopted.send(signal.SIGTERM)
        adopted.close()
        adopted.close()

    @pytest.mark.parametrize("other", [{"started": 1}, {"boot": "another"}], ids=["pid reused", "rebooted"])
    def test_a_process_with_the_same_pid_that_is_another_is_never_adopted(self, sleeper, other):
        stale = msgspec.structs.replace(identify(sleeper.pid), **other)
        before = len(os.listdir("/proc/self/fd"))
        assert Adopted.of(stale) is None
        assert len(os.listdir("/proc/self/fd")) == before
        assert sleeper.poll() is None

    def test_a_pid_that_nobody_has_is_nobody(self):
        assert Adopted.of(Identity(2**22 + 1, 1, process.boot_id())) is None

    def test_one_that_was_let_go_goes_on_and_is_not_hit_any_more(self, sleeper):
        adopted = Adopted.of(identify(sleeper.pid))
        adopted.forget()
        adopted.kill()
        adopted.close()
        time.sleep(0.05)
        assert sleeper.poll() is None

    def test_a_child_that_was_let_go_goes_on_and_nothing_warns(self, recwarn):
        child = process.spawn(["sleep", "60"], die_with_parent=False)
        identity = identify(child.pid)
        child.forget()
        child.forget()
        assert child.poll() == UNKNOWN_STATUS
        child.send(signal.SIGKILL)
        del child
        assert not recwarn.list
        adopted = Adopted.of(identity)
        assert adopted.poll() is None
        adopted.close()
