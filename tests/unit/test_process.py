"""The one door for programs: what they wrote, how they ended, and that none outlives who started it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from atoll import process
from atoll.errors import PreflightError, ProcessError
from atoll.events import CommandRan

SH = "/bin/sh"


def sh(script, **options):
    return process.run([SH, "-c", script], **options)


def failed(function, *arguments, **options):
    with pytest.raises(ProcessError) as caught:
        function(*arguments, **options)
    return caught.value


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] != "Z"


def wait_until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


class TestRun:
    def test_stdout_and_stderr_come_apart_and_as_bytes(self):
        done = sh("printf 'out\\377'; printf err >&2")
        assert (done.stdout, done.stderr) == (b"out\xff", b"err")
        assert done.argv == (SH, "-c", "printf 'out\\377'; printf err >&2")
        assert done.elapsed >= 0

    def test_a_status_other_than_0_is_an_error_with_the_last_lines_of_stderr(self):
        error = failed(sh, "seq 1 100 >&2; exit 3")
        assert error.status == 3
        assert error.message == "sh exited with status 3"
        assert error.detail.splitlines() == [str(number) for number in range(81, 101)]

    def test_a_signal_is_told_from_a_status(self):
        error = failed(sh, "kill -SEGV $$")
        assert error.status == -signal.SIGSEGV
        assert error.message == "sh was killed by SIGSEGV"

    def test_a_missing_program_is_an_error_that_names_it(self):
        error = failed(process.run, ["/no/such/program", "x"])
        assert error.message == "cannot run /no/such/program: No such file or directory"
        assert (error.code, error.status, error.argv) == ("process.start", 127, ("/no/such/program", "x"))

    def test_a_program_that_runs_too_long_is_killed(self):
        began = time.monotonic()
        error = failed(process.run, ["sleep", "90"], timeout=0.2)
        assert error.message == "sleep took longer than 0.2 s"
        assert time.monotonic() - began < 60

    def test_a_program_whose_children_hold_its_output_open_is_not_waited_for_past_its_time(self):
        began = time.monotonic()
        error = failed(sh, "sleep 90 & echo $!; wait", timeout=0.2)
        assert "took longer" in error.message
        assert time.monotonic() - began < 60

    def test_a_program_within_its_time_is_left_alone(self):
        assert sh("echo x", timeout=30).stdout == b"x\n"

    def test_bytes_are_its_input_and_none_is_an_input_at_its_end(self):
        data = os.urandom(300_000)
        assert process.run(["cat"], stdin=data).stdout == data
        assert process.run(["cat"]).stdout == b""

    def test_an_open_file_can_be_its_input(self, tmp_path):
        (tmp_path / "file").write_bytes(b"from a file")
        with (tmp_path / "file").open("rb") as file:
            assert process.run(["cat"], stdin=file).stdout == b"from a file"

    def test_messages_are_in_english_and_the_environment_is_inherited(self, monkeypatch):
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        monkeypatch.setenv("INHERITED", "yes")
        assert sh("echo $LC_ALL $INHERITED").stdout == b"C.UTF-8 yes\n"

    def test_an_environment_that_is_given_is_all_that_the_program_gets(self):
        assert process.run(["/usr/bin/env"], env={"ONLY": "this"}).stdout == b"ONLY=this\n"

    def test_it_starts_in_the_directory_that_was_asked_for(self, tmp_path):
        assert process.run(["pwd", "-P"], cwd=tmp_path).stdout.decode().strip() == str(tmp_path.resolve())

    def test_lines_of_stderr_are_told_as_they_come_beside_a_large_output(self, tmp_path):
        told = []

        def on_line(line):
            told.append(line)
            (tmp_path / line).touch()

        waits = f"while ! test -e {tmp_path}/one; do sleep 0.01; done"
        script = f"echo one >&2; {waits}; head -c 300000 /dev/zero; echo two >&2; printf three >&2"
        done = sh(script, on_line=on_line, timeout=60)
        assert told == ["one", "two", "three"]
        assert len(done.stdout) == 300_000
        assert done.stderr == b"one\ntwo\nthree"

    def test_a_listener_of_lines_that_fails_ends_the_program(self):
        def refuse(line):
            raise KeyError(line)

        before = open_descriptors()
        began = time.monotonic()
        with pytest.raises(KeyError):
            process.run([SH, "-c", "echo line >&2; exec sleep 90"], on_line=refuse)
        assert time.monotonic() - began < 60
        wait_until(lambda: open_descriptors() <= before)

    def test_its_end_is_an_event_whether_it_failed_or_not(self):
        seen = []
        sh("exit 0", emit=seen.append)
        failed(sh, "exit 4", emit=seen.append)
        assert [(type(event), event.status) for event in seen] == [(CommandRan, 0), (CommandRan, 4)]

    def test_no_descriptor_is_left_behind_and_none_is_inherited(self):
        before = open_descriptors()
        read, write = os.pipe()
        os.set_inheritable(read, True)
        listed = sh("ls /proc/self/fd").stdout.split()
        os.close(read)
        os.close(write)
        failed(sh, "exit 1")
        failed(process.run, ["/no/such/program"])
        failed(process.run, ["sleep", "30"], timeout=0.05)
        assert listed == [b"0", b"1", b"2", b"3"]  # 3 is what ls reads the directory by
        assert open_descriptors() == before


class TestFind:
    def test_administrators_directories_count(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        assert process.find("chroot") == "/usr/sbin/chroot"
        assert process.find("no-such-program") is None

    def test_a_program_that_is_required_and_missing_is_an_error_with_the_hint(self):
        with pytest.raises(PreflightError) as caught:
            process.require("no-such-program", hint="apt install it")
        assert caught.value.message == "no-such-program is not installed"
        assert caught.value.hint == "apt install it"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with status 0"),
        (7, "exited with status 7"),
        (-9, "was killed by SIGKILL"),
        (-64, "was killed by SIGRTMAX"),
        (-40, "was killed by signal 40"),
        (-200, "was killed by signal 200"),
    ],
)
def test_a_status_reads_as_words(status, words):
    assert process.describe_status(status) == words


@pytest.fixture
def spawned():
    """Start programs that are closed after the test."""
    children = []

    def start(argv, **options):
        children.append(process.spawn(argv, **options))
        return children[-1]

    yield start
    for child in children:
        child.close()


class TestSpawn:
    def test_descriptors_are_passed_under_their_own_numbers_and_no_others(self, spawned):
        read, write = os.pipe()
        kept, kept_too = os.pipe()
        os.set_inheritable(kept, True)
        passed, withheld = (os.readlink(f"/proc/self/fd/{fd}") for fd in (write, kept))
        script = f"for fd in /proc/$$/fd/*; do echo ${{fd##*/}} $(readlink $fd); done > /dev/fd/{write}"
        child = spawned([SH, "-c", script], pass_fds=[write])
        os.close(write)
        with os.fdopen(read) as stream:
            listed = stream.read().splitlines()
        assert child.wait(10) == 0
        assert f"{write} {passed}" in listed
        assert not [line for line in listed if withheld in line]
        os.close(kept)
        os.close(kept_too)

    def test_stdout_and_stderr_go_to_the_output_that_was_given(self, spawned):
        read, write = os.pipe()
        child = spawned([SH, "-c", "echo out; echo err >&2; cat"], output=write)
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            assert stream.read() == b"out\nerr\n"
        assert child.wait(10) == 0

    def test_the_pidfd_is_readable_once_it_has_ended(self, spawned):
        child = spawned(["sleep", "30"])
        assert child.poll() is None
        assert select.select([child.pidfd], [], [], 0)[0] == []
        child.kill()
        assert select.select([child.pidfd], [], [], 10)[0] == [child.pidfd]
        assert child.poll() == -signal.SIGKILL

    def test_waiting_ends_when_the_time_is_over(self, spawned):
        child = spawned(["sleep", "30"])
        assert child.wait(0.05) is None
        child.kill()
        assert child.wait(10) == -signal.SIGKILL

    def test_close_kills_reaps_and_gives_back_the_descriptor_and_may_be_repeated(self):
        before = open_descriptors()
        child = process.spawn(["sleep", "30"])
        assert open_descriptors() == before + 1
        child.close()
        child.close()
        assert open_descriptors() == before
        assert not Path(f"/proc/{child.pid}").exists()

    def test_it_is_a_session_of_its_own_so_that_the_terminals_signals_pass_it_by(self, spawned):
        child = spawned(["sleep", "30"])
        assert os.getsid(child.pid) == child.pid

    @pytest.mark.parametrize("die_with_parent", [True, False])
    def test_a_missing_program_is_an_error(self, die_with_parent):
        before = open_descriptors()
        error = failed(process.spawn, ["/no/such/program"], die_with_parent=die_with_parent)
        assert error.message == "cannot run /no/such/program: No such file or directory"
        assert error.code == "process.start"
        assert open_descriptors() == before

    def test_a_missing_program_is_an_error_in_other_threads_too(self):
        outcome = []
        thread = threading.Thread(target=lambda: outcome.append(failed(process.spawn, ["/no/such/program"])))
        thread.start()
        thread.join()
        assert outcome[0].code == "process.start"

    def test_it_outlives_the_short_lived_thread_that_spawned_it(self, spawned):
        children = []
        thread = threading.Thread(target=lambda: children.append(spawned(["sleep", "30"])))
        thread.start()
        thread.join()
        time.sleep(0.1)
        assert children[0].poll() is None


PARENT = """
import sys, threading, time
from atoll import process

def start():
    child = process.spawn(["sleep", "60"], die_with_parent=sys.argv[2] == "dies")
    while sys.argv[2] == "dies" and open(f"/proc/{child.pid}/comm").read() != "sleep\\n":
        time.sleep(0.005)
    print(child.pid, flush=True)

if sys.argv[1] == "thread":
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
else:
    start()
time.sleep(60)
"""


def parent_of_a_child(place, fate):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, place, fate], stdout=subprocess.PIPE)
    with parent.stdout:
        return parent, int(parent.stdout.readline())


@pytest.mark.parametrize("place", ["main", "thread"])
def test_a_child_dies_with_its_killed_parent(place):
    parent, child = parent_of_a_child(place, "dies")
    assert is_running(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(child))


@pytest.mark.parametrize("alive", [True, False])
def test_a_program_whose_parent_died_before_it_was_tied_to_it_is_not_begun(alive, tmp_path):
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    parent = os.getpid() if alive else dead.pid
    begun = tmp_path / "begun by $0"
    subprocess.run(process._tied(["touch", str(begun)], parent), check=False)
    assert begun.exists() is alive


def test_a_child_that_is_to_live_on_does_so():
    parent, child = parent_of_a_child("main", "lives")
    parent.kill()
    parent.wait()
    time.sleep(0.2)
    try:
        assert is_running(child)
    finally:
        os.kill(child, signal.SIGKILL)
