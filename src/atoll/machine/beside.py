"""A VM beside two snapshots of machines, which is up, and ends with the block that it is for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from atoll.config import Config, override
from atoll.events import Emit
from atoll.machine import comparing as machines
from atoll.patience import to_its_end
from atoll.snapshot.catalog import Snapshot
from atoll.template import falling_back
from atoll.vm.life import Vm
from atoll.vm.spawning import Spawned

__all__ = ["beside", "launched"]


async def beside(
    config: Config, name: str, snapshots: tuple[Snapshot, Snapshot], stack: AsyncExitStack, emit: Emit
) -> Vm:
    """A VM with the disks of both, which is up; a template from which it does not come up is discarded.

    Args:
        config: where snapshots are.
        name: of the VM.
        snapshots: two, which may be the same.
        stack: ends it.
        emit: told of its start.

    Raises:
        BootError: it does not come up.
        StoreError: ``store.full``: nothing can be written beside the snapshots.
    """
    spawned: list[Spawned] = []

    async def anew(settings: Config) -> Vm:
        def launch() -> Spawned:
            return machines.spawn_beside(settings, name, *snapshots, emit=emit)

        spawned.append(await launched(launch))
        return await stack.enter_async_context(Vm(spawned[-1], emit))

    async def again() -> Vm:
        return await anew(override(config, {"cold": True}))

    first = await anew(config)
    vm = await falling_back.boot(first, again, patience=config.boot_timeout, paths=config.paths, emit=emit)
    # The overlays, which are open: no kill can leave them from now on.
    await asyncio.to_thread(spawned[-1].release)
    return vm


async def launched(launch: Callable[[], Spawned]) -> Spawned:
    """What a thread launches; a caller who is cancelled waits for it, and nothing is left."""
    return await to_its_end(asyncio.to_thread(launch), unwanted=Spawned.discard)
