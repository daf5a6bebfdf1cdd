"""How events, tables and sizes read."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import termios
import time

import pytest

from atoll import events
from atoll.cli.output import JsonLines, listener, print_json, print_table, settle, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (512 << 20, "512.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 40, "3072.0 GiB"),
    ],
)
def test_a_size_reads_in_the_unit_that_fits(count, words):
    assert size(count) == words


def test_columns_are_as_wide_as_what_they_hold_and_lines_have_no_blanks_at_the_end(capsys):
    print_table(("NAME", "SIZE"), [("debian:trixie", "62 MiB"), ("x", "")])
    assert capsys.readouterr().out == "NAME           SIZE\ndebian:trixie  62 MiB\nx\n"


def test_an_empty_table_is_its_head(capsys):
    print_table(("NAME", "SIZE"), [])
    assert capsys.readouterr().out == "NAME  SIZE\n"


def test_a_document_is_json_that_people_can_read(capsys):
    print_json([{"name": "größer", "value": None}])
    printed = capsys.readouterr().out
    assert json.loads(printed) == [{"name": "größer", "value": None}]
    assert printed == '[\n  {\n    "name": "größer",\n    "value": null\n  }\n]\n'


def test_each_event_is_a_line_of_json_at_once():
    stream = io.BytesIO()
    emit = JsonLines(stream)
    emit(events.Warned(message="a\nb", at=1.0))
    emit(events.VmExited(vm="box", status=0, at=2.0))
    assert stream.getvalue().decode() == (
        '{"event":"warned","message":"a\\nb","hint":"","at":1.0}\n'
        '{"event":"vm_exited","vm":"box","status":0,"at":2.0}\n'
    )


WORK = (
    events.TaskStarted(task="image", title="Building debian"),
    events.TaskAdvanced(task="image", note="unpacking"),
    events.TaskEnded(task="image", ok=True, elapsed=2.04),
    events.TaskStarted(task="kernel", title="Fetching the kernel"),
    events.TaskEnded(task="kernel", ok=False, elapsed=1.0),
    events.Warned(message="careful", hint="do so"),
)
STAGES = (
    events.AcceleratorChosen(accelerator="tcg", reason="asked for"),
    events.VmSpawned(vm="box", pid=7),
    events.StageReached(vm="box", stage="agent", elapsed=0.5),
    events.GuestBooted(vm="box", timeline={"start": 250_000_000}),
    events.CommandRan(argv=("mkfs", "x"), status=0, elapsed=0.1),
    events.ExecutionEnded(vm="box", execution="x1", code=3, signal=None, elapsed=0.1),
    events.ExecutionEnded(vm="box", execution="x2", code=None, signal=9, elapsed=0.1),
)


def told(capsys, these, **flags):
    emit = listener(**flags)
    for event in these:
        emit(event)
    return capsys.readouterr()


def test_progress_that_is_no_terminal_has_a_line_for_what_lasted(capsys):
    out, err = told(capsys, WORK)
    assert out == ""
    assert err == ("Building debian: 2.0 s\nFetching the kernel: failed\nwarning: careful (do so)\n")


def test_progress_that_is_no_terminal_says_once_what_goes_on_and_on(capsys, monkeypatch):
    emit = listener()
    emit(WORK[0])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5)
    for _ in range(3):
        emit(WORK[1])
    assert capsys.readouterr().err == "Building debian ...\n"
    emit(WORK[2])
    assert capsys.readouterr().err == "Building debian: 2.0 s\n"


def test_what_is_over_at_once_leaves_no_line(capsys):
    brief = (WORK[0], WORK[1], events.TaskEnded(task="image", ok=True, elapsed=0.2))
    assert told(capsys, brief) == ("", "")


def test_stages_are_shown_to_those_who_ask(capsys):
    assert told(capsys, STAGES) == ("", "")
    assert told(capsys, STAGES, verbose=True).err == (
        "accelerator tcg: asked for\n"
        "box: process 7\n"
        "box: agent      0.500 s\n"
        "guest's clock: start 0.250\n"
        "ran mkfs x (0.10 s)\n"
        "box: command ended with status 3 after 0.100 s\n"
        "box: command ended with signal 9 after 0.100 s\n"
    ).replace("guest's", "box: guest's")


def test_quiet_says_nothing(capsys):
    assert told(capsys, (*WORK, *STAGES), quiet=True, verbose=True) == ("", "")


def test_json_goes_to_stdout_and_nothing_to_stderr(capsys):
    out, err = told(capsys, (*WORK, *STAGES), json=True)
    assert len([json.loads(line) for line in out.splitlines()]) == len(WORK) + len(STAGES)
    assert err == ""


LIFE = (
    events.StateChanged(vm="dev", phase="starting", cause="start was asked for"),
    events.StageReached(vm="dev", stage="agent", elapsed=1.2),
    events.WaitingFor(vm="dev", what="network"),
    events.StateChanged(vm="dev", phase="running", cause="the guest is up"),
)


def test_a_machine_that_starts_is_shown_on_a_terminal_alone(capsys, monkeypatch):
    assert told(capsys, LIFE) == ("", "")
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", stream)
    emit = listener()
    for event in (*STAGES, *LIFE):
        emit(event)
    settle(emit, "dev: running")
    settle(emit)
    shown = stream.getvalue().replace("\r\x1b[K", "|")
    assert shown.split("|") == [
        "",
        "dev: starting ...",
        "dev: starting (1 s): agent is up",
        "dev: starting: waits for network ...",
        "dev: running\n",
    ]


def test_a_machine_that_starts_is_told_to_those_who_ask(capsys):
    stop = events.StopTried(vm="dev", how="agent", elapsed=0.5, ended=True)
    assert told(capsys, (*LIFE, stop), verbose=True).err == (
        "dev: agent      1.200 s\ndev: waits for network\ndev: agent ended it after 0.500 s\n"
    )


def test_progress_on_a_terminal_writes_one_line_over_and_leaves_the_outcome(monkeypatch):
    parent, child = pty.openpty()
    settings = termios.tcgetattr(child)
    settings[1] &= ~termios.OPOST
    termios.tcsetattr(child, termios.TCSANOW, settings)
    with os.fdopen(child, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        emit = listener()
        for event in WORK[:3]:
            emit(event)
        written = ""
        while not written.endswith("\n"):
            written += os.read(parent, 65_536).decode()
    os.close(parent)
    clear = "\r\x1b[K"
    assert re.fullmatch(
        re.escape(clear)
        + r"Building debian \.\.\."
        + re.escape(clear)
        + r"Building debian \(0 s\) unpacking"
        + re.escape(clear)
        + r"Building debian: 2\.0 s\n",
        written,
    ), written
