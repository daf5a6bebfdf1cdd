"""`atoll ls` prints the same, whether the program was loaded for it or not."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import msgspec
import pytest
from machines import hosted_spec

from atoll import store
from atoll.cli import entry, quick
from atoll.cli.main import main
from atoll.config import load
from atoll.machine import registry
from atoll.paths import Paths
from atoll.process import boot_id, identify
from atoll.vm.state import Cause, Failure, Phase, State

NOW = 1_800_000_000.0


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(time, "time", lambda: NOW)
    return Paths(data=tmp_path, cache=tmp_path)


@pytest.fixture
def enter(paths):
    """Enter a machine in this state; its supervisor is this process if it has one."""
    held = []

    def add(name, state=None, *, supervised=False, **wishes):
        place = registry.add(paths, name, hosted_spec(**wishes), lambda place: place.data.touch())
        if state is not None:
            store.write_record(place.state, state)
        if supervised:
            held.append(store.hold(place.supervisor_lock))
        return place

    yield add
    for lock in held:
        os.close(lock)


@pytest.fixture
def both(paths, capsys):
    """What each of the two ways prints."""

    def ask():
        assert main(["ls"]) == 0
        return quick.listing(str(paths.data)), capsys.readouterr().out

    return ask


def test_without_machines_it_is_the_head_of_the_table(both, paths):
    assert not paths.machines.exists()
    quickly, whole = both()
    assert quickly == whole == "NAME  STATE  SINCE  CPUS  MEMORY  IMAGE  NOTE\n"
    paths.machines.mkdir()
    assert both() == (whole, whole)


FAILURE = Failure("boot.kernel", "dev: the kernel did not start", "look", "at this")


@pytest.mark.parametrize("phase", Phase)
def test_each_state_reads_the_same(enter, both, phase):
    first = State(phase=phase, since=NOW - 100)
    place = enter("dev", first, supervised=first.active, cpus=3, memory=1 << 30)
    for cause, failure in itertools.product(Cause, (None, FAILURE)):
        store.write_record(place.state, msgspec.structs.replace(first, cause=cause, failure=failure))
        quickly, whole = both()
        assert quickly == whole
        assert whole.splitlines()[1].startswith(f"dev   {phase}")


@pytest.mark.parametrize("ago", [0, 0.4, 0.6, 59.6, 60, 3599, 3600, 86_399, 86_400, 9e9, -5])
def test_each_time_reads_the_same(enter, both, ago):
    enter("dev", State(since=NOW - ago))
    enter("web-1", State(since=NOW - ago / 2), memory=3 << 20)
    quickly, whole = both()
    assert quickly == whole


def damage(file, data):
    def act(place):
        (place.directory / file).write_bytes(data)

    return act


def change(file, **fields):
    def act(place):
        path = place.directory / file
        record = {**msgspec.json.decode(path.read_bytes()), **fields}
        path.write_bytes(msgspec.json.encode(record))

    return act


@pytest.mark.parametrize(
    "act",
    [
        damage("machine.json", b"{"),
        damage("machine.json", b""),
        damage("machine.json", b"[]"),
        damage("machine.json", b"\xff\xfe"),
        damage("state.json", b"{}"),
        damage("state.json", b"null"),
        change("machine.json", schema=2),
        change("state.json", schema=2),
        change("machine.json", memory="much"),
        change("state.json", since=None),
        lambda place: place.state.unlink(),
        lambda place: place.spec.unlink(),
    ],
)
def test_what_is_not_plain_is_left_to_the_whole_program(enter, both, act):
    act(enter("dev"))
    enter("web")
    quickly, whole = both()
    assert quickly is None
    assert "web " in whole
    assert "dev " in whole


def test_a_machine_whose_processes_are_gone_is_left_to_the_whole_program(enter, both):
    vm = msgspec.structs.replace(identify(os.getpid()), boot=boot_id())
    enter("dev", State(phase=Phase.RUNNING, cause=Cause.BOOTED, since=NOW, vm=vm))
    quickly, whole = both()
    assert quickly is None
    assert "failed" in whole


def test_what_is_half_made_or_half_removed_is_not_shown(enter, both, paths):
    enter("dev")
    (paths.machines / ".dev2-1a2b").mkdir()
    (paths.machines / ".removed-x-1a2b").mkdir()
    quickly, whole = both()
    assert quickly == whole
    assert len(whole.splitlines()) == 2


@pytest.mark.parametrize(
    "variables",
    [
        {"HOME": "/h"},
        {"HOME": "/h", "XDG_DATA_HOME": "/x"},
        {"HOME": "/h", "XDG_DATA_HOME": "relative"},
        {"HOME": "/h", "ATOLL_DATA_DIR": "/d"},
    ],
    ids=str,
)
def test_the_directory_is_that_of_the_settings(monkeypatch, variables):
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "ATOLL_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if os.path.exists("/etc/atoll/config.toml"):
        pytest.skip("this host has settings")
    assert quick.data_directory() == str(load().config.data_dir)


def test_settings_that_must_be_resolved_are_left_to_the_whole_program(monkeypatch, tmp_path):
    monkeypatch.delenv("ATOLL_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "atoll").mkdir()
    (tmp_path / "atoll" / "config.toml").write_text('data_dir = "/elsewhere"\n')
    assert quick.data_directory() is None
    for wrong in ("relative", ""):
        monkeypatch.setenv("ATOLL_DATA_DIR", wrong)
        assert quick.data_directory() is None


def run(*words, **options):
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.argv[1:] = {words!r}; from atoll.cli.entry import main; main()",
    ]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_the_installed_command_takes_either_way(enter, tmp_path, paths):
    place = enter("dev")
    plain = run("ls")
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert b"dev   created" in plain.stdout
    place.spec.write_text("{")
    damaged = run("ls")
    assert damaged.returncode == 0
    assert b"dev   unknown" in damaged.stdout
    assert run("ls", "-q").stdout == b"dev\n"


def test_a_reader_that_is_gone_is_an_error_and_no_loss(enter):
    enter("dev")
    with open("/dev/full", "wb") as full:
        command = [
            sys.executable,
            "-c",
            "import sys; sys.argv[1:] = ['ls']; from atoll.cli.entry import main; main()",
        ]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert b"error[error.os]" in done.stderr


def test_only_the_bare_word_is_answered_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(entry, "_list", lambda: asked.append("quick"))
    monkeypatch.setattr("atoll.cli.main.entry", lambda: asked.append("whole"))
    for words in (["ls"], ["ls", "--json"], []):
        monkeypatch.setattr(sys, "argv", ["atoll", *words])
        entry.main()
    assert asked == ["quick", "whole", "whole", "whole"]
