"""Named machines as a user meets them, with the installed command.

One machine with the agent as its init is started for all tests that only use it; those that need one at rest
share another, which was started once.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import time

import pytest
from builds import take_image
from command import COMMAND, assert_error
from guests import eventually
from machines import hosted_spec, kill_all_at, processes_at, recorded
from networks import brief_network

import atoll
from atoll.cli.main import main
from atoll.config import load
from atoll.machine import registry
from atoll.paths import Paths
from atoll.vm.bootplan import Probe

pytestmark = pytest.mark.vm

#: Seconds for what takes a moment on a host that does nothing else.
PATIENCE = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory, paths, built):
    """A data directory of these tests alone, with images; nothing is left running."""
    place = tmp_path_factory.mktemp("machines") / "data"
    for image in ("debian", "debian-machine"):
        take_image(paths, Paths(data=place, cache=paths.cache), image)
    brief_network(Paths(data=place, cache=paths.cache).network("default"))
    yield place
    deadline = time.monotonic() + 30
    while (left := processes_at(place)) and time.monotonic() < deadline:  # the last supervisors are leaving
        time.sleep(0.05)
    kill_all_at(place)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def settings(data, paths):
    """What the command finds in its environment."""
    home = data.parent / "home"
    home.mkdir()
    return {
        "ATOLL_DATA_DIR": str(data),
        "ATOLL_CACHE_DIR": str(paths.cache),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
    }


@pytest.fixture(scope="module")
def cli(atoll, settings):
    """Run the command there."""

    def run(*words, cold=False, **options):
        return atoll(*words, env={**settings, "ATOLL_COLD": "yes" if cold else "no"}, **options)

    return run


@pytest.fixture(scope="module")
def succeed(cli):
    """Run the command, which must succeed; what it printed."""

    def run(*words, **options):
        done = cli(*words, **options)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.decode()

    return run


@pytest.fixture
def spawn(settings, environment):
    """Start the command and leave it running; it is killed after the test."""
    children = []

    def start(*words, **options):
        child = subprocess.Popen([COMMAND, *words], env={**environment, **settings}, **options)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def port():
    return free_port()


@pytest.fixture(scope="module")
def dev(succeed, port):
    """A machine that runs."""
    words = (
        "--init",
        "minimal",
        "--user",
        "alice",
        "-e",
        "GREETING=hello there",
        "--ready-probe",
        "test -w /",
    )
    succeed("create", "dev", *words, "-p", f"{port}:7777", "--start")
    yield "dev"
    succeed("rm", "--force", "dev")


@pytest.fixture(scope="module")
def rested(succeed):
    """A machine that ran, has a file that tells it from others, and is at rest."""
    succeed("create", "rested", "--init", "minimal", "--no-network", "--start")
    succeed("exec", "-u", "root", "rested", "--", "sh", "-c", "echo kept > /root/mark; sync")
    succeed("stop", "rested")
    yield "rested"
    succeed("rm", "rested")


def state_of(succeed, name):
    return json.loads(succeed("inspect", name))["state"]


def images(data):
    """The images that are there; what begins with a dot are locks."""
    return sorted(name for name in os.listdir(data / "images") if not name.startswith("."))


def entries(data):
    """What is in the registry, also what is not meant to be seen."""
    return sorted(entry.name for entry in (data / "machines").iterdir())


def events_of(succeed, name):
    return [json.loads(line) for line in succeed("events", "--json", name).splitlines()]


def read_until(fd, wanted, seconds=PATIENCE):
    got = b""
    deadline = time.monotonic() + seconds
    while wanted not in got:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} did not come; got {got!r}"
        piece = os.read(fd, 65_536)
        assert piece, f"{wanted!r} did not come; got {got!r}"
        got += piece
    return got


# Making, listing and removing.


def test_a_machine_is_made_listed_and_removed(succeed, cli, data):
    assert succeed("create", "one", "--init", "minimal", "--cpus", "2", "-m", "300M") == (
        "one: created; `atoll start one` starts it\n"
    )
    line = next(line for line in succeed("ls").splitlines() if line.startswith("one"))
    assert re.fullmatch(r"one +created +\d+ s +2 +300\.0 MiB +debian:\w+", line), line
    assert "one" in succeed("ls", "-q").split()
    place = data / "machines" / "one"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert (place / "data.img").stat().st_blocks * 512 < 8 << 20  # sparse
    succeed("rm", "one")
    assert "one" not in succeed("ls", "-q").split()
    assert "one" not in entries(data)
    assert_error(cli("rm", "one"), "store.missing")


def test_a_name_that_is_taken_is_refused_and_nothing_is_left(cli, dev, data):
    before, state = entries(data), (data / "machines" / dev / "machine.json").read_bytes()
    done = cli("create", dev, "--init", "minimal")
    assert_error(done, "store.already_exists", dev)
    assert done.returncode == 1
    assert entries(data) == before
    assert (data / "machines" / dev / "machine.json").read_bytes() == state


def test_of_many_that_want_one_name_one_gets_it(spawn, succeed, data):
    children = [
        spawn("create", "wanted", "--init", "minimal", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    ends = [child.communicate(timeout=PATIENCE) for child in children]
    assert sorted(child.returncode for child in children) == [0, 1, 1, 1], ends
    assert sum(b"error[store.already_exists]" in err for _, err in ends) == 3
    succeed("rm", "wanted")
    assert not [name for name in entries(data) if "wanted" in name]


BAD = [
    (("create", "Dev"), "usage.name"),
    (("create", "-x"), "usage.arguments"),
    (("create", "bad", "--init", "upstart"), "usage.arguments"),
    (("create", "bad", "--image", "localhost:1/nonesuch"), "registry.unreachable"),
    (("create", "bad", "--rootfs", "/nonesuch.tar"), "image.missing"),
    (("create", "bad", "--init", "minimal", "--cpus", "0"), "config.value"),
    (("create", "bad", "--init", "minimal", "--memory", "lots"), "config.value"),
    (("create", "bad", "--init", "minimal", "--disk", "huge"), "usage.disk"),
    (("create", "bad", "--init", "minimal", "--mount", "here"), "usage.mount"),
    (("create", "bad", "--init", "minimal", "--mount", "/nonesuch:/x"), "usage.mount"),
    (("create", "bad", "--init", "minimal", "-p", "80:"), "usage.port"),
    (("create", "bad", "--init", "minimal", "-p", "80-81:80"), "usage.port"),
    (("create", "bad", "--init", "minimal", "--reverse", "53"), "usage.port"),
    (("create", "bad", "--init", "minimal", "--auto-ports-allow", "all"), "usage.port"),
    (("create", "bad", "--init", "minimal", "-p", "0:80", "--network=slirp"), "usage.port"),
    (("create", "bad", "--init", "minimal", "-p", "8080:80", "--no-network"), "usage.port"),
    (("create", "bad", "--init", "minimal", "-e", "=x"), "usage.env"),
    (("create", "bad", "--init", "minimal", "--user", "no one"), "usage.user"),
    (("create", "bad", "--init", "minimal", "--workdir", "here"), "usage.workdir"),
    (("create", "bad", "--init", "minimal", "--ready-probe", "0"), "usage.probe"),
    (("create", "bad", "--init", "minimal", "--kernel", "/nonesuch"), "usage.kernel"),
    (("create", "bad", "--init", "systemd", "--image", "debian"), "image.init"),
    *[
        ((word, "nonesuch"), "store.missing")
        for word in ("start", "stop", "restart", "pause", "resume", "rm")
    ],
    *[
        ((word, "nonesuch"), "store.missing")
        for word in ("wait", "inspect", "shell", "logs", "console", "events")
    ],
    *[((word, "nonesuch"), "store.missing") for word in ("stats", "edit", "memory", "ssh", "supervise")],
    (("exec", "nonesuch", "true"), "store.missing"),
    (("port", "ls", "nonesuch"), "store.missing"),
    (("port", "add", "nonesuch", "8080:80"), "store.missing"),
    (("port", "rm", "nonesuch", "8080"), "store.missing"),
    (("port", "add", "nonesuch"), "usage.port"),
    (("port", "add", "nonesuch", "8080:80:80"), "usage.port"),
    (("port", "rm", "nonesuch", "--reverse", "x"), "usage.port"),
    (("cp", "/etc/hostname", "nonesuch:/"), "store.missing"),
    (("rename", "nonesuch", "other"), "store.missing"),
    (("clone", "nonesuch", "other"), "store.missing"),
    (("export", "nonesuch", "file"), "store.missing"),
    (("autostart", "enable", "nonesuch"), "store.missing"),
    (("autostart", "disable", "nonesuch"), "usage.autostart"),
    (("import", "/nonesuch"), "usage.archive"),
    (("import", "/etc/hostname", "bad"), "usage.archive"),
    (("cp", "a", "b"), "usage.cp"),
    (("cp", "a:x", "b:y"), "usage.cp"),
    (("start",), "usage.arguments"),
    (("strat", "dev"), "usage.command"),
    (("autostart", "enabel", "dev"), "usage.command"),
    (("stop", "--timeout", "soon", "nonesuch"), "usage.timeout"),
    (("wait", "--for", "done", "nonesuch"), "usage.arguments"),
    (("top", "--interval", "0"), "usage.interval"),
    (("resize", "nonesuch"), "usage.resize"),
    (("logs", "-n", "many", "nonesuch"), "usage.arguments"),
]


@pytest.fixture
def refused(settings, capsys, monkeypatch):
    """Run the command line in this process, which is quicker by far, and have it fail."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(*words):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        assert out == ""
        return subprocess.CompletedProcess(words, status, b"", err.encode())

    return run


def ids(value):
    return value if isinstance(value, str) else " ".join(value)


@pytest.mark.parametrize(("words", "code"), BAD, ids=ids)
def test_a_wrong_command_is_one_line_with_a_code_and_a_hint_and_leaves_nothing(refused, words, code, data):
    (data / "machines").mkdir(exist_ok=True)
    before = entries(data), images(data)
    done = refused(*words)
    assert_error(done, code)
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert done.returncode == (2 if code.startswith(("usage", "config")) else 1)
    assert (entries(data), images(data)) == before


# Commands in it.


def test_a_command_has_its_streams_status_user_and_variables(succeed, cli, dev):
    done = cli("exec", dev, "--", "sh", "-c", 'echo "$GREETING $PWD $(id -un)"; echo err >&2; exit 42')
    assert (done.returncode, done.stdout, done.stderr) == (42, b"hello there /home/alice alice\n", b"err\n")
    words = ("-u", "root", "-w", "/usr", "-e", "GREETING=x")
    assert succeed("exec", *words, dev, "sh", "-c", 'echo "$GREETING $PWD $(id -un)"') == "x /usr root\n"
    assert succeed("exec", dev, "hostname") == "dev\n"
    assert cli("exec", dev, "--", "tr", "a-z", "A-Z", input=b"in\n").stdout == b"IN\n"


def test_a_command_that_ends_otherwise_has_the_status_of_shells(cli, dev):
    assert cli("exec", dev, "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL
    missing = cli("exec", dev, "no-such-thing")
    assert_error(missing, "command.exec")
    assert missing.returncode == 127
    late = cli("exec", "--timeout", "0.5", dev, "sleep", "300")
    assert_error(late, "command.timeout")
    assert late.returncode == 124
    lost = cli("exec", "-w", "/nonesuch", dev, "true")
    assert_error(lost, "command.cwd")


def test_a_signal_is_passed_on(spawn, dev):
    script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    child = spawn("exec", dev, "--", "sh", "-c", script, stdout=subprocess.PIPE)
    read_until(child.stdout.fileno(), b"ready\n")
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (9, b"got it\n")


def test_a_shell_has_a_terminal(spawn, dev):
    parent, child = pty.openpty()
    process = spawn("shell", dev, stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.write(parent, b"tty && echo $((6*7)).\n")
    shown = read_until(parent, b"42.")
    assert b"/dev/pts/" in shown
    os.write(parent, b"exit 5\n")
    assert process.wait(PATIENCE) == 5
    os.close(parent)


def test_events_and_output_of_a_command_are_json_lines(succeed, dev):
    lines = [json.loads(line) for line in succeed("exec", "--json", dev, "--", "echo", "hi").splitlines()]
    assert {"execution_started", "output_received", "execution_ended"} <= {line["event"] for line in lines}
    assert "".join(line["text"] for line in lines if line["event"] == "output_received") == "hi\n"


# Files.


def test_trees_go_in_and_out_whole(succeed, cli, dev, tmp_path):
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "sub" / "link").symlink_to("../run")
    with (source / "sub" / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.write(b"x")
    done = cli("cp", str(source), f"{dev}:tree")
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch(rb"\d+ copied, .* in .* s\n", done.stdout)
    listed = succeed("exec", dev, "--", "stat", "-c", "%U %a %F", "tree/run", "tree/sub/link")
    assert listed == "alice 755 regular file\nalice 777 symbolic link\n"
    copied = json.loads(succeed("cp", "--json", f"{dev}:tree", str(tmp_path / "back")))
    assert copied["entries"] >= 5
    back = tmp_path / "back"
    assert os.readlink(back / "sub" / "link") == "../run"
    assert stat.S_IMODE((back / "run").stat().st_mode) == 0o755
    assert (back / "sub" / "sparse").read_bytes() == (source / "sub" / "sparse").read_bytes()
    assert (back / "sub" / "sparse").stat().st_blocks * 512 < 1 << 20
    assert succeed("cp", "-q", f"{dev}:/etc/hostname", str(tmp_path)) == ""
    assert (tmp_path / "hostname").read_text() == "dev\n"


def test_what_cannot_be_copied_is_said(cli, dev, tmp_path):
    assert_error(cli("cp", str(tmp_path / "nonesuch"), f"{dev}:/tmp"), "store.missing")
    assert_error(cli("cp", f"{dev}:/nonesuch", str(tmp_path)), "guest.os")
    assert_error(cli("cp", f"{dev}:/etc/hostname", str(tmp_path / "no" / "where" / "x")), "store.missing")
    assert not list(tmp_path.iterdir())


# Looking at it.


def test_logs_are_what_was_written(succeed, dev):
    assert "atoll: ready" in succeed("logs", "--source", "serial", dev)
    succeed("exec", "-u", "root", dev, "--", "sh", "-c", "printf 'one\\ntwo\\nthree\\n' > /dev/hvc0")
    deadline = time.monotonic() + PATIENCE
    while "three" not in succeed("logs", dev):
        assert time.monotonic() < deadline
    assert succeed("logs", "-n", "2", dev).split() == ["two", "three"]


def test_a_log_is_followed(spawn, succeed, dev):
    def write(word):
        succeed("exec", "-u", "root", dev, "--", "sh", "-c", f"echo {word} > /dev/hvc0")

    write("sooner")
    child = spawn("logs", "-f", "-n", "1", dev, stdout=subprocess.PIPE)
    read_until(child.stdout.fileno(), b"sooner")
    write("later")
    read_until(child.stdout.fileno(), b"later")
    child.send_signal(signal.SIGINT)
    assert child.wait(PATIENCE) == 130


def test_the_console_shows_what_was_written_and_takes_what_is_typed(spawn, dev):
    # An empty line comes first: it makes a login program say who it is.
    script = "exec 3<>/dev/hvc0; echo begin >&3; while [ -z $line ]; do read line <&3; done; echo got $line"
    reader = spawn("exec", "-u", "root", dev, "--", "bash", "-c", script, stdout=subprocess.PIPE)
    parent, child = pty.openpty()
    console = spawn("console", dev, stdin=child, stdout=child, stderr=child)
    os.close(child)
    read_until(parent, b"begin")
    os.write(parent, b"typed\r")
    assert reader.communicate(timeout=PATIENCE)[0] == b"got typed\n"
    os.write(parent, b"\x1d")
    assert console.wait(PATIENCE) == 0
    os.close(parent)


def test_events_are_kept(succeed, dev):
    kept = events_of(succeed, dev)
    assert [event["phase"] for event in kept if event["event"] == "state_changed"][:2] == [
        "starting",
        "running",
    ]
    assert {event["vm"] for event in kept} == {dev}
    assert re.search(
        r"^\d{4}-\d\d-\d\d [\d:]+  dev +state_changed +phase=running", succeed("events"), re.MULTILINE
    )


def test_events_are_followed(spawn, succeed, dev):
    child = spawn("events", "-f", "--json", dev, stdout=subprocess.PIPE)
    read_until(child.stdout.fileno(), b'"running"')
    succeed("pause", dev)
    succeed("resume", dev)
    read_until(child.stdout.fileno(), b'"paused"')


def test_what_it_uses_is_counted(succeed, dev):
    stats = json.loads(succeed("stats", "--json", dev))
    assert stats["host_memory"] > stats["guest"]["memory"]["total"] // 20
    assert stats["guest"]["processes"] > 0
    table = succeed("stats", dev)
    assert "host memory" in table
    assert "guest load" in table
    assert re.search(r"^dev +\d+%", succeed("top", "--count", "2", "--interval", "0.1", dev), re.MULTILINE)


def test_a_field_is_shown_alone(succeed, cli, dev):
    assert succeed("inspect", dev, "--format", "state.phase") == "running\n"
    whole = json.loads(succeed("inspect", dev))
    assert whole["mac"].startswith("02:")
    assert whole["spec"]["user"] == "alice"
    assert_error(cli("inspect", dev, "--format", "state.nonesuch"), "usage.field", "phase")


@pytest.mark.parametrize(
    "words", [("ls",), ("inspect", "dev"), ("stats", "dev"), ("autostart", "ls")], ids=" ".join
)
def test_a_document_for_programs_parses(succeed, dev, words):
    assert json.loads(succeed(*words, "--json")) is not None


def test_a_port_leads_into_the_machine(spawn, cli, dev, port):
    server = (
        "use IO::Socket; my $s = IO::Socket::INET->new(LocalPort => 7777, Listen => 1) or die; "
        "print qq(ready\\n); STDOUT->flush(); my $c = $s->accept(); print $c qq(from the guest\\n);"
    )
    child = spawn("exec", dev, "--", "perl", "-e", server, stdout=subprocess.PIPE)
    read_until(child.stdout.fileno(), b"ready")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        assert read_until(sock.fileno(), b"\n") == b"from the guest\n"


def test_ports_come_and_go_while_the_machine_runs(cli, succeed, dev, port):
    (added,) = json.loads(succeed("port", "add", dev, "0:7778", "--json"))
    assert (added["state"], added["guest_port"]) == ("open", 7778)
    assert f"127.0.0.1:{added['port']} " in succeed("port", "ls")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = f"{taken.getsockname()[1]}:80", "0:7779"
        assert_error(cli("port", "add", dev, *words), "network.port", f"(process {os.getpid()})")
    assert_error(cli("port", "add", dev, f"{port}:1"), "usage.port")
    assert [one["guest_port"] for one in json.loads(succeed("port", "ls", dev, "--json"))] == [7777, 7778]
    assert "host.atoll.internal:80 -> 127.0.0.1:8080" in succeed("port", "add", dev, "--reverse", "80:8080")
    left = json.loads(succeed("port", "rm", "--json", dev, str(added["port"]), "--reverse", "80"))
    assert [one["guest_port"] for one in left] == [7777]
    assert_error(cli("port", "rm", dev, "7778"), "usage.port", f"{port}:7777")
    assert state_of(succeed, dev)["phase"] == "running"


def test_a_port_that_is_taken_is_an_error(cli, succeed, dev, port):
    succeed("create", "second", "--init", "minimal", "-p", f"{port}:80")
    done = cli("start", "second")
    assert_error(done, "network.port", str(port))
    assert state_of(succeed, "second")["phase"] == "created"
    succeed("rm", "second")


# Its life.


def test_a_paused_machine_stands_still_and_has_the_right_time_afterwards(succeed, cli, dev):
    succeed("pause", dev)
    try:
        assert state_of(succeed, dev)["phase"] == "paused"
        assert_error(cli("exec", dev, "true"), "state.paused", "atoll resume")
        assert_error(cli("pause", dev), "state.not_running")
        assert json.loads(succeed("stats", "--json", dev))["guest"] is None
        time.sleep(1.5)
    finally:
        succeed("resume", dev)
    before = time.time()
    shown = float(succeed("exec", dev, "date", "+%s.%N"))
    assert before - 0.2 < shown < time.time() + 0.2
    assert_error(cli("resume", dev), "state.not_paused")


def test_what_runs_is_not_removed_moved_or_copied(cli, dev, tmp_path, data):
    before = entries(data)
    for words in (
        ("rm", dev),
        ("rename", dev, "x"),
        ("clone", dev, "x"),
        ("export", dev, str(tmp_path / "x")),
    ):
        assert_error(cli(*words), "state.active", "atoll stop")
    assert entries(data) == before
    assert not list(tmp_path.iterdir())


def test_a_start_of_what_runs_and_a_stop_of_what_does_not_change_nothing(succeed, dev, rested):
    since = state_of(succeed, dev)["since"]
    succeed("start", dev)
    assert state_of(succeed, dev)["since"] == since
    succeed("stop", rested)
    assert json.loads(succeed("stop", "--json", rested)) == [
        {"name": "rested", "ok": True, "phase": "stopped"}
    ]


def test_all_that_are_named_are_tried(cli, rested):
    done = cli("stop", "--json", "nonesuch", rested)
    outcomes = json.loads(done.stdout)
    assert [outcome["ok"] for outcome in outcomes] == [False, True]
    assert outcomes[0]["code"] == "store.missing"
    assert_error(done, "store.missing")


def test_a_wait_ends_with_the_state_or_the_time(spawn, succeed, cli, dev, rested):
    assert succeed("wait", "--for", "running", dev) == "running\n"
    assert succeed("wait", rested) == "stopped\n"
    late = cli("wait", "--timeout", "0.3", dev)
    assert late.returncode == 124
    assert_error(late, "state.timeout")
    child = spawn("wait", "--for", "paused", dev, stdout=subprocess.PIPE)
    time.sleep(0.3)
    succeed("pause", dev)
    assert child.communicate(timeout=PATIENCE)[0] == b"paused\n"
    succeed("resume", dev)


def test_an_edit_takes_effect_at_the_next_start(succeed, cli, data):
    succeed("create", "edited", "--init", "minimal")
    changes = (
        "cpus=2",
        "memory=300M",
        "env=A='1, 2' B=3",
        "workdir=/usr",
        "ports=127.0.0.2:9999:1/udp",
        "user=bob",
    )
    succeed("edit", "edited", *changes, "ready_probe=test -d /usr", "restart=always", "boot_timeout=90")
    shown = succeed("edit", "edited")
    for words in (
        "cpus +2 ",
        "memory +300M",
        "ports +127.0.0.2:9999:1/udp",
        "restart +always",
        "network +own",
    ):
        assert re.search(f"^{words}", shown, re.MULTILINE), shown
    for change in ("nonesuch=1", "cpus", "cpus=none", "env=A", "workdir=here", "network=May be", "restart=x"):
        before = (data / "machines" / "edited" / "machine.json").read_bytes()
        done = cli("edit", "edited", change)
        assert done.returncode == 2, change
        assert b"hint: " in done.stderr
        assert (data / "machines" / "edited" / "machine.json").read_bytes() == before
    succeed("edit", "edited", "ports=", "ready_probe=", "restart=no")
    succeed("start", "edited", cold=True)  # nothing else has its size
    told = succeed("exec", "edited", "--", "sh", "-c", 'echo "$(nproc)|$A|$B|$PWD|$(id -un)"')
    assert told == "2|1, 2|3|/usr|bob\n"
    assert "takes effect" in succeed("edit", "edited", "cpus=1")
    succeed("rm", "-f", "edited")


def test_another_name_keeps_the_machine(succeed, cli, rested, data):
    before = json.loads(succeed("inspect", rested))
    assert_error(cli("rename", rested, "Bad"), "usage.name")
    succeed("rename", rested, "moved")
    after = json.loads(succeed("inspect", "moved"))
    assert (after["spec"], after["mac"]) == (before["spec"], before["mac"])
    assert_error(cli("inspect", rested), "store.missing")
    succeed("rename", "moved", rested)
    assert not [name for name in entries(data) if "moved" in name]


def test_a_clone_has_the_disk_and_addresses_of_its_own(succeed, cli, rested):
    succeed("clone", rested, "twin")
    assert_error(cli("clone", rested, "twin"), "store.already_exists")
    one, other = (json.loads(succeed("inspect", name)) for name in (rested, "twin"))
    assert one["mac"] != other["mac"]
    succeed("start", "twin")
    assert succeed("exec", "twin", "cat", "/root/mark", "/etc/hostname") == "kept\ntwin\n"
    assert_error(cli("rm", "twin"), "state.active")
    succeed("rm", "--force", "twin")
    assert_error(cli("inspect", "twin"), "store.missing")


def test_a_machine_goes_through_a_file(succeed, cli, rested, tmp_path):
    file = tmp_path / "rested.atoll"
    succeed("export", rested, str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert_error(cli("export", rested, str(file)), "store.already_exists")
    assert_error(cli("import", str(file)), "store.already_exists")
    assert succeed("import", str(file), "imported") == "imported\n"
    succeed("start", "imported")
    assert succeed("exec", "imported", "cat", "/root/mark") == "kept\n"
    succeed("rm", "--force", "imported")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_refused_and_nothing_is_left(succeed, cli, rested, tmp_path, data, damage):
    file = tmp_path / "x.atoll"
    succeed("export", rested, str(file))
    before = entries(data)
    with file.open("r+b") as stream:
        if damage == "cut":
            stream.truncate(file.stat().st_size // 2)
        elif damage == "empty":
            stream.truncate(0)
        else:
            stream.seek(file.stat().st_size // 2)
            byte = stream.read(1)
            stream.seek(-1, os.SEEK_CUR)
            stream.write(bytes([byte[0] ^ 1]))
    assert_error(cli("import", str(file), "broken"), "usage.archive")
    assert entries(data) == before


@pytest.fixture
def places(data, paths):
    return Paths(data=data, cache=paths.cache)


@pytest.fixture
def hosted(places):
    """A machine whose guest is the agent alone, as a process of the host: it starts in no time."""

    def make(name, **wishes):
        registry.add(places, name, hosted_spec(**wishes), lambda place: place.data.touch())
        return name

    return make


def test_a_start_that_fails_says_what_it_waited_for_and_goes_back(succeed, cli, hosted):
    probe = Probe(command=("/bin/sh", "-c", "test -e /nonesuch"))
    name = hosted("unready", probe=probe, boot_timeout=3.0)
    done = cli("start", name)
    assert_error(done, "boot.probe", "test -e /nonesuch")
    state = state_of(succeed, name)
    assert (state["phase"], state["failure"]["code"]) == ("created", "boot.probe")
    assert "still waits for its probe" in succeed("ls")
    succeed("rm", name)


def test_a_restart_is_a_stop_and_a_start(succeed, hosted):
    name = hosted("again")
    succeed("start", name)
    first = state_of(succeed, name)
    said = json.loads(succeed("restart", "--json", name))
    assert said == [{"name": name, "ok": True, "phase": "running"}]
    second = state_of(succeed, name)
    assert second["vm"]["pid"] != first["vm"]["pid"]
    phases = [event["phase"] for event in events_of(succeed, name) if event["event"] == "state_changed"]
    assert phases == ["starting", "running", "stopping", "stopped", "starting", "running"]
    succeed("rm", "-f", name)


def test_a_machine_is_looked_after_in_the_foreground(spawn, succeed, cli, rested):
    child = spawn("supervise", rested, stderr=subprocess.PIPE)
    assert succeed("wait", "--for", "running", "--timeout", "100", rested) == "running\n"
    assert_error(cli("supervise", rested), "usage.supervised")
    assert succeed("exec", rested, "cat", "/root/mark") == "kept\n"
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0, said
    assert b"rested: running" in said
    assert state_of(succeed, rested)["phase"] == "stopped"


def test_a_killed_command_line_leaves_the_start_to_its_supervisor(spawn, succeed, rested, places):
    place = places.machine(rested)
    child = spawn("start", rested)
    eventually(lambda: recorded(place).phase in {"starting", "running"})
    child.kill()
    assert succeed("wait", "--for", "running", "--timeout", "100", rested) == "running\n"
    succeed("stop", "--force", rested)
    assert state_of(succeed, rested)["phase"] == "stopped"


# SSH.


def test_ssh_without_a_server_in_the_image_is_said(cli, dev):
    if shutil.which("ssh") is None:
        pytest.skip("there is no ssh here")
    done = cli("ssh", dev, "true")
    assert done.returncode == 255
    assert b"the image has no sshd; install openssh-server in the machine" in done.stderr


def test_ssh_to_a_machine_at_rest_is_refused_before_ssh_runs(cli, rested):
    assert_error(cli("ssh", rested), "state.not_running", "atoll start")


def test_the_block_for_ssh_is_printed_or_installed_once(succeed, settings, data):
    block = succeed("ssh-config")
    assert block.startswith("Host *.atoll\n")
    assert f'IdentityFile "{data}/ssh/%n"' in block
    for _ in range(2):
        succeed("ssh-config", "--install")
    config = os.path.join(settings["HOME"], ".ssh", "config")
    with open(config) as file:
        assert file.read() == f'Include "{data}/ssh/config"\n'
    assert stat.S_IMODE(os.stat(config).st_mode) == 0o600


def test_plain_ssh_reaches_a_machine_with_systemd(succeed, cli, environment, settings, tmp_path):
    if shutil.which("ssh") is None:
        pytest.skip("there is no ssh here")
    succeed("create", "full", "--start")
    try:
        assert succeed("ssh", "full", "hostname") == "full\n"
        config = tmp_path / "config"
        config.write_text(succeed("ssh-config"))
        words = ["ssh", "-F", str(config), "root@full.atoll", "cat; exit 7"]
        done = subprocess.run(
            words,
            input=b"through",
            capture_output=True,
            env={**environment, **settings},
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (7, b"through"), done.stderr
    finally:
        succeed("rm", "-f", "full")


# Snapshots and copies.


def test_a_machine_is_kept_and_goes_back(succeed, dev):
    root = ("exec", "-u", "root", dev, "--", "sh", "-c")
    succeed(*root, "echo then > /dev/shm/when")
    words = ("--name", "then", "--description", "before it", "--label", "why=test", "--json")
    made = json.loads(succeed("snapshot", "create", dev, *words))
    assert (made["state"], made["name"], made["labels"], made["ram"]) == (
        "ready",
        "then",
        {"why": "test"},
        True,
    )
    assert json.loads(succeed("snapshot", "inspect", "then")) == made
    succeed(*root, "echo now > /dev/shm/when")
    text = succeed("snapshot", "create", dev, "-n", "now", "--disk-only")
    identity, name = text.split()
    assert name == "now"
    lines = succeed("snapshot", "ls", dev).splitlines()
    assert [line.split()[0] for line in lines] == ["SNAPSHOT", "then", "└"]
    assert [one["id"] for one in json.loads(succeed("snapshot", "ls", "--json"))] == [made["id"], identity]
    assert succeed("snapshot", "restore", dev, "then") == ""
    assert succeed(*root, "cat /dev/shm/when") == "then\n"
    assert [row.split()[2] for row in succeed("snapshot", "verify").splitlines()[1:]] == ["good", "good"]
    assert json.loads(succeed("snapshot", "verify", "now", "--json")) == [
        {"id": identity, "ok": True, "error": ""}
    ]
    succeed("snapshot", "rm", identity[:5])
    assert succeed("snapshot", "prune", dev, "--older-than", "1d") == ""
    assert succeed("snapshot", "prune", "--keep", "0") == f"{made['id']} {dev} then\n"
    assert json.loads(succeed("snapshot", "ls", "--json")) == []


def test_another_machine_goes_on_from_a_snapshot_and_from_a_running_one(succeed, dev):
    hostname = ("exec", "-u", "root")
    succeed("snapshot", "create", dev, "-n", "seed")
    succeed("fork", dev, "twin")
    succeed("snapshot", "restore", "--as", "later", "seed")
    try:
        for name in ("twin", "later"):
            assert succeed(*hostname, name, "--", "hostname") == f"{name}\n"
    finally:
        succeed("rm", "-f", "twin", "later")
        succeed("snapshot", "rm", "seed")


def test_a_snapshot_that_is_broken_is_told_by_all(succeed, cli, rested, data):
    identity = succeed("snapshot", "create", rested, "-n", "whole").split()[0]
    manifest = data / "snapshots" / identity / "manifest.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good.replace(b"whole", b"broke"))
    assert json.loads(succeed("snapshot", "ls", "--json"))[0]["state"] == "invalid"
    done = cli("snapshot", "verify", "--json")
    assert (done.returncode, json.loads(done.stdout)[0]["ok"]) == (1, False)
    assert_error(cli("snapshot", "restore", rested, identity), "store.corrupt")
    succeed("snapshot", "rm", identity)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("create", "rested", "-n", "a/b"), "usage.snapshot"),
        (("create", "rested", "--label", "x"), "usage.label"),
        (("create", "nobody"), "store.missing"),
        (("restore", "rested", "nothing"), "store.missing"),
        (("restore", "nothing"), "usage.snapshot"),
        (("rm", "nothing"), "store.missing"),
        (("prune",), "usage.snapshot"),
        (("prune", "--older-than", "soon"), "usage.age"),
    ],
)
def test_what_cannot_be_done_with_snapshots_is_said(cli, rested, words, code):
    assert_error(cli("snapshot", *words), code)


def test_a_snapshot_that_is_cut_off_leaves_nothing(spawn, succeed, dev, data):
    child = spawn("snapshot", "create", dev, "-n", "never", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE
    while not list((data / "snapshots").glob(".partial-*")):
        assert time.monotonic() < deadline
        assert child.poll() is None, child.communicate()
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, error
    assert b"Traceback" not in error
    assert os.listdir(data / "snapshots") == []
    assert state_of(succeed, dev)["phase"] == "running"


# The shell and the session.


def test_machines_are_offered_for_completion(succeed, dev, rested):
    assert {dev, rested} <= set(succeed("__complete", "stop", "").split())
    assert "dev:" in succeed("__complete", "cp", "").split()


def test_a_machine_is_entered_into_the_session_and_taken_out(succeed, cli, rested, settings):
    unit = os.path.join(settings["XDG_CONFIG_HOME"], "systemd", "user", f"atoll-{rested}.service")
    done = cli("autostart", "enable", rested)
    assert (done.returncode, done.stdout.decode()) == (0, f"{unit}\n"), done.stderr
    with open(unit) as file:
        assert f'"supervise" "{rested}"\n' in file.read()
    assert succeed("autostart", "ls") == f"{rested}\n"
    with contextlib.suppress(FileNotFoundError):
        verified = subprocess.run(
            ["systemd-analyze", "--user", "verify", unit], capture_output=True, check=False
        )
        assert b"Unknown" not in verified.stderr, verified.stderr
        assert b"Failed to parse" not in verified.stderr, verified.stderr
    succeed("autostart", "disable", rested)
    assert succeed("autostart", "ls") == ""
    assert not os.path.exists(unit)


def test_what_belongs_to_a_name_goes_with_it(succeed, hosted, data):
    name = hosted("named")
    succeed("autostart", "enable", name)
    succeed("rename", name, "renamed")
    assert succeed("autostart", "ls") == "renamed\n"
    succeed("rm", "renamed")
    assert succeed("autostart", "ls") == ""
    assert not list((data / "ssh").glob("*named*"))


# From Python.


def test_a_program_uses_a_machine_without_connecting_first(data, paths, hosted):
    config = load({"data_dir": data, "cache_dir": paths.cache}, environment={}, files=()).config
    with atoll.Machine(hosted("sdk", env={"A": "7"}), config=config) as machine:
        with pytest.raises(atoll.StateError):
            machine.run(["true"])
        machine.start()
    with atoll.Machine("sdk", config=config) as machine:
        assert machine.ping() < PATIENCE
        assert machine.run(["sh", "-c", "echo $A"], check=True).stdout == "7\n"
        machine.remove(force=True)
        with pytest.raises(atoll.StoreError):
            machine.find()
