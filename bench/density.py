"""Many sandboxes: how fast they come and go, how many there can be, what one costs that does nothing.

``Anonymous`` is what a clone alone has written (proc(5), ``smaps_rollup``), so what one more costs. Pss adds
its part of what several share. With transparent huge pages, for which QEMU asks, it is more: both are told.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections import Counter
from pathlib import Path

import common

from atoll import aio

MIB = 1 << 20
HUNDRED = 100

#: How many of them at once.
AT_ONCE = (2, 4, 8)

#: Seconds in which an idle sandbox is watched, after it has come to rest.
WATCHED = 5.0

#: prctl(2)
PR_SET_THP_DISABLE = 41

#: What a pool's sandboxes have run before they are claimed.
WARM_UP = (["true"], ["/bin/sh", "-c", "true"])


def hundred(runs: int) -> None:
    """A hundred sandboxes in all, few at once; then a hundred at once."""
    print(f"hundred: {HUNDRED} sandboxes started, used and removed")
    for at_once in AT_ONCE[:runs]:
        took, each = asyncio.run(_in_all(at_once))
        common.line(f"{at_once} at once: start to the end of true", each)
        common.verdict(f"{HUNDRED} in all, {at_once} at once, seconds", took, 20.0)
    asyncio.run(_at_once())


async def _in_all(at_once: int) -> tuple[float, list[float]]:
    room = asyncio.Semaphore(at_once)
    each = []

    async def one() -> None:
        async with room:
            began = time.perf_counter()
            async with aio.Sandbox("debian") as box:
                await box.run(["true"], check=True)
                each.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(HUNDRED):
            tasks.create_task(one())
    return time.perf_counter() - began, each


async def _at_once() -> None:
    """All of them there at the same time, each of which answers."""
    room = asyncio.Semaphore(4)
    boxes: list[aio.Sandbox] = []

    async def one() -> None:
        box = aio.Sandbox("debian")
        async with room:
            await box.open()
        boxes.append(box)

    before = _available()
    began = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(HUNDRED):
                tasks.create_task(one())
        took = time.perf_counter() - began
        await asyncio.sleep(10)
        pids = [box.vm.pid for box in boxes]
        anonymous, pss = (sum(_memory(pid)[kind] for pid in pids) for kind in ("Anonymous", "Pss"))
        counts = [_counters(pid) for pid in pids]
        await asyncio.sleep(WATCHED)
        cpu = sum((_counters(pid) - count)["nanoseconds"] for pid, count in zip(pids, counts, strict=True))
        used = before - _available()
        began = time.perf_counter()
        results = await asyncio.gather(*(box.run(["echo", "here"]) for box in boxes))
        answered = time.perf_counter() - began
        print(f"  {HUNDRED} there at once: started in {took:.1f} s, all ran a command in {answered:.1f} s")
        own, part, less = (size / HUNDRED / 1e6 for size in (anonymous, pss, used))
        print(f"  of each: Anonymous {own:.1f} MB, Pss {part:.1f} MB; the host has {less:.1f} MB less")
        common.verdict(f"{HUNDRED} idle sandboxes, CPU in percent of one", cpu / 1e9 / WATCHED * 100, 5.0)
        good = sum(result.stdout == "here\n" for result in results)
        common.verdict("sandboxes that answered", good, HUNDRED, at_most=False)
    finally:
        await asyncio.gather(*(box.close() for box in boxes))


def idle(runs: int) -> None:
    """What a clone costs that does nothing."""
    print("idle: a clone that nobody has used, and one that a pool keeps")
    for huge in (True, False):
        policy = "as the host has them" if huge else "off"
        with _huge_pages(on=huge):
            fresh, pooled = asyncio.run(_sizes(max(3, runs // 2)))
        median = common.line(f"Anonymous, huge pages {policy}", fresh, "MB", 1)
        common.line(f"Anonymous of a pool's, huge pages {policy}", pooled, "MB", 1)
    common.verdict("idle clone, MB of its own, huge pages off", median, 25.0)
    asyncio.run(_rest())


async def _sizes(count: int) -> tuple[list[float], list[float]]:
    fresh, pooled = [], []
    for _ in range(count):
        async with aio.Sandbox("debian") as box:
            await asyncio.sleep(1)
            fresh.append(_memory(box.vm.pid)["Anonymous"] / 1e6)
            for argv in WARM_UP:
                await box.run(argv)
            await box.pause()
            pooled.append(_memory(box.vm.pid)["Anonymous"] / 1e6)
    return fresh, pooled


async def _rest() -> None:
    """Wake-ups and CPU time of one, soon after its last command and when it has come to rest."""
    async with aio.Sandbox("debian") as box:
        await box.run(["true"])
        for after in (2, 8):
            await asyncio.sleep(after)
            before = _counters(box.vm.pid)
            await asyncio.sleep(WATCHED)
            counted = _counters(box.vm.pid) - before
            print(f"  {after} s after: {counted['switches'] / WATCHED:.1f} context switches a second")
        busy = counted["nanoseconds"] / WATCHED / 1e6
        common.verdict("idle clone, ms of CPU a second", busy, 1.0)


class _huge_pages:  # noqa: N801 - reads as the context that it is
    """A context whose children have transparent huge pages, or none (prctl(2))."""

    def __init__(self, *, on: bool) -> None:
        self._on = on

    def __enter__(self) -> None:
        self._set(off=not self._on)

    def __exit__(self, *_: object) -> None:
        self._set(off=False)

    def _set(self, *, off: bool) -> None:
        assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, int(off), 0, 0, 0) == 0


def _memory(pid: int) -> dict[str, int]:
    """Bytes by the names of ``smaps_rollup``."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}


def _counters(pid: int) -> Counter[str]:
    """Context switches and CPU time of the threads that are there."""
    counted: Counter[str] = Counter()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        lines = thread.joinpath("status").read_text().splitlines()
        counted["switches"] += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
        counted["nanoseconds"] += int(thread.joinpath("schedstat").read_text().split()[0])
    return counted


def _available() -> int:
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("MemAvailable:")[2].split()[0]) << 10
