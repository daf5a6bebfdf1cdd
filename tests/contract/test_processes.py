"""Processes in a guest as programs hold them: their streams, their end, and taking them up again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket

import pytest
from hosted import hosted_box
from machines import enter, gone, kill_all_at

import atoll
from atoll import aio, blocking
from atoll.config import load
from atoll.errors import ChannelError, CommandError, GuestError, UsageError
from atoll.events import ExecutionEnded, ExecutionStarted
from atoll.guest.handle import Detached
from atoll.guest.messages import TerminalSize
from atoll.vm.restart import Policy
from atoll.vm.state import StateError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

NUMBERS = b"".join(b"%d\n" % n for n in range(1, 100_001))


@pytest.fixture(scope="module", autouse=True)
def thread_of_the_blocking_face():
    """It is there before descriptors are counted."""
    blocking.core.loop()


@pytest.fixture
async def box():
    async with hosted_box() as box, asyncio.timeout(90):
        yield box


async def test_a_process_is_talked_to_while_it_runs():
    events = []
    script = "read name; echo hello $name; echo oops >&2; cat; exit 3"
    async with hosted_box(events.append) as box:
        async with box.start_process(["sh", "-c", script], stdin=True) as process:
            await process.write("world\n")
            assert await process.stdout.readline() == "hello world"
            assert await process.stderr.readline() == "oops"
            await process.write(b"\xff\n")
            await process.close_stdin()
            await process.close_stdin()
            assert await process.stdout.read_all() == b"\xff\n"
            end = await process.wait()
            assert (end.code, end.signal, end.returncode, end.ok) == (3, None, 3, False)
            assert 0 < end.elapsed < 30
            assert await process.wait() == end
        assert await process.wait() == end
        assert await box.processes() == ()
    assert [type(event) for event in events] == [ExecutionStarted, ExecutionEnded]
    assert (events[1].execution, events[1].code) == (process.id, 3)


async def test_output_comes_in_chunks_and_in_lines(box):
    async with box.start_process(["seq", "1", "100000"]) as process:
        assert b"".join([chunk async for chunk in process.stdout]) == NUMBERS
        assert process.stdout.offset == len(NUMBERS)
    async with box.start_process(["printf", "a\\r\\n\\nb\\377"]) as process:
        assert [line async for line in process.stdout.lines()] == ["a", "", "b\ufffd"]
        assert await process.stdout.readline() is None


async def test_it_may_be_awaited_gathered_and_run_as_a_task(box):
    first, second = await asyncio.gather(box.start_process(["echo", "1"]), box.start_process(["echo", "2"]))
    third = await asyncio.create_task(box.start_process(["echo", "3"]))
    for process in (first, second, third):
        async with process:
            assert (await process.wait()).ok
    assert third.argv == ("echo", "3")


async def test_signals_reach_it(box):
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    async with box.start_process(["sh", "-c", script]) as process:
        assert await process.stdout.readline() == "ready"
        await process.terminate()
        assert await process.stdout.readline() == "caught"
        assert (await process.wait()).code == 5
    async with box.start_process(["sleep", "60"]) as process:
        await process.kill()
        end = await process.wait()
        assert (end.code, end.signal, end.returncode) == (None, signal.SIGKILL, 137)
        await process.signal(signal.SIGHUP)


async def test_its_terminal_can_be_resized(box):
    script = "stty -echo; stty size; read x; stty size"
    async with box.start_process(["sh", "-c", script], stdin=True, tty=TerminalSize(7, 9)) as process:
        assert await process.stdout.readline() == "7 9"
        await process.resize(11, 12)
        await process.write("\n")
        assert await process.stdout.readline() == "11 12"
        assert await process.stderr.read() == b""
    async with box.start_process(["sleep", "60"]) as process:
        with pytest.raises(GuestError) as caught:
            await process.resize(1, 1)
        assert caught.value.code == "guest.invalid"


async def test_one_that_cannot_start_is_an_error_at_once(box):
    with pytest.raises(CommandError):
        await box.start_process(["no-such-program"])
    assert await box.processes() == ()


async def test_the_end_of_the_block_kills_it_and_what_it_started(box):
    with contextlib.suppress(ZeroDivisionError):
        async with box.start_process(["sh", "-c", "sleep 60 & echo $!; wait"]) as process:
            child = int(await process.stdout.readline())
            raise ZeroDivisionError
    assert await box.processes() == ()
    await gone(process.pid)
    await gone(child)


async def test_what_was_let_go_of_says_so_also_to_those_who_wait(box):
    process = await box.start_process(["sleep", "60"], stdin=True)
    waiting = [
        asyncio.create_task(work)
        for work in (process.wait(), process.stdout.read(), process.write(bytes(9_000_000)))
    ]
    await box.processes()
    await process.close()
    await process.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, UsageError), outcome
        assert outcome.code == "usage.process"
    with pytest.raises(UsageError):
        await process.signal(1)


async def test_one_who_waits_can_be_cancelled_and_the_process_goes_on(box):
    async with box.start_process(["cat"], stdin=True) as process:
        waiting = asyncio.create_task(process.wait())
        await box.processes()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            await process.wait(timeout=0.01)
        await process.close_stdin()
        assert (await process.wait(timeout=60)).ok


async def test_input_that_is_not_there_is_refused(box):
    async with box.start_process(["sleep", "60"]) as process:
        with pytest.raises(UsageError) as caught:
            await process.write("x")
        assert caught.value.code == "usage.stdin"
    async with box.start_process(["cat"], stdin=True) as process:
        await process.close_stdin()
        with pytest.raises(UsageError) as caught:
            await process.write("x")
        assert caught.value.code == "usage.stdin"


async def test_a_process_that_nobody_reads_stands_still_and_loses_nothing(box):
    async with box.start_process(["head", "-c", "3000000", "/dev/zero"]) as process:
        with pytest.raises(TimeoutError):
            await process.wait(timeout=0.2)
        assert [found.running for found in await box.processes()] == [True]
        assert len(await process.stdout.read_all()) == 3_000_000
        assert (await process.wait()).ok


async def test_it_goes_on_when_the_link_lost_step(box):
    async with box.start_process(["seq", "1", "100000"]) as process:
        lines = []
        async for line in process.stdout.lines():
            lines.append(line)
            if len(lines) % 20_000 == 7:
                box.channel.resync()
        assert lines == NUMBERS.decode().split()
        assert (await process.wait()).ok


# Taking it up again.


async def test_a_detached_process_is_listed_and_taken_up_where_it_was_left(box):
    process = await box.start_process(["sh", "-c", "seq 1 100000; read x; echo $x; echo end >&2"], stdin=True)
    read = await process.stdout.read()
    place = await process.detach()
    assert place == Detached(process.id, len(read), 0)
    (found,) = await box.processes()
    assert (found.id, found.pid, found.running) == (process.id, process.pid, True)
    assert (found.stdin, found.tty, found.argv[0]) == (True, False, "sh")
    async with box.attach(place) as again:
        assert (again.id, again.pid, again.argv) == (process.id, process.pid, process.argv)
        while len(read) < len(NUMBERS):
            read += await again.stdout.read()
        assert read == NUMBERS
        await again.write("more\n")
        assert await again.stdout.readline() == "more"
        assert (await again.wait()).ok
        assert await again.stderr.read_all() == b"end\n"
    assert await box.processes() == ()


async def test_lines_that_were_not_read_are_held_whatever_came_with_them(box):
    process = await box.start_process(["sh", "-c", "seq 1 100000; cat"], stdin=True)
    for number in range(1, 50_001):
        assert await process.stdout.readline() == str(number)
    place = await process.detach()
    assert place.stdout_offset == NUMBERS.index(b"\n50001\n") + 1
    async with box.attach(place.id, stdout_offset=place.stdout_offset, stderr_offset=0) as again:
        assert await again.stdout.readline() == "50001"


async def test_what_was_read_cannot_be_read_again(box):
    process = await box.start_process(["sh", "-c", "seq 1 100000; cat"], stdin=True)
    while process.stdout.offset < len(NUMBERS):
        await process.stdout.read()
    place = await process.detach()
    for offset, code in ((5, "guest.gone"), (len(NUMBERS) + 1, "guest.invalid")):
        with pytest.raises(GuestError, match=f"byte {offset} ") as caught:
            await box.attach(place.id, stdout_offset=offset)
        assert caught.value.code == code
    async with box.attach(place.id) as again:
        rest = NUMBERS[again.stdout.offset :] + b"x"
        assert len(rest) < len(NUMBERS)
        await again.write("x")
        await again.close_stdin()
        assert await again.stdout.read_all() == rest
    with pytest.raises(GuestError) as caught:
        await box.attach(place)
    assert caught.value.code == "guest.not_found"


async def test_whoever_attaches_takes_over(box):
    async with box.start_process(["cat"], stdin=True) as first:
        await first.write("1\n")
        assert await first.stdout.readline() == "1"
        reading = asyncio.create_task(first.stdout.read())
        second = await box.attach(first.id, stdout_offset=2)
        with pytest.raises(GuestError) as caught:
            await reading
        assert caught.value.code == "guest.cancelled"
        await second.write("2\n")
        assert await second.stdout.read() == b"2\n"
        with pytest.raises(GuestError) as caught:
            await first.write("3\n")
        assert caught.value.code == "guest.cancelled"
        await second.detach()


async def keep_going(process):
    while True:
        await process.signal(signal.SIGCONT)
        await asyncio.sleep(0.05)


async def test_what_one_has_written_and_the_process_not_read_is_kept_for_it(box):
    sizes = 1_500_000, 400_000
    process = await box.start_process(["sh", "-c", "kill -STOP $$; wc -c"], stdin=True)
    await process.write(bytes(sizes[0]))
    async with box.attach(await process.detach()) as again:
        await again.write(bytes(sizes[1]))
        box.channel.resync()
        await again.close_stdin()
        going = asyncio.create_task(keep_going(again))  # it may be that it has not come to its stop yet
        assert int(await again.stdout.readline()) == sum(sizes)
        going.cancel()


async def test_what_another_has_released_is_told_of(box):
    first = await box.start_process(["sleep", "60"])
    waiting = asyncio.create_task(first.wait())
    second = await box.attach(first.id)
    await second.close()
    with pytest.raises(GuestError) as caught:
        await waiting
    assert caught.value.code in {"guest.cancelled", "guest.not_found"}
    await first.close()


async def test_a_link_that_breaks_is_an_error_for_all_who_wait(box):
    process = await box.start_process(["cat"], stdin=True)
    waiting = [
        asyncio.create_task(work)
        for work in (process.wait(), process.stdout.read(), process.write(bytes(9_000_000)), process.detach())
    ]
    await asyncio.sleep(0)
    box.channel.close()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ChannelError] * 4, outcomes
    await process.close()
    gc.collect()  # a future whose error nobody took would complain here


# Those of a machine, whose requests travel through its supervisor.


@pytest.fixture
async def dev(tmp_path):
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    enter(tmp_path)
    async with aio.Machine("dev", config=config) as dev, asyncio.timeout(100):
        await dev.start()
        yield dev
        await dev.stop(force=True)
    kill_all_at(tmp_path)


async def listed(machine):
    return [found.id for found in await machine.processes()]


async def test_a_process_of_a_machine_ends_with_its_client_unless_it_was_detached(dev):
    async with aio.Machine("dev", config=dev._config) as client:
        kept = await client.start_process(["cat"], stdin=True)
        left = await client.start_process(["sleep", "60"])
        await kept.write("before\n")
        place = await kept.detach()
        assert await listed(dev) == [kept.id, left.id]
    while left.id in await listed(dev):  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(0.01)
    assert await listed(dev) == [kept.id]
    async with dev.attach(place) as again:
        await again.write("behind\n")
        assert await again.stdout.readline() == "before"
        assert await again.stdout.readline() == "behind"
    assert await listed(dev) == []
    with pytest.raises(ChannelError):
        await left.wait()


async def test_one_that_others_detached_is_kept_when_who_started_it_leaves(dev):
    async with aio.Machine("dev", config=dev._config) as client:
        process = await client.start_process(["sleep", "60"])
        place = await (await dev.attach(process.id)).detach()
    assert await listed(dev) == [process.id]
    async with dev.attach(place):
        pass


async def test_a_process_outlives_its_supervisor_and_goes_on_where_it_was_read(dev):
    process = await dev.start_process(["sh", "-c", "seq 1 100000; cat"], stdin=True)
    for number in range(1, 1001):
        assert await process.stdout.readline() == str(number)
    os.kill((await dev.status()).supervisor, signal.SIGKILL)
    with pytest.raises(ChannelError):
        await process.wait()
    async with dev.attach(process.id, stdout_offset=process.stdout.offset) as again:
        await again.write("end")
        await again.close_stdin()
        rest = NUMBERS[NUMBERS.index(b"\n1001\n") + 1 :] + b"end"
        assert await again.stdout.read_all() == rest
        assert (await again.wait()).ok


async def test_a_machine_that_ends_under_a_process_is_named(dev):
    process = await dev.start_process(["sleep", "60"], stdin=True)
    exposed = await dev.expose(80)
    waiting = asyncio.create_task(process.wait())
    await listed(dev)
    await dev.stop(force=True)
    with pytest.raises(StateError) as caught:
        await waiting
    assert caught.value.code == "state.gone"
    with pytest.raises(StateError):
        await process.write("x")
    with pytest.raises(StateError):
        await dev.expose(80)
    await exposed.close()
    await process.close()


def test_the_face_without_an_event_loop_does_the_same(tmp_path):
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    enter(tmp_path)
    with atoll.Machine("dev", config=config) as dev:
        dev.start()
        with dev.start_process(["sh", "-c", "cat; seq 1 3 >&2"], stdin=True) as process:
            process.write("a\nb\nc")
            assert process.stdout.readline() == "a"
            place = process.detach()
        assert [(found.id, found.running) for found in dev.processes()] == [(process.id, True)]
        with dev.attach(place) as process:
            process.close_stdin()
            assert list(process.stdout.lines()) == ["b", "c"]
            assert b"".join(process.stderr) == b"1\n2\n3\n"
            assert process.wait(timeout=60).ok
            assert (process.stdout.offset, process.argv[0]) == (5, "sh")
        assert dev.processes() == ()
        with socket.create_server(("127.0.0.1", 0)) as server, dev.expose(server.getsockname()[1]) as exposed:
            with socket.create_connection((exposed.host, exposed.port)) as client:
                served, _ = server.accept()
                with served:
                    served.sendall(b"hello")
                    assert client.recv(5) == b"hello"
                assert client.recv(1) == b""
            assert exposed.url.endswith(f":{exposed.port}")
        dev.stop(force=True)
    kill_all_at(tmp_path)


async def test_a_guest_that_resets_itself_ends_what_is_run_in_it(tmp_path):
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    enter(tmp_path, policy=Policy.ALWAYS)
    scripts = ["kill -9 $PPID; cat", "kill -9 $PPID & yes", "(kill -9 $PPID) & cat >/dev/null"]
    async with aio.Machine("dev", config=config) as dev, asyncio.timeout(100):
        for script in scripts:
            await dev.start()
            runs = [dev.run(["sleep", "60"]), dev.run(["sh", "-c", script], input=bytes(3_000_000))]
            for outcome in await asyncio.gather(*runs, return_exceptions=True):
                assert isinstance(outcome, StateError), outcome
        await dev.start()
        running = asyncio.create_task(dev.run(["sleep", "60"]))
        while not await dev.processes():  # noqa: ASYNC110 - only asking again tells
            await asyncio.sleep(0.01)
        await dev.control.agent.poweroff(reboot=True)
        with pytest.raises(StateError, match="rebooted"):
            await running
        await dev.start()
        await dev.stop(force=True)
    kill_all_at(tmp_path)
