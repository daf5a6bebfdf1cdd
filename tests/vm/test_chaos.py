"""Random commands from several processes at once, and random kills; afterwards everything is as it says.

``make chaos`` runs it for as long as it is told to, with another seed each time; a failure prints the seed.
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

import chaos
import pytest
from machines import KILL, hosted_spec, is_stopped, kill_all_at, processes_at, until

from atoll import process, store
from atoll.errors import AtollError
from atoll.image import disk
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.vm.state import Phase

SECONDS = float(os.environ.get("CHAOS_SECONDS", "5"))
SEED = int(os.environ.get("CHAOS_SEED", "3"))

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(SECONDS * 3 + 180)]


class Run:
    """Several processes at work on the same machines, and somebody who kills."""

    def __init__(self, data: Path, cache: Path, kind: str, *, workers: int, names: tuple[str, ...]):
        self.config = chaos.settings(data, cache)
        self.kind = kind
        self.data = data
        self.cache = cache
        self.names = names
        self.chance = random.Random(f"{kind} {SEED}")
        self.until = 0.0
        self.ends = Counter()
        self.killed = Counter()
        self.failures = []
        self._workers = workers

    async def go(self, seconds: float):
        """Work and kill for so long."""
        self.until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._work())
            tasks.create_task(self._kill_vms_and_supervisors())

    async def _work(self):
        """One process after another, each of which is killed in the middle of something."""
        number = 0
        while (left := self.until - time.monotonic()) > 0.5:
            number += 1
            words = [
                str(self.data),
                str(self.cache),
                self.kind,
                str(self.chance.getrandbits(32)),
                f"{left:.1f}",
            ]
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                chaos.__file__,
                *words,
                *self.names,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(Path(chaos.__file__).parent)},
            )
            doom = asyncio.create_task(self._kill_later(child))
            out, error = await child.communicate()
            doom.cancel()
            self._note(out.decode(), error.decode(), child.returncode)

    async def _kill_later(self, child):
        await asyncio.sleep(self.chance.uniform(0.6, 6.0) * (1 if self.kind == "fake" else 4))
        child.kill()
        self.killed["command"] += 1

    def _note(self, out, error, status):
        for line in out.splitlines():
            words = line.split(" ")
            if len(words) > 2:  # the last line of one that was killed may be cut short
                self.ends[f"{words[0]} {words[2]}"] += 1
        if status not in {0, -KILL} or (error.strip() and status == 0):
            self.failures.append(f"status {status}\n{out[-500:]}\n{error[-4000:]}")

    async def _kill_vms_and_supervisors(self):
        pause = 0.4 if self.kind == "fake" else 3.0
        while time.monotonic() < self.until:
            await asyncio.sleep(self.chance.expovariate(1 / pause))
            for name in self.names:
                place = self.config.paths.machine(name)
                if self.chance.random() < 0.4:
                    victims = await asyncio.to_thread(processes_at, place.directory)
                    victims = {pid: line for pid, line in victims.items() if "chaos.py" not in line}
                    if victims and self.chance.random() < 0.8:
                        victims = {pid: victims[pid] for pid in [self.chance.choice(list(victims))]}
                    for pid, line in victims.items():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, KILL)
                            self.killed["supervisor" if "supervise" in line else "hypervisor"] += 1

    async def check(self):
        """Everything is as it says, can be ended, and leaves nothing."""
        assert not self.failures, f"seed {SEED}\n" + "\n".join(self.failures)
        for log in self.config.paths.machines.glob("*/logs/supervisor.log"):
            assert "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")[-4000:]
        await self._let_supervisors_leave()
        for entry in registry.listed(self.config.paths):
            assert entry.error is None, (entry.name, entry.error)
            await self._compare(entry.name)
        for entry in registry.listed(self.config.paths):
            async with Machine(entry.name, config=self.config) as machine:
                async with asyncio.timeout(60):
                    await machine.stop(force=True)
                assert not machine.state.active
        for entry in registry.listed(self.config.paths):
            with registry.at_rest(entry.machine, "looked at"):
                disk.check(entry.machine.place.data)
                sockets = [path.name for path in entry.machine.place.directory.glob("*.sock")]
                assert sockets == [] or entry.machine.state.phase is Phase.FAILED, (entry, sockets)
            with registry.change(self.config.paths, entry.name) as machine:
                registry.forget(self.config.paths, machine)
        await self._nothing_is_left()

    async def _let_supervisors_leave(self):
        """A machine with a VM may have lost its supervisor; the first who asks brings another one."""
        for entry in registry.listed(self.config.paths):
            if entry.machine is not None and entry.machine.state.active:
                async with Machine(entry.name, config=self.config) as machine:
                    with contextlib.suppress(AtollError):
                        async with asyncio.timeout(60):
                            await machine.connect()
                            await machine.control.wait_for(*(set(Phase) - {Phase.STARTING, Phase.STOPPING}))

        def leaving():
            return [
                entry.name
                for entry in registry.listed(self.config.paths)
                if entry.machine.supervised and not entry.machine.state.active
            ]

        await until(lambda: not leaving(), within=60, what="supervisors of machines at rest stay")

    async def _settled(self, name):
        """The machine, once its supervisor has written down what befell it in the last moment."""

        def settled():
            machine = registry.find(self.config.paths, name)
            transient = machine.state.phase in {Phase.STARTING, Phase.STOPPING}
            told = store.is_held(machine.place.vm_lock) is machine.state.active
            return machine if told and not transient else None

        return await until(settled, within=60, what=f"{name} is not what it says")

    async def _compare(self, name):
        """The record and what really is.

        A guest that was told to power off by a command that was then killed may go at any moment still, and a
        hypervisor that ends holds its lock until the last of its threads is gone: what does not fit is looked
        at again. What is wrong for good stays wrong.
        """
        deadline = time.monotonic() + 60
        while True:
            machine = await self._settled(name)
            try:
                await self._compare_once(machine)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                return

    async def _compare_once(self, machine):
        state = machine.state
        if not state.active:
            return
        assert machine.supervised
        assert process.identify(state.vm.pid) == state.vm
        if self.kind == "fake":
            assert is_stopped(state.vm.pid) is (state.phase is Phase.PAUSED), state
        async with Machine(machine.name, config=self.config) as named, asyncio.timeout(60):
            if state.phase is Phase.PAUSED:
                await named.resume()
            await named.connect()
            assert (await named.run(["echo", "here"])).stdout == "here\n"

    async def _nothing_is_left(self):
        machines = self.config.paths.machines
        for partial in machines.glob(".partial-*"):  # of a command that was killed: the next one sweeps it
            os.utime(partial, (0, 0))
        registry.add(self.config.paths, "last", hosted_spec(), lambda place: place.data.touch())
        with registry.change(self.config.paths, "last") as machine:
            registry.forget(self.config.paths, machine)
        assert os.listdir(machines) == []
        # A supervisor has given its lock back some moments before its process is gone.
        await until(lambda: not processes_at(self.data), within=60, what=f"{processes_at(self.data)} stay")


@pytest.fixture
def report(capsys):
    """Say in the test's output what was done."""

    def tell(run):
        with capsys.disabled():
            done = sum(run.ends.values())
            succeeded = sum(count for end, count in run.ends.items() if end.endswith(" ok"))
            killed = ", ".join(f"{count} {what}s" for what, count in sorted(run.killed.items()))
            print(f"\n  {run.kind}: seed {SEED}, {done} commands ({succeeded} succeeded); killed: {killed}")  # noqa: T201
            if "CHAOS_SECONDS" in os.environ:
                print("  " + ", ".join(f"{end} {count}" for end, count in sorted(run.ends.items())))  # noqa: T201

    return tell


async def test_machines_of_the_fake_hypervisor_survive_chaos(tmp_path, report):
    disk.make(tmp_path / chaos.TEMPLATE, disk.SMALLEST)
    run = Run(tmp_path, tmp_path / "cache", "fake", workers=3, names=("a-x", "b-x", "c-x", "a-y", "b-z"))
    try:
        await run.go(SECONDS)
        report(run)
        await run.check()
    finally:
        kill_all_at(tmp_path)


@pytest.mark.vm
async def test_real_machines_survive_chaos(tmp_path, paths, config, report):
    from atoll import runtime
    from atoll.image import catalog

    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    runtime.candidate(config, runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    run = Run(tmp_path, paths.cache, "qemu", workers=2, names=("a-x", "b-x"))
    try:
        await run.go(SECONDS)
        report(run)
        await run.check()
    finally:
        kill_all_at(tmp_path)
