"""What cannot be cut off comes to its end, however often its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from atoll.patience import in_thread, to_its_end

pytestmark = pytest.mark.anyio


async def test_one_who_is_cancelled_several_times_still_waits():
    over, dropped = asyncio.Event(), []

    async def work():
        await over.wait()
        return "made"

    task = asyncio.create_task(to_its_end(work(), unwanted=dropped.append))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    over.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dropped == ["made"]


async def test_what_fails_unwanted_is_not_told_of():
    async def work():
        await asyncio.sleep(0)
        raise KeyError

    task = asyncio.create_task(to_its_end(work(), unwanted=lambda _: pytest.fail("nothing was made")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(KeyError):
        await to_its_end(work())


async def test_a_thread_is_told_that_nobody_wants_its_work():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work(ended):
        loop.call_soon_threadsafe(begun.set)
        assert ended.wait(10)
        seen.append(True)

    seen = []
    task = asyncio.create_task(in_thread(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [True]
