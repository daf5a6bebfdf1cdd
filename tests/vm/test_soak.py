"""Many sandboxes, several at once, some of them killed; afterwards nothing of them is left.

``make soak`` starts 1,000 or ``SOAK`` of them; a failure prints the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from builds import take_image, take_kernel
from traces import memory, traces

from atoll import aio
from atoll.config import load
from atoll.errors import AtollError
from atoll.hypervisor import confinement
from atoll.paths import Paths

COUNT = int(os.environ.get("SOAK", "12"))
SEED = int(os.environ.get("SOAK_SEED", "1"))

#: How many are at work at once.
WORKERS = 4

#: By how much this process may grow while the second half of the sandboxes comes and goes, bytes.
GROWTH = 8 << 20

KILL = 9
ATOLL = str(Path(sys.executable).parent / "atoll")

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(60 + 3 * COUNT)]


class Soak:
    """Sandboxes that are used, forked, claimed, killed, cancelled and lost with their program, by chance."""

    def __init__(self, config, environment):
        self.chance = random.Random(SEED)
        self.done = Counter()
        self.memory = []
        self.lost = []
        self._config = config
        self._environment = environment
        self._left = COUNT
        self._ways = [
            *[self.use] * 5,
            *[self.fork] * 1,
            *[self.claim] * 2,
            *[self.kill] * 2,
            *[self.cancel] * 1,
            *[self.lose] * 1,
        ]

    async def go(self, count):
        self._left = count
        async with aio.Pool("debian", size=1, config=self._config) as self.pool, asyncio.TaskGroup() as tasks:
            for _ in range(WORKERS):
                tasks.create_task(self._work())

    async def each_way_once(self):
        async with aio.Pool("debian", size=1, config=self._config) as self.pool:
            for way in dict.fromkeys(self._ways):
                await way()

    async def _work(self):
        while self._left > 0:
            self._left -= 1
            way = self.chance.choice(self._ways)
            await way()
            self.done[way.__name__] += 1
            self.memory.append(memory())

    def _sandbox(self):
        return aio.Sandbox("debian", config=self._config)

    async def use(self):
        async with self._sandbox() as box:
            await box.files.write("/root/file", b"content" * 1000)
            assert (await box.run(["cat", "/root/file"], check=True)).stdout == "content" * 1000

    async def fork(self):
        async with self._sandbox() as box, contextlib.AsyncExitStack() as copies:
            for copy in await box.fork(self.chance.randint(1, 2)):
                copies.push_async_callback(copy.close)
                assert (await copy.run(["echo", "here"])).stdout == "here\n"

    async def claim(self):
        box = await self.pool.claim()
        try:
            assert (await box.run(["echo", "here"])).stdout == "here\n"
        finally:
            await box.close()

    async def kill(self):
        """The hypervisor is killed while its guest is at work."""
        async with self._sandbox() as box:
            working = asyncio.create_task(box.run(["sleep", "100"]))
            await asyncio.sleep(self.chance.uniform(0, 0.2))
            os.kill(box.vm.pid, KILL)
            with pytest.raises(AtollError):
                await working

    async def cancel(self):
        """The program thinks better of it while its sandbox starts."""
        box = self._sandbox()
        starting = asyncio.create_task(box.open())
        await asyncio.sleep(self.chance.uniform(0, 0.2))
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        await box.close()

    async def lose(self):
        """The program is killed that has the sandbox."""
        argv = [ATOLL, "run", "debian", "--", "sleep", "100"]
        child = await asyncio.create_subprocess_exec(
            *argv, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        self.lost.append(child.pid)
        await asyncio.sleep(self.chance.uniform(0.05, 0.5))
        child.kill()
        await child.wait()


async def left_of(before, directories, owners):
    """What is there that was not, once what ends by itself had time to, and what a launch sweeps is swept."""
    deadline = time.monotonic() + 60
    while left := traces(*directories, owners=owners) - before:
        confinement.sweep()
        if time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.05)
    return set()


@pytest.fixture
def own(tmp_path_factory, config):
    """Settings with directories that nobody else changes, and what is built already."""
    place = tmp_path_factory.mktemp("soak")
    paths = Paths(data=place, cache=place)
    take_kernel(config.paths, paths)
    take_image(config.paths, paths, "debian")
    return load({"data_dir": place, "cache_dir": place}, environment={}, files=()).config


async def test_of_many_sandboxes_nothing_is_left(own, environment, capsys):
    directories = (own.data_dir,)
    places = {"ATOLL_DATA_DIR": str(own.data_dir), "ATOLL_CACHE_DIR": str(own.cache_dir)}
    soak = Soak(own, {**environment, **places, "TEST_RUN": os.environ["TEST_RUN"]})
    await soak.each_way_once()  # threads, templates and modules that are made once
    before = traces(*directories)
    began = time.monotonic()
    await soak.go(COUNT)
    elapsed = time.monotonic() - began
    with capsys.disabled():
        ways = ", ".join(f"{way} {count}" for way, count in sorted(soak.done.items()))
        sizes = f"{soak.memory[COUNT // 2] >> 20} MiB after half, {soak.memory[-1] >> 20} MiB at the end"
        print(f"\n  seed {SEED}, {COUNT} sandboxes in {elapsed:.1f} s: {ways}; {sizes}")  # noqa: T201
    assert await left_of(before, directories, soak.lost) == set(), f"seed {SEED}"
    assert soak.memory[-1] - soak.memory[COUNT // 2] < GROWTH, f"seed {SEED}"
