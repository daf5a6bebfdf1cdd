"""The events of all machines, in one file that several processes write."""

from __future__ import annotations

import subprocess
import sys

from atoll import events
from atoll.vm import eventlog
from atoll.vm.eventlog import EventLog, decode

CHANGED = events.StateChanged(vm="dev", phase="running", cause="the guest is up")

WRITER = """
import sys, pathlib
from atoll import events
from atoll.vm.eventlog import EventLog
log = EventLog(pathlib.Path(sys.argv[1]))
for number in range(200):
    log.append(events.StateChanged(vm=sys.argv[2], phase="x" * 300, cause=str(number)))
"""


def kept(log):
    return [decode(line) for line in log.lines()]


def test_what_happened_to_machines_is_kept_and_progress_is_not(tmp_path):
    log = EventLog(tmp_path)
    log.append(CHANGED)
    log.append(events.StageReached(vm="dev", stage="root", elapsed=1.0))
    log.append(events.StopTried(vm="dev", how="agent", elapsed=0.1, ended=True))
    assert [type(event) for event in kept(log)] == [events.StateChanged, events.StopTried]
    assert kept(log)[0] == CHANGED


def test_without_a_log_nothing_is_kept(tmp_path):
    assert kept(EventLog(tmp_path / "none")) == []
    EventLog(tmp_path / "none").append(CHANGED)  # no directory: machines go on all the same


def test_a_line_that_is_no_event_is_passed_over():
    assert decode(b'{"event":"from_the_future","at":1}') is None
    assert decode(b"{") is None
    assert decode(b"\xff") is None


def test_lines_of_several_writers_do_not_mix_and_the_log_is_bounded(tmp_path, monkeypatch):
    script = f"import atoll.vm.eventlog as e; e._LIMIT = 50_000\n{WRITER}"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name]) for name in ("one", "other")
    ]
    for writer in writers:
        assert writer.wait(30) == 0
    monkeypatch.setattr(eventlog, "_LIMIT", 50_000)
    log = EventLog(tmp_path)
    found = kept(log)
    assert None not in found
    for name in ("one", "other"):
        numbers = [int(event.cause) for event in found if event.vm == name]
        assert numbers == sorted(numbers)
    assert found[-1].cause == "199"
    assert log.path.stat().st_size < 60_000
