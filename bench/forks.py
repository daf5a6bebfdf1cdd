"""Starts that are forks: clones of a template, claims from a pool, live forks, and the whole command.

Each round takes one sample of everything, so that changes of the host's speed meet all of them. The column
"host only" adds up what executes no instruction of a guest: QEMU's restore to its RESUME event, measured raw,
and the CPU time of this program. It is what a host with KVM would still have to wait for; a guest's own
milliseconds are not in it, and KVM was not run.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import common
import restoring

import atoll
from atoll import aio, runtime
from atoll.config import load
from atoll.events import ignore
from atoll.hypervisor.qemu.backend import QemuVm
from atoll.vm.forking import fork
from atoll.vm.life import Vm
from atoll.vm.spawning import Clone, Spawned, spawn_clone

ATOLL = str(Path(sys.executable).parent / "atoll")
TRUE = ["true"]

#: What the guest that is forked has written since it was started.
DIRTY = "head -c 50000000 /dev/urandom > /root/dirty"

#: Cold starts are slow, and vary less in proportion.
COLD_EVERY = 10


class Samples(defaultdict[str, list[float]]):
    """Milliseconds, by what took them."""

    def __init__(self) -> None:
        super().__init__(list)

    def took(self, name: str, began: float) -> None:
        """Something that began then is over now."""
        self[name].append((time.perf_counter() - began) * 1e3)

    def busy(self, name: str, began: float) -> None:
        """This program's CPU time since ``began``."""
        self[name].append((time.process_time() - began) * 1e3)

    def median(self, name: str) -> float:
        """The middle one."""
        return statistics.median(self[name])


def starts(runs: int) -> None:
    """From a spawn, a call or a claim to what was asked for."""
    start = restoring.frozen(load().config)
    samples = Samples()
    print(f"starts: {start.machine.accelerator}, {start.template.manifest.memory >> 20} MiB template")
    with asyncio.Runner() as runner:
        for number in range(5 * runs + 1):
            if number == 1:
                samples.clear()  # the first round fills caches
            samples["version"].append(restoring.version_once(start.host.program) * 1e3)
            samples["restore"].append(restoring.restore_once(start) * 1e3)
            runner.run(_clone(start, samples))
            runner.run(_aio(samples, "aio"))
            _blocking(samples)
            _command(samples, "command")
            if number % COLD_EVERY == 1:
                runner.run(_cold(samples))
                runner.run(_aio(samples, "aio, cold", cold=True))
                _command(samples, "command, cold", "--cold")
        runner.run(_claims(samples, 5 * runs))
    _print_starts(samples)


async def _clone(start: restoring.Frozen, samples: Samples) -> None:
    """What is below the library's door: no configuration, no look at what is cached."""
    recipe, template = start.recipe, start.template
    clone = Clone(template.manifest.name, template.place.state, template.manifest.memory)
    began, busy = time.perf_counter(), time.process_time()
    async with Vm(spawn_clone(recipe.hypervisor, start.machine, clone, ignore), ignore) as vm:
        await vm.attach().ready()
        samples.took("clone", began)
        samples.busy("clone, host", busy)


async def _cold(samples: Samples) -> None:
    config = load({"cold": True}).config
    began = time.perf_counter()
    async with Vm(runtime.launch(config, "bench", "debian"), ignore) as vm:
        await vm.attach().ready()
        samples.took("clone, cold", began)


async def _aio(samples: Samples, name: str, **options: Any) -> None:
    began, busy = time.perf_counter(), time.process_time()
    async with aio.Sandbox("debian", **options) as box:
        samples.took(f"{name}, up", began)
        await box.run(TRUE, check=True)
        samples.took(name, began)
        samples.busy(f"{name}, host", busy)
        closing = time.perf_counter()
    samples.took(f"{name}, close", closing)


def _blocking(samples: Samples) -> None:
    began, busy = time.perf_counter(), time.process_time()
    with atoll.Sandbox("debian") as box:
        box.run(TRUE, check=True)
        samples.took("blocking", began)
        samples.busy("blocking, host", busy)


def _command(samples: Samples, name: str, *options: str) -> None:
    """The installed command; what it does before its guest runs and after its command ended is the host's."""
    argv = [ATOLL, "run", "-v", *options, "debian", "--", *TRUE]
    began = time.perf_counter()
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    spawned = ended = began
    for line in child.stderr:
        if b": process " in line:
            spawned = time.perf_counter()
            samples.took(f"{name}, to the spawn", began)
        elif b": command ended" in line:
            ended = time.perf_counter()
            samples.took(f"{name}, in the guest", spawned)
    assert child.wait() == 0
    samples.took(f"{name}, after its end", ended)
    samples.took(name, began)


async def _claims(samples: Samples, count: int) -> None:
    """Claims from a pool that is full; it makes the next sandbox meanwhile."""
    async with aio.Pool("debian", size=2) as pool:
        for _ in range(count):
            await pool.filled()
            began, busy = time.perf_counter(), time.process_time()
            box = await pool.claim()
            samples.took("claim", began)
            samples.busy("claim, host", busy)
            await box.run(TRUE, check=True)
            samples.took("claim, true", began)
            samples.busy("claim, true, host", busy)
            await box.close()


def _print_starts(samples: Samples) -> None:
    limit, restore = samples.median("version"), samples.median("restore")
    common.line("limit: qemu --version", samples["version"], "ms", 1)
    common.line("limit: raw QEMU restore, spawn to RESUME", samples["restore"], "ms", 1)
    print(f"    restore / --version: {restore / limit:.2f}")
    table = common.Table("host only")
    for name, key, cold, target in (
        ("spawn to a clone's first answer", "clone", "clone, cold", 60),
        ("Sandbox().run(true), aio", "aio", "aio, cold", 120),
        ("Sandbox().run(true), blocking", "blocking", "aio, cold", 120),
    ):
        host = restore + samples.median(f"{key}, host")
        table.row(name, samples[key], target, limit=restore, cold=samples.median(cold), extra=host)
    host = samples.median("command, to the spawn") + restore + samples.median("command, after its end")
    cold = samples.median("command, cold")
    table.row("atoll run debian -- true", samples["command"], 250, limit=restore, cold=cold, extra=host)
    for name, key, target in (
        ("claim from a pool, to up", "claim", 15),
        ("claim from a pool, to the end of true", "claim, true", None),
    ):
        cold = samples.median("aio, cold, up" if key == "claim" else "aio, cold")
        table.row(name, samples[key], target, cold=cold, extra=samples.median(f"{key}, host"))
    for name in ("aio, up", "aio, close", *(key for key in samples if key.startswith("command, "))):
        common.line(f"part: {name}", samples[name], "ms", 1)


def forking(runs: int) -> None:
    """Two copies of a sandbox that runs and has written 50 MB."""
    samples = Samples()
    asyncio.run(_forking(samples, 5 * runs))
    print("forks: a running 512 MiB sandbox with 50 MB written, to two copies")
    table = common.Table("host only")
    host = samples.median("resumed")
    table.row("fork to both copies' first answers", samples["answered"], 300, limit=host, extra=host)
    table.row("the original stands still", samples["stopped"], None)


async def _forking(samples: Samples, count: int) -> None:
    async with aio.Sandbox("debian", memory="512M") as box:
        await box.run(["sh", "-c", DIRTY], check=True)
        for number in range(count + 1):
            if number == 1:
                samples.clear()
            await _fork(box, samples, "answered", _answered)
            await _fork(box, samples, "resumed", _resumed)


async def _fork(
    box: aio.Sandbox, samples: Samples, name: str, until: Callable[[Spawned, Vm], Awaitable[object]]
) -> None:
    began = time.perf_counter()
    forked = await fork(box.vm, ["copy-1", "copy-2"], ignore)
    vms = [Vm(child, ignore) for child in forked.children]
    try:
        await asyncio.gather(*(until(*pair) for pair in zip(forked.children, vms, strict=True)))
        samples.took(name, began)
        samples["stopped"].append(forked.stopped * 1e3)
    finally:
        await asyncio.gather(*(vm.close() for vm in vms))


async def _answered(_: Spawned, vm: Vm) -> None:
    await vm.attach().ready()


async def _resumed(child: Spawned, _: Vm) -> None:
    monitor = cast(QemuVm, child.vm)._qmp  # noqa: SLF001 - read raw, before a client is there
    await asyncio.to_thread(restoring.resumed, monitor)
