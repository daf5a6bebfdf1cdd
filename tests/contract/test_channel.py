"""The Python and the C end of the channel against each other over a socket pair, without a VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket

import pytest

from atoll import process
from atoll.errors import ChannelError, CommandError, GuestError
from atoll.guest import wire
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.guest.messages import ExecOutput, ExecStart, Ping, Pong, TerminalSize
from atoll.hypervisor.port import end
from atoll.image.kernel import agent_path, host_architecture

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


class Hosted:
    """The agent as a process of this host, and the two ends of its link."""

    def __init__(self):
        self.ours, theirs = socket.socketpair()
        with theirs:
            argv = [str(agent_path(host_architecture())), "--fd", str(theirs.fileno())]
            self.process = process.spawn(argv, pass_fds=[theirs.fileno()])
        self.channel: Channel | None = None

    def connect(self) -> Agent:
        self.channel = Channel(self.ours)
        return Agent(self.channel)

    async def close(self):
        if self.channel is not None:
            self.channel.close()
        self.ours.close()
        await end(self.process)


@pytest.fixture
async def hosted():
    hosted = Hosted()
    yield hosted
    await hosted.close()


@pytest.fixture
async def agent(hosted):
    agent = hosted.connect()
    async with asyncio.timeout(90):
        await agent.ready()
        yield agent


async def run(agent, *argv, name="x", **options):
    """Run a command and return (exit, stdout, stderr)."""
    execution = agent.start(ExecStart(id=name, argv=argv, **options))
    try:
        await execution.started()
        out, err, status = await asyncio.gather(
            execution.stdout.read_all(), execution.stderr.read_all(), execution.wait()
        )
        return status, out, err
    finally:
        execution.release()


async def test_ping_returns_what_was_sent(hosted, agent):
    assert (await hosted.channel.call(Ping(data=b"\0\xff" * 2048), Pong)).data == b"\0\xff" * 2048


async def test_info_says_what_the_guest_is(agent):
    info = await agent.info()
    assert info.kernel == os.uname().release
    assert info.init == "hosted"
    assert info.phase == "ready"
    assert info.memory_total > 1 << 20
    assert abs(info.realtime / 1e9 - __import__("time").time()) < 5


async def test_output_streams_are_apart_and_the_code_is_told(agent):
    status, out, err = await run(agent, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (status.code, status.signal, out, err) == (7, None, b"out\n", b"err\n")


async def test_death_by_signal_is_told_apart_from_an_exit_code(agent):
    status, _, _ = await run(agent, "sh", "-c", "kill -SEGV $$")
    assert (status.code, status.signal) == (None, signal.SIGSEGV)


async def test_environment_directory_and_arguments_reach_the_command(agent):
    script = 'printf "%s|" "$A" "$PWD" "$HOME" "$1" "$2"'
    _, out, _ = await run(agent, "sh", "-c", script, "sh", "a b", b"\xff\xfe", env={"A": "ü"}, cwd="/usr")
    assert out == "ü|/usr|/root|a b|".encode() + b"\xff\xfe|"


async def test_a_user_by_name_or_number_runs_the_command(agent):
    for user, expected in (("nobody", b"65534:65534"), ("65534:0", b"65534:0"), ("12345", b"12345:12345")):
        _, out, err = await run(agent, "sh", "-c", "echo $(id -u):$(id -g)", user=user, cwd="/")
        assert out.strip() in {expected, expected.split(b":")[0] + b":0"}, (user, out, err)


@pytest.mark.parametrize(
    ("options", "stage", "exit_code"),
    [
        ({"argv": ("no-such-program",)}, "exec", 127),
        ({"argv": ("/etc/passwd",)}, "exec", 126),
        ({"argv": ("true",), "cwd": "/no/such/place"}, "cwd", 126),
        ({"argv": ("true",), "user": "nobody-at-all"}, "user", 126),
    ],
)
async def test_a_command_that_cannot_start_says_which_step_failed(agent, options, stage, exit_code):
    execution = agent.start(ExecStart(id="x", **options))
    with pytest.raises(CommandError) as caught:
        await execution.started()
    assert (caught.value.stage, caught.value.exit_code) == (stage, exit_code)
    execution.close()
    assert await agent.executions() == ()


async def test_input_reaches_the_command_and_ends(agent):
    data = random.Random(1).randbytes(3_000_000)
    execution = agent.start(ExecStart(id="cat", argv=("cat",), stdin=True))

    async def feed():
        for at in range(0, len(data), 100_000):
            await execution.stdin.write(data[at : at + 100_000])
        await execution.stdin.end()

    _, out = await asyncio.gather(feed(), execution.stdout.read_all())
    assert out == data
    assert (await execution.wait()).code == 0
    execution.release()


async def test_a_command_that_closes_its_input_does_not_stall_the_writer(agent):
    execution = agent.start(
        ExecStart(id="x", argv=("sh", "-c", "exec <&-; sleep 0.3; echo done"), stdin=True)
    )
    await execution.stdin.write(bytes(2_000_000))
    await execution.stdin.end()
    assert await execution.stdout.read_all() == b"done\n"
    execution.release()


async def test_a_terminal_has_the_size_asked_for_and_follows_changes(agent):
    script = "stty size; read x; stty size; test -t 0 && test -t 1 && test -t 2 && echo tty"
    execution = agent.start(
        ExecStart(id="t", argv=("sh", "-c", script), tty=TerminalSize(30, 100), stdin=True)
    )
    out = b""
    while b"30 100" not in out:
        out += await execution.stdout.read()
    await execution.resize(50, 132)
    await execution.stdin.write(b"\n")
    out += await execution.stdout.read_all()
    assert b"50 132" in out
    assert b"tty" in out
    assert (await execution.wait()).code == 0
    execution.release()


async def test_end_of_input_on_a_terminal_is_the_end_of_file_character(agent):
    execution = agent.start(ExecStart(id="t", argv=("cat",), tty=TerminalSize(), stdin=True))
    await execution.stdin.write(b"line\n")
    await execution.stdin.end()
    assert b"line" in await execution.stdout.read_all()
    assert (await execution.wait()).code == 0
    execution.release()


async def test_a_signal_reaches_the_whole_group(agent):
    execution = agent.start(
        ExecStart(id="s", argv=("sh", "-c", "trap 'echo caught; exit 3' TERM; sleep 30 & echo up; wait"))
    )
    assert await execution.stdout.read() == b"up\n"
    await execution.signal(signal.SIGTERM)
    assert (await execution.wait()).code == 3
    assert await execution.stdout.read_all() == b"caught\n"
    execution.release()


async def test_a_process_left_behind_does_not_keep_the_reader_waiting(agent):
    async with asyncio.timeout(40):
        status, out, _ = await run(agent, "sh", "-c", "echo before; sleep 60 & echo after")
    assert (status.code, out) == (0, b"before\nafter\n")


async def test_many_commands_run_at_once(agent):
    async with asyncio.timeout(60):
        results = await asyncio.gather(
            *(run(agent, "sh", "-c", f"echo {n}; exit {n % 200}", name=f"n{n}") for n in range(100))
        )
    assert [(status.code, out) for status, out, _ in results] == [(n % 200, b"%d\n" % n) for n in range(100)]


async def test_all_executions_are_listed_however_many_frames_it_takes(agent):
    names = [f"{number:03}-{'x' * 60}" for number in range(400)]
    held = [agent.start(ExecStart(id=name, argv=("true",))) for name in names]
    for execution in held:
        await execution.started()
    assert {execution.id for execution in await agent.executions()} == set(names)
    for execution in held:
        execution.release()
    assert await agent.executions() == ()


async def test_an_unread_stream_stalls_no_other(agent):
    flood = [agent.start(ExecStart(id=f"f{n}", argv=("cat", "/dev/zero"))) for n in range(8)]
    for execution in flood:
        await execution.started()
    async with asyncio.timeout(60):
        status, out, _ = await run(agent, "echo", "through")
    assert (status.code, out) == (0, b"through\n")
    for execution in flood:
        execution.release()


async def test_large_output_arrives_whole_and_in_order(agent):
    _, out, _ = await run(agent, "seq", "1", "300000")
    assert out == b"".join(b"%d\n" % n for n in range(1, 300_001))


async def test_an_unknown_execution_and_a_second_use_of_an_id_are_refused(agent):
    with pytest.raises(GuestError) as caught:
        await agent._channel.call(ExecOutput(id="nobody", fd=1), Pong)
    assert caught.value.reason == "not_found"
    first = agent.start(ExecStart(id="one", argv=("sleep", "10")))
    await first.started()
    with pytest.raises(GuestError) as caught:
        await agent._channel.call(ExecStart(id="one", argv=("true",)), Pong)
    assert caught.value.reason == "exists"
    first.release()


async def test_output_goes_on_without_a_gap_after_the_link_lost_step(hosted, agent):
    execution = agent.start(ExecStart(id="seq", argv=("seq", "1", "400000")))
    parts = []
    randomness = random.Random(7)
    reads = 0
    while data := await execution.stdout.read():
        parts.append(data)
        reads += 1
        if reads % 5 == 1 and reads < 60:
            if randomness.random() < 0.5:
                await asyncio.sleep(0.005)
            hosted.channel.resync()
    assert b"".join(parts) == b"".join(b"%d\n" % n for n in range(1, 400_001))
    assert (await execution.wait()).code == 0
    execution.release()


async def test_input_goes_on_without_a_gap_after_the_link_lost_step(hosted, agent):
    data = random.Random(2).randbytes(2_000_000)
    execution = agent.start(ExecStart(id="sum", argv=("sha256sum",), stdin=True))

    async def feed():
        for at in range(0, len(data), 50_000):
            await execution.stdin.write(data[at : at + 50_000])
            if at % 200_000 == 0:
                hosted.channel.resync()
        await execution.stdin.end()

    _, out = await asyncio.gather(feed(), execution.stdout.read_all())
    assert out.split()[0].decode() == __import__("hashlib").sha256(data).hexdigest()
    execution.release()


async def test_input_that_has_ended_is_sent_again_after_the_link_lost_step(hosted, agent):
    for _ in range(5):
        execution = agent.start(ExecStart(id="sum", argv=("wc", "-c"), stdin=True))
        await execution.started()
        await execution.stdin.write(bytes(900_000))
        await execution.stdin.end()
        hosted.channel.resync()
        async with asyncio.timeout(60):
            assert await execution.stdout.read_all() == b"900000\n"
        execution.release()


async def test_a_signal_after_the_end_is_no_error(agent):
    execution = agent.start(ExecStart(id="x", argv=("true",)))
    await execution.wait()
    await execution.signal(signal.SIGTERM)
    execution.release()


async def test_the_end_of_a_command_is_told_even_if_the_link_lost_step_meanwhile(hosted, agent):
    execution = agent.start(ExecStart(id="x", argv=("sh", "-c", "sleep 0.2; exit 5")))
    await execution.started()
    hosted.channel.resync()
    await asyncio.sleep(0.4)
    hosted.channel.resync()
    assert (await execution.wait()).code == 5
    execution.release()


@pytest.mark.parametrize("seed", range(20))
async def test_a_new_host_comes_into_step_whatever_the_former_one_left_on_the_link(hosted, seed):
    randomness = random.Random(seed)
    whole = wire.encode(wire.FrameType.DATA, 5, randomness.randbytes(randomness.randrange(32_768)))
    stale = randomness.choice([whole[: randomness.randrange(len(whole))], randomness.randbytes(500), whole])
    hosted.ours.sendall(stale)
    agent = hosted.connect()
    async with asyncio.timeout(60):
        await agent.ready()
        assert (await run(agent, "echo", "in step"))[1] == b"in step\n"


async def test_garbage_from_the_host_never_kills_the_agent(hosted):
    randomness = random.Random(99)
    for _ in range(200):
        hosted.ours.sendall(randomness.randbytes(randomness.randrange(1, 4000)))
    agent = hosted.connect()
    async with asyncio.timeout(60):
        await agent.ready()
        await agent.ping()


async def test_a_closed_link_is_an_error_for_all_who_wait(hosted, agent):
    execution = agent.start(ExecStart(id="x", argv=("sleep", "30")))
    await execution.started()
    waiting = [asyncio.create_task(execution.wait()), asyncio.create_task(execution.stdout.read())]
    await asyncio.sleep(0)
    hosted.channel.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, ChannelError)
    execution.close()


async def test_the_agent_ends_its_commands_when_its_host_is_gone(hosted, agent):
    execution = agent.start(ExecStart(id="x", argv=("sleep", "300")))
    pid = await execution.started()
    execution.close()
    hosted.channel.close()
    async with asyncio.timeout(60):
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                await asyncio.sleep(0.01)
