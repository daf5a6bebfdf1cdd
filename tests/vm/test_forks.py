"""Copies of running sandboxes, and pools of them that stand ready."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from msgspec.structs import replace

import atoll
from atoll import aio
from atoll.errors import UsageError
from atoll.events import VmExited, VmForked, VmSpawned, Warned

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

#: Counts in the background, and tells who it is.
COUNTER = "setsid sh -c 'while sleep 0.05; do echo x >> /tmp/count; done' > /dev/null 2>&1 &"
IDENTITY = "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"
#: Counts what was counted, and then is busy for longer than a guest goes on that is copied once more while it
#: is paused.
LONG = "cat /tmp/count | wc -l; i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done"


async def count(box):
    result = await box.run(["sh", "-c", "cat /tmp/count | wc -l"], check=True)
    return int(result.stdout)


async def has_the_time(box):
    before = time.time()
    shown = float((await box.run(["date", "+%s.%N"], check=True)).stdout)
    assert before - 0.2 < shown < time.time() + 0.2


async def counts_on(box):
    before = await count(box)
    while await count(box) == before:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(0.05)


@pytest.mark.usefixtures("no_leftovers")
async def test_copies_have_memory_processes_and_files_and_go_on_apart(config):
    events = []
    async with aio.Sandbox("debian", config=config, env={"WHO": "me"}, on_event=events.append) as box:
        await box.run(["sh", "-c", f"head -c 5000000 /dev/urandom > /root/big; {COUNTER}"], check=True)
        digest = (await box.run(["sha256sum", "/root/big"])).stdout
        copies = await box.fork(2)
        try:
            everyone = [box, *copies]
            assert len({each.name for each in everyone}) == 3
            results = await asyncio.gather(*(each.run(["sha256sum", "/root/big"]) for each in everyone))
            assert [result.stdout for result in results] == [digest] * 3
            await asyncio.gather(*(counts_on(each) for each in everyone))
            who = await asyncio.gather(*(each.run(["sh", "-c", IDENTITY], check=True) for each in everyone))
            told = [result.stdout.splitlines() for result in who]
            assert [lines[0] for lines in told] == [each.name for each in everyone]
            assert len({lines[1] for lines in told}) == 3
            assert len({lines[2] for lines in told}) == 3
            assert (await copies[0].run(["sh", "-c", "echo $WHO"])).stdout == "me\n"
            await copies[0].run(["sh", "-c", "echo mine > /root/own"], check=True)
            assert (await box.run(["test", "-e", "/root/own"])).code == 1
            assert (await copies[1].run(["test", "-e", "/root/own"])).code == 1
        finally:
            await asyncio.gather(*(copy.close() for copy in copies))
        assert (await box.run(["echo", "still"])).stdout == "still\n"
    forked = [event for event in events if isinstance(event, VmForked)]
    assert [event.children for event in forked] == [tuple(copy.name for copy in copies)]
    assert 0 < forked[0].stopped < 5


@pytest.mark.usefixtures("no_leftovers")
async def test_copies_can_be_copied_and_so_can_what_was_booted_and_what_has_more_memory(config):
    for options in ({"cold": True}, {"memory": "1G"}):
        async with aio.Sandbox("debian", config=config, **options) as box:
            await box.run(["sh", "-c", "echo deep > /root/deep"], check=True)
            [child] = await box.fork()
            async with child:
                [grandchild] = await child.fork()
                await child.close()
                async with grandchild:
                    assert (await grandchild.run(["cat", "/root/deep"])).stdout == "deep\n"
                    assert (await grandchild.info()).memory_total == (await box.info()).memory_total


@pytest.mark.usefixtures("no_leftovers")
async def test_a_command_that_runs_while_its_sandbox_is_copied_goes_on(config):
    async with aio.Sandbox("debian", config=config) as box:
        running = asyncio.create_task(box.run(["sh", "-c", "seq 200000; sleep 0.5; echo end"]))
        await asyncio.sleep(0.1)
        [copy] = await box.fork()
        await copy.close()
        result = await running
        assert result.code == 0
        assert result.stdout.endswith("200000\nend\n")


@pytest.mark.usefixtures("no_leftovers")
async def test_a_fork_that_is_cancelled_or_fails_leaves_no_copy_and_the_sandbox_goes_on(config):
    spawned = []

    def on_event(event):
        if isinstance(event, VmSpawned):
            spawned.append(event.pid)
            if len(spawned) == 3:
                os.kill(event.pid, signal.SIGKILL)  # one of the copies

    async with aio.Sandbox("debian", config=config, on_event=on_event) as box:
        with pytest.raises(UsageError) as none:
            await box.fork(0)
        assert none.value.code == "usage.fork"
        with pytest.raises(atoll.AtollError):
            await box.fork(2)
        assert (await box.run(["echo", "here"])).stdout == "here\n"
        forking = asyncio.create_task(box.fork(1))
        await asyncio.sleep(0.02)
        forking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forking
        assert (await box.run(["echo", "here"])).stdout == "here\n"


@pytest.mark.usefixtures("no_leftovers")
async def test_a_paused_sandbox_stands_still_and_its_clock_is_right_after(config):
    async with aio.Sandbox("debian", config=config) as box:
        await box.run(["sh", "-c", COUNTER], check=True)
        await counts_on(box)
        counted = await count(box)
        await box.pause()
        pending = asyncio.create_task(box.run(["sh", "-c", LONG], check=True))
        done, _ = await asyncio.wait([pending], timeout=1.0)
        assert not done
        [copy] = await box.fork()  # which goes on, while this one does not
        async with copy:
            await counts_on(copy)
        [again] = await box.fork()
        await again.close()
        done, _ = await asyncio.wait([pending], timeout=0.2)
        assert not done
        await box.resume()
        assert int((await pending).stdout) < counted + 15
        await has_the_time(box)
        await counts_on(box)


@pytest.mark.usefixtures("no_leftovers")
async def test_a_pool_gives_out_sandboxes_that_are_up_and_fills_again(config):
    async with aio.Pool("debian", size=2, config=config, env={"A": "b"}) as pool:
        await pool.filled()
        boxes = [await pool.claim() for _ in range(2)]
        try:
            who = [(await box.run(["sh", "-c", IDENTITY], check=True)).stdout.splitlines() for box in boxes]
            assert who[0][0] == boxes[0].name
            assert all(one != other for one, other in zip(*who, strict=True))
            assert (await boxes[0].run(["sh", "-c", "echo $A"])).stdout == "b\n"
            await has_the_time(boxes[1])
            await pool.filled()
            assert pool.ready == 2
        finally:
            await asyncio.gather(*(box.close() for box in boxes))


@pytest.mark.usefixtures("no_leftovers")
async def test_a_pool_that_is_empty_makes_one_and_one_that_died_is_not_given_out(config):
    spawned = []

    def on_event(event):
        if isinstance(event, VmSpawned):
            spawned.append(event.pid)

    async with aio.Pool("debian", size=1, config=config, on_event=on_event) as pool:
        async with await pool.claim() as box:  # at once
            assert (await box.run(["echo", "new"])).stdout == "new\n"
        await pool.filled()
        for pid in spawned:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        async with await pool.claim() as box:
            assert (await box.run(["echo", "newer"])).stdout == "newer\n"


@pytest.mark.usefixtures("no_leftovers")
async def test_of_a_claim_that_is_cancelled_nothing_is_left_before_the_pool_is(config):
    closed = []

    def on_event(event):
        if isinstance(event, VmExited):
            closed.append(event.vm)

    async with aio.Pool("debian", size=1, config=config, on_event=on_event) as pool:
        await pool.filled()
        claiming = asyncio.create_task(pool.claim())
        await asyncio.sleep(0)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        assert len(closed) == 1
        await pool.filled()


@pytest.mark.usefixtures("no_leftovers")
async def test_a_pool_whose_sandboxes_cannot_be_made_says_so_and_ends(config):
    warnings = []

    def on_event(event):
        if isinstance(event, Warned):
            warnings.append(event.message)
            told.set()

    told = asyncio.Event()
    nowhere = replace(config, default_registry="localhost:1")
    async with aio.Pool("nonsuch", size=1, config=nowhere, on_event=on_event) as pool:
        async with asyncio.timeout(60):
            await told.wait()
        with pytest.raises(atoll.RegistryError):
            await pool.claim()
    assert "localhost:1" in warnings[0]


def test_pools_and_forks_without_an_event_loop(config):
    with atoll.Pool("debian", size=1, config=config) as pool:
        pool.filled()
        with pool.claim() as box:
            box.run(["sh", "-c", "echo 1 > /root/one"], check=True)
            [copy] = box.fork()
            with copy:
                assert copy.run(["cat", "/root/one"]).stdout == "1\n"
                assert copy.name != box.name


def test_a_pool_of_none_is_refused():
    with pytest.raises(UsageError) as caught:
        aio.Pool("debian", size=0)
    assert caught.value.code == "usage.pool"
