"""The SDK with a real guest, in both of its faces."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import atoll
from atoll import aio
from atoll.errors import BootError, CommandError, CommandTimeoutError, UsageError
from atoll.events import ExecutionEnded, StageReached, VmExited
from atoll.hypervisor.model import Accelerator
from atoll.vm import accelerator

pytestmark = [pytest.mark.vm]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def box(config):
    """One guest for the tests that leave it as it was."""
    with atoll.Sandbox("debian", config=config, env={"SET": "here"}) as box:
        yield box


def test_a_command_returns_what_it_wrote(box):
    result = box.run(["sh", "-c", "echo out; echo err >&2; exit 4"])
    assert (result.stdout, result.stderr, result.code, result.returncode, result.ok) == (
        "out\n",
        "err\n",
        4,
        4,
        False,
    )


def test_input_environment_directory_and_user(box):
    result = box.run(
        ["sh", "-c", "cat; echo $SET $MORE $PWD $(id -un)"],
        input="in ",
        env={"MORE": "x"},
        cwd="/tmp",
        user="nobody",
    )
    assert result.stdout == "in here x /tmp nobody\n"


def test_check_raises_with_the_result(box):
    with pytest.raises(atoll.CommandFailedError) as caught:
        box.run(["sh", "-c", "echo why >&2; exit 9"], check=True)
    assert (caught.value.result.code, caught.value.exit_code, caught.value.detail) == (9, 9, "why\n")


def test_a_timeout_ends_the_command_and_the_guest_goes_on(box):
    with pytest.raises(CommandTimeoutError):
        box.run(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], timeout=0.5)
    assert box.run(["sh", "-c", "pgrep -c sleep || true"]).stdout in {"0\n", "1\n"}
    assert box.run(["true"]).ok


def test_a_missing_command_is_an_error_not_a_result(box):
    with pytest.raises(CommandError) as caught:
        box.run(["no-such-program"])
    assert caught.value.exit_code == 127


def test_a_string_is_refused_with_advice(box):
    with pytest.raises(UsageError, match="list"):
        box.run("ls -l")


def test_large_output_arrives_whole(box):
    result = box.run(["sh", "-c", "seq 1 200000; seq 1 200000 >&2"])
    expected = "".join(f"{n}\n" for n in range(1, 200_001))
    assert (result.stdout, result.stderr) == (expected, expected)


def test_threads_share_a_sandbox(box):
    outcomes = {}

    def work(number):
        outcomes[number] = box.run(["echo", str(number)]).stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {number: f"{number}\n" for number in range(16)}


def test_the_clock_of_a_fresh_guest_is_the_hosts(box):
    before = time.time()
    assert before - 2 < float(box.run(["date", "+%s.%N"]).stdout) < time.time() + 2


def test_info_tells_of_the_guest(box):
    info = box.info()
    assert (info.phase, info.init, info.vcpus) == ("ready", "minimal", 1)
    assert info.hostname == box.name
    assert list(info.timeline) == sorted(info.timeline, key=info.timeline.get)


def test_a_process_is_talked_to_left_and_taken_up_again(box):
    script = "read name; echo hello $name; seq 1 100000; exec cat"
    with box.start(["sh", "-c", script], stdin=True, user="nobody", cwd="/") as process:
        process.write("guest\n")
        assert process.stdout.readline() == "hello guest"
        place = process.detach()
    assert [(found.id, found.pid) for found in box.processes()] == [(process.id, process.pid)]
    with box.attach(place) as process:
        for number in range(1, 100_001):
            assert process.stdout.readline() == str(number)
        process.write("still there\n")
        assert process.stdout.readline() == "still there"
        process.terminate()
        assert process.wait(timeout=60).signal == signal.SIGTERM
    assert box.processes() == ()
    with box.start(["sh", "-c", "stty size; exec sleep 100"], tty=atoll.TerminalSize(31, 99)) as process:
        assert process.stdout.readline() == "31 99"
    assert box.processes() == ()


def test_a_server_of_a_guest_without_a_network_is_reached_from_the_host(box):
    page = (ROOT / "docs" / "how-to" / "use-from-python.md").read_text()
    server = page.partition('SERVER = r"""')[2].partition('"""')[0]
    with box.start(["perl", "-e", server]) as process:
        assert process.stdout.readline() == "up"
        with box.expose(8000) as exposed:
            for _ in range(5):
                with urllib.request.urlopen(exposed.url) as answer:
                    assert answer.read() == b"hello\n"
            address = (exposed.host, exposed.port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
    with (
        box.expose(8000) as exposed,
        socket.create_connection((exposed.host, exposed.port)) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)


def test_orphans_are_reaped_by_the_guests_init(box):
    box.run(["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; sleep 0.3"])
    states = box.run(["sh", "-c", "cat /proc/[0-9]*/stat | awk '{print $3}' | grep -c Z || true"]).stdout
    assert states == "0\n"


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_the_asynchronous_face_does_the_same(config):
    events = []
    async with aio.Sandbox("debian", config=config, on_event=events.append) as box:
        first, second = await asyncio.gather(box.run(["echo", "1"]), box.run(["echo", "2"]))
        assert (first.stdout, second.stdout) == ("1\n", "2\n")
    assert [event.stage for event in events if isinstance(event, StageReached)] == ["spawn", "agent", "root"]
    assert sum(isinstance(event, ExecutionEnded) for event in events) == 2
    assert isinstance(events[-1], VmExited)


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_a_cancelled_open_leaves_nothing_behind(config):
    loop = asyncio.get_running_loop()
    for cold in (True, False):
        for moment in ("", "spawn", "agent"):
            reached = asyncio.Event()

            def on_event(event, moment=moment, reached=reached):
                if isinstance(event, StageReached) and event.stage == moment:
                    loop.call_soon_threadsafe(reached.set)  # a launch has a thread of its own

            box = aio.Sandbox("debian", config=config, cold=cold, on_event=on_event)
            starting = asyncio.create_task(box.open())
            await (reached.wait() if moment else asyncio.sleep(0))
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_a_guest_whose_agent_is_killed_is_named(config):
    async with aio.Sandbox("debian", config=config) as box:
        with pytest.raises(BootError) as caught:
            await box.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 30"])
        assert caught.value.stage == "command"
        assert "panic" in caught.value.message


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_a_hypervisor_killed_under_a_command_is_named(config):
    async with aio.Sandbox("debian", config=config) as box:
        running = asyncio.create_task(box.run(["sleep", "100"]))
        await asyncio.sleep(0.3)
        os.kill(box.vm.pid, signal.SIGKILL)
        with pytest.raises(BootError, match="SIGKILL"):
            await running


@pytest.mark.anyio
@pytest.mark.usefixtures("no_leftovers")
async def test_a_guest_that_no_longer_answers_does_not_outlast_the_timeout(config):
    async with aio.Sandbox("debian", config=config) as box:
        running = asyncio.create_task(box.run(["sleep", "100"], timeout=1))
        await asyncio.sleep(0.5)
        os.kill(box.vm.pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            with pytest.raises(CommandTimeoutError):
                await running
            with pytest.raises(CommandTimeoutError):
                await box.run(["true"], timeout=0.2)


def test_input_for_a_command_that_has_ended_is_let_go(box):
    script = "exec 3<&0; sleep 110 <&3 & exit 0"
    assert box.run(["sh", "-c", script], input=bytes(10_000_000), timeout=100).ok


def test_arguments_may_be_paths_and_bytes_but_nothing_else(box):
    assert box.run(["printf", "%s", b"\xff"]).stdout_bytes == b"\xff"
    with pytest.raises(UsageError):
        box.run(["echo", 5])
    with pytest.raises(UsageError):
        box.run(["echo", "a\0b"])


@pytest.mark.usefixtures("no_leftovers")
def test_a_killed_program_takes_its_sandboxes_with_it_also_those_of_threads(environment):
    program = textwrap.dedent("""
        import os, threading, time, atoll
        def hold():
            box = atoll.Sandbox("debian")
            box.open()
            box.run(["true"])
            os.write(1, b"up\\n")
            time.sleep(100)
        for _ in range(2): threading.Thread(target=hold).start()
    """)
    child = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        assert child.stdout.readline() == b"up\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.usefixtures("no_leftovers")
def test_a_sandbox_outlives_the_thread_that_made_it(config):
    made = []
    thread = threading.Thread(
        target=lambda: made.append(atoll.Sandbox("debian", config=config)) or made[0].open()
    )
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert made[0].run(["echo", "alive"]).stdout == "alive\n"
    made[0].close()


@pytest.mark.usefixtures("no_leftovers")
def test_the_probe_has_a_verdict_with_a_reason_and_keeps_it(config):
    from atoll import runtime

    candidate = runtime.candidate(config, runtime.host_architecture())
    first = accelerator.examine(candidate, config.paths.verdicts)
    assert accelerator.examine(candidate, config.paths.verdicts) == first  # with the time that it took
    assert first.reason
    chosen = accelerator.choose("auto", candidate, config.paths.verdicts)
    assert (chosen.accelerator is Accelerator.KVM) is first.usable
