"""One process of the chaos test: random commands on a handful of machines, until the time is over.

``python chaos.py DATA CACHE KIND SEED SECONDS NAME...`` writes one line for each command to stdout: what it
was and how it ended. Errors that Atoll names are part of it; those that nobody foresaw end it with status 1.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import traceback
from pathlib import Path

from machines import hosted_spec

from atoll.config import Config, load
from atoll.errors import AtollError
from atoll.image import disk
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.vm.restart import Policy
from atoll.vm.state import Phase

#: Seconds after which a command that has not ended hangs, by kind.
PATIENCE = {"fake": 30.0, "qemu": 90.0}

#: Codes that no command may ever end with, whatever is killed: they say that Atoll does not know itself.
NEVER = (
    "error",
    "internal",
    "usage",
    "config",
    "protocol",
    "state.transition",
    "store.corrupt",
    "store.newer",
)

#: The disk from which those of the fake's machines are copied.
TEMPLATE = "template.img"


def settings(data: Path, cache: Path) -> Config:
    """The configuration of all processes of one run."""
    return load({"data_dir": data, "cache_dir": cache}, environment={}, files=()).config


class Commands:
    """What a process may do to a machine, each as a user would."""

    def __init__(self, config: Config, kind: str, chance: random.Random) -> None:
        self._config = config
        self._kind = kind
        self._chance = chance

    async def create(self, name: str) -> None:
        """A machine, of the fake hypervisor or real."""
        if self._kind == "qemu":
            await Machine.create(
                name,
                init="minimal",
                disk="256M",
                memory="256M",
                network=False,
                accel="tcg",
                config=self._config,
            )
            return
        spec = hosted_spec(restart=self._chance.choice(list(Policy)))
        template = self._config.data_dir / TEMPLATE
        await asyncio.to_thread(
            registry.add,
            self._config.paths,
            name,
            spec,
            lambda place: disk.copy_sparse(template, place.data),
        )

    async def start(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.start()

    async def stop(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.stop(force=self._chance.random() < 0.5, timeout=5.0)

    async def pause(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.pause()

    async def resume(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.resume()

    async def run(self, name: str) -> None:
        """A command whose output must be its own."""
        token = os.urandom(8).hex()
        where = "/var/tmp" if self._kind == "qemu" else "/nowhere"
        script = f"test -d {where} && echo {token} > {where}/{token}; echo {token}"
        async with self._machine(name) as machine:
            await machine.connect()
            result = await machine.run(["sh", "-c", script], timeout=5.0)
            assert result.stdout == f"{token}\n", result

    async def power_off(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.connect()
            await machine.control.agent.poweroff(reboot=self._chance.random() < 0.5, grace=0.1)

    async def remove(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.remove(force=self._chance.random() < 0.5)

    async def rename(self, name: str) -> None:
        def work() -> None:
            with registry.change(self._config.paths, name) as machine:
                registry.rename(self._config.paths, machine, f"{name[0]}-{self._chance.choice('xyz')}")

        await asyncio.to_thread(work)

    async def ls(self, _: str) -> None:
        """All machines: none may have a record that cannot be read."""
        for entry in await asyncio.to_thread(registry.listed, self._config.paths):
            assert entry.error is None, (entry.name, entry.error)

    async def wait(self, name: str) -> None:
        async with self._machine(name) as machine:
            await machine.wait(Phase.RUNNING, Phase.FAILED, timeout=1.0)

    def _machine(self, name: str) -> Machine:
        return Machine(name, config=self._config)


#: How often what is done, of a hundred.
WEIGHTS = {
    "create": 14,
    "start": 24,
    "stop": 8,
    "pause": 5,
    "resume": 7,
    "run": 20,
    "power_off": 4,
    "remove": 4,
    "rename": 2,
    "ls": 8,
    "wait": 4,
}


async def _main(words: list[str]) -> None:
    config, kind = settings(Path(words[0]), Path(words[1])), words[2]
    chance, until, names = random.Random(int(words[3])), time.monotonic() + float(words[4]), words[5:]
    commands = Commands(config, kind, chance)
    while time.monotonic() < until:
        what = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        name = chance.choice(names)
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE[kind]):
                await getattr(commands, what)(name)
            end = "ok"
        except AtollError as error:
            end = error.code
            if end in NEVER or end.partition(".")[0] in NEVER:
                raise
        except TimeoutError:
            end = "timeout"
            if what != "wait":
                raise
        print(what, name, end, f"{time.monotonic() - began:.3f}", flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        asyncio.run(_main(sys.argv[1:]))
    except BaseException:  # noqa: BLE001 - whoever started this looks for it
        traceback.print_exc()
        sys.exit(1)
