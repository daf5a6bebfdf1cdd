"""Snapshots of a machine with a pause and without one; its guest writes 64 MB of its memory all the while.

"stopped" is what is reported: the vCPUs stood still. "gap" is the longest time in which nothing was heard of
the program, and "in the guest" the longest between two of its steps by its own clock, which stands still
while the guest does: what a page that is protected costs it. "first" is the first one without a pause: the
host has to provide the rest of the guest's RAM, and QEMU to map it.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from atoll import aio, runtime
from atoll.config import Config
from atoll.snapshot import catalog

#: What the guest has read or written lies in its page cache.
CACHE = "head -c 300M /dev/zero | tr '\\0' x > /root/data; sync"

REPORT = "/dev/shm/gap"

#: Seconds until a guest has told which of its memory is free.
SETTLED = 5.0


async def main(config: Config, rounds: int) -> None:
    """Measure and print."""
    machine = await aio.Machine.create("bench", init="minimal", memory="512M", network=False, config=config)
    try:
        await machine.start()
        with tempfile.TemporaryDirectory() as place:
            await machine.copy_in(_compiled(Path(place)), "/root/gap")
        async with await machine.start_process(["/root/gap", "64", REPORT]) as process:
            heard = Heard(process)
            await asyncio.sleep(SETTLED)
            print("snapshots of 512 MB, medians in ms: stopped, gap, in the guest, create")
            for name, prepare in (("fresh", "true"), ("300 MB in its page cache", CACHE)):
                await machine.run(["sh", "-c", prepare], check=True)
                samples = defaultdict(list)
                for number in range(rounds + 1):
                    for pause in (True, False):
                        kind = "pause" if pause else "no pause" if number else "no pause, first"
                        samples[kind].append(await _once(machine, process, heard, config, pause=pause))
                for kind, values in samples.items():
                    middle = [statistics.median(column) for column in zip(*values, strict=True)]
                    print(f"  {name + ', ' + kind:42}" + "".join(f"{value:8.0f}" for value in middle))
            heard.task.cancel()
    finally:
        await machine.remove(force=True)
        await machine.close()


class Heard:
    """What is heard of the guest's program.

    Attributes:
        longest: time in which nothing was, seconds, since it was set to 0.
    """

    def __init__(self, process: aio.Process) -> None:
        self.longest = 0.0
        self.task = asyncio.create_task(self._listen(process))

    async def _listen(self, process: aio.Process) -> None:
        last = time.monotonic()
        async for _ in process.stdout:
            here = time.monotonic()
            self.longest = max(self.longest, here - last)
            last = here


async def _once(
    machine: aio.Machine, process: aio.Process, heard: Heard, config: Config, *, pause: bool
) -> tuple[float, ...]:
    await _slowest(machine, process)
    heard.longest = 0.0
    began = time.perf_counter()
    made = await machine.snapshot(pause=pause)
    took = time.perf_counter() - began
    gap = heard.longest
    inside = await _slowest(machine, process)
    catalog.remove(config.paths, made.id)
    assert made.manifest is not None
    return made.manifest.stopped * 1e3, gap * 1e3, inside, took * 1e3


async def _slowest(machine: aio.Machine, process: aio.Process) -> float:
    """The longest time between two steps since this was asked last, ms."""
    await machine.run(["rm", "-f", REPORT], check=True)
    await process.signal(signal.SIGUSR1)
    while True:
        text = (await machine.run(["sh", "-c", f"cat {REPORT} 2> /dev/null || true"], check=True)).stdout
        if text.endswith("\n"):
            return int(text) / 1e3


def _compiled(place: Path) -> Path:
    """The guest's program."""
    program, source = place / "gap", Path(__file__).parent / "gap.c"
    target = f"{runtime.host_architecture()}-linux-musl"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    subprocess.run([*compiler, "-O2", "-static", "-o", program, source], check=True)
    return program
