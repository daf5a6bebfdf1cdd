"""`atoll run` as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command import COMMAND
from guests import eventually
from processes import machines_running

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]


def read_until(stream, wanted: bytes, seconds: float = 60) -> bytes:
    """Read a pipe or terminal until ``wanted`` has come."""
    fd = stream if isinstance(stream, int) else stream.fileno()
    got = b""
    deadline = time.monotonic() + seconds
    while wanted not in got:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} did not come within {seconds} s; got {got!r}"
        piece = os.read(fd, 65536)
        assert piece, f"{wanted!r} did not come; got {got!r}"
        got += piece
    return got


def test_the_first_thing_a_user_does(atoll):
    done = atoll("run", "debian", "--", "sh", "-c", "uname -a; id")
    assert done.returncode == 0, done.stderr
    assert b"Linux sandbox-" in done.stdout
    assert b"uid=0(root) gid=0(root)" in done.stdout
    assert done.stderr == b"" or done.stderr.startswith(b"Preparing a template of debian:trixie")


def test_streams_are_apart_and_the_exit_code_is_the_commands(atoll):
    done = atoll("run", "debian", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"out\n", b"err\n")


def test_death_by_signal_is_128_plus_its_number(atoll):
    assert atoll("run", "debian", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_input_flows_to_the_command_and_ends(atoll):
    data = os.urandom(1_000_000)
    done = atoll("run", "debian", "sha256sum", input=data)
    import hashlib

    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_options_reach_the_command(atoll):
    script = 'echo "$A $B $PWD $(id -un) $(nproc) $(grep MemTotal /proc/meminfo)"'
    words = (
        "--env",
        "A=1",
        "-e",
        "B",
        "--workdir",
        "/usr/share",
        "--user",
        "nobody",
        "--cpus",
        "2",
        "-m",
        "768M",
    )
    done = atoll("run", *words, "debian", "--", "sh", "-c", script, env={"B": "two"})
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(rb"1 two /usr/share nobody 2 MemTotal: +(\d+) kB\n", done.stdout)
    assert found, done.stdout
    assert 600_000 < int(found[1]) < 786_432


def test_the_root_is_writable_and_complete(atoll):
    script = "set -e; echo x > /etc/probe; mkdir /opt/new; ls /dev/null /dev/pts /dev/shm /proc/1 >/dev/null"
    script += (
        "; test -w /tmp; mount | grep -q ' / '; cat /etc/os-release; modprobe -n virtio_net; dpkg -l | wc -l"
    )
    done = atoll("run", "debian", "--", "sh", "-c", script)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert b"Debian" in done.stdout


def test_a_command_that_runs_too_long_is_ended_with_status_124(atoll):
    began = time.monotonic()
    done = atoll("run", "--timeout", "1", "debian", "--", "sleep", "300")
    assert done.returncode == 124
    assert b"error[command.timeout]" in done.stderr
    assert time.monotonic() - began < 60


def test_an_unknown_command_is_127_and_one_that_cannot_run_126(atoll):
    done = atoll("run", "debian", "--", "no-such-thing")
    assert done.returncode == 127
    assert re.match(rb"error\[command\.exec\]: cannot run no-such-thing: .*\nhint: .*\n$", done.stderr), (
        done.stderr
    )
    assert atoll("run", "debian", "--", "/etc/passwd").returncode == 126


def test_verbose_shows_the_stages_with_times(atoll):
    done = atoll("run", "--verbose", "debian", "--", "true")
    for stage in (b"spawn", b"agent", b"root"):
        assert re.search(rb"sandbox-\w+: " + stage + rb" +\d+\.\d{3} s", done.stderr), done.stderr
    assert b"accelerator" in done.stderr


def test_json_is_one_object_a_line_with_events_output_and_end(atoll):
    done = atoll("run", "--json", "debian", "--", "sh", "-c", "echo hi; exit 3")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert done.returncode == 3
    assert kinds[0] == "accelerator_chosen"
    assert kinds.index("vm_spawned") < kinds.index("execution_started") < kinds.index("output_received")
    assert [event["text"] for event in events if event["event"] == "output_received"] == ["hi\n"]
    assert [event["code"] for event in events if event["event"] == "execution_ended"] == [3]


def test_a_terminal_is_passed_through_with_size_keys_and_control_c(environment):
    parent, child = pty.openpty()
    import fcntl
    import struct
    import sys
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 111, 0, 0))
    command = [str(Path(sys.executable).parent / "atoll"), "run", "debian"]
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    try:
        os.write(parent, b"stty size; tty\n")
        got = read_until(parent, b"33 111")
        got += read_until(parent, b"/dev/pts/") if b"/dev/pts/" not in got else b""
        os.write(parent, b"sh -c 'echo no$((1))w; exec sleep 1000'\n")
        read_until(parent, b"no1w")
        os.write(parent, b"\x03")
        os.write(parent, b"echo st$((1))ll; exit 5\n")
        read_until(parent, b"st1ll")
        assert process.wait(timeout=60) == 5
    finally:
        process.kill()
        process.wait()
        os.close(parent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_to_the_command(spawn_atoll, number):
    name = signal.Signals(number).name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.1; done"
    child = spawn_atoll(
        "run", "debian", "--", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    read_until(child.stdout, b"ready\n")
    child.send_signal(number)
    assert child.stdout.read() == f"got {name}\n".encode()
    assert child.wait(timeout=60) == 9


def test_ignored_signals_stay_ignored(spawn_atoll):
    script = "echo ready; sleep 1; exit 7"
    words = ("run", "debian", "--", "sh", "-c", script)
    child = spawn_atoll(
        *words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    read_until(child.stdout, b"ready\n")
    child.send_signal(signal.SIGHUP)
    assert child.wait(timeout=60) == 7


def test_signals_that_ask_for_a_report_never_end_the_vm(spawn_atoll):
    script = "trap 'echo report' USR1; echo ready; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; done; exit 4"
    words = ("run", "debian", "--", "sh", "-c", script)
    child = spawn_atoll(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    read_until(child.stdout, b"ready\n")
    for _ in range(4):
        child.send_signal(signal.SIGUSR1)
        read_until(child.stdout, b"report\n")
    assert child.wait(timeout=60) == 4


def test_closed_standard_streams_are_not_taken_for_something_else(environment, tmp_path):
    command = f"{COMMAND} run debian -- sh -c 'echo hello; echo oops >&2; exit 6'"
    for closed in ("<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{command} {closed}"], env=environment, timeout=60, capture_output=True, check=False
        )
        assert done.returncode == 6, (closed, done)
        assert b"Traceback" not in done.stderr


def test_a_terminal_for_the_command_needs_none_here(atoll):
    done = atoll("run", "-t", "debian", "--", "sh", "-c", "tty; cat", input=b"hi\n")
    assert done.returncode == 0, done.stderr
    assert b"/dev/pts/" in done.stdout
    assert b"hi" in done.stdout


def test_a_slow_reader_of_events_does_not_hold_up_the_timeout(spawn_atoll):
    before = machines_running()
    child = spawn_atoll(
        "run",
        "--json",
        "--timeout",
        "2",
        "debian",
        "--",
        "yes",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    read_until(child.stdout, b"output_received")
    eventually(lambda: machines_running() <= before)
    rest = child.stdout.read()
    assert child.wait(timeout=60) == 124
    assert json.loads(rest.splitlines()[-1])["event"] == "vm_exited"


def test_bytes_that_are_no_text_pass_through(atoll):
    done = atoll(
        "run", "-e", b"X=\xff", "debian", "--", "sh", "-c", 'printf "%s|%s" "$X" "$1"', "sh", b"\xfe"
    )
    assert (done.returncode, done.stdout) == (0, b"\xff|\xfe"), done.stderr


def test_control_c_while_the_vm_boots_leaves_nothing_behind(spawn_atoll):
    before = machines_running()
    child = spawn_atoll(
        "run", "debian", "--", "sleep", "100", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    eventually(lambda: machines_running() - before)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=60) == 130
    assert b"Traceback" not in child.stderr.read()


def pending(pid):
    """The signals that a process has not taken yet (proc(5))."""
    return int(re.search(r"^ShdPnd:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1], 16)


def test_three_interrupts_end_a_command_that_ignores_them(spawn_atoll):
    script = "trap '' INT; echo ready; while :; do sleep 0.1; done"
    child = spawn_atoll(
        "run", "debian", "--", "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    read_until(child.stdout, b"ready\n")
    for _ in range(3):
        child.send_signal(signal.SIGINT)
        eventually(lambda: not pending(child.pid) & 1 << signal.SIGINT - 1)  # else two count as one
    assert child.wait(timeout=60) == 130


@pytest.mark.parametrize("after", [0.2, 0.6, "running"])
def test_a_killed_command_line_takes_its_vm_with_it(spawn_atoll, after):
    child = spawn_atoll(
        "run",
        "debian",
        "--",
        "sh",
        "-c",
        "echo ready; sleep 1000",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    if after == "running":
        read_until(child.stdout, b"ready\n")
    else:
        time.sleep(after)
    child.kill()
    child.wait()


def test_a_reader_that_goes_away_ends_the_run(spawn_atoll):
    child = spawn_atoll("run", "debian", "--", "yes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert child.stdout.read(10)
    child.stdout.close()
    assert child.wait(timeout=60) == 141


def test_slow_readers_get_everything(spawn_atoll):
    child = spawn_atoll(
        "run", "debian", "--", "seq", "1", "200000", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    read_until(child.stdout, b"1\n2\n")
    time.sleep(2)
    rest = child.stdout.read()
    assert rest.endswith(b"199999\n200000\n")
    assert child.wait(timeout=60) == 0


def test_many_runs_in_a_row_all_succeed(atoll):
    for number in range(int(os.environ.get("RUNS", "8"))):
        done = atoll("run", "debian", "--", "echo", str(number), timeout=60)
        assert (done.returncode, done.stdout) == (0, b"%d\n" % number), done.stderr


def test_eight_runs_at_once_all_succeed(atoll):
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(atoll, "run", "debian", "--", "echo", str(n)) for n in range(8)]
        outcomes = [run.result() for run in runs]
    assert [(o.returncode, o.stdout) for o in outcomes] == [(0, b"%d\n" % n) for n in range(8)], outcomes
