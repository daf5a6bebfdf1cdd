"""Machines that Atoll itself makes and brings up, and who may do so now."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from atoll import store
from atoll.config import Config
from atoll.containers import root
from atoll.events import Emit, ignore
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.machine.spec import MachineSpec
from atoll.vm.chain import read_chain, used_by

__all__ = ["OwnMachine", "alone"]

#: Seconds between two attempts to be alone.
_PAUSE = 0.02


@asynccontextmanager
async def alone(path: Path, deadline: float) -> AsyncIterator[bool]:
    """Have the lock at ``path``; whether that was to be had before ``deadline``, by the monotonic clock."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while (lock := store.hold(path)) is None:
        if time.monotonic() > deadline:
            yield False
            return
        await asyncio.sleep(_PAUSE)
    try:
        yield True
    finally:
        os.close(lock)


class OwnMachine(Machine):
    """A machine of Atoll's own that has the engine's root; users neither make nor remove it."""

    def __init__(self, name: str, *, config: Config | None = None, on_event: Emit = ignore) -> None:
        super().__init__(name, config=config, on_event=on_event)
        self._reaching = asyncio.Lock()

    async def settle(self, wanted: MachineSpec) -> None:
        """Have the machine, which is about to boot, be what is wanted, with a root that is whole.

        One that has snapshots keeps the root that they were made with.
        """
        async with self._changing() as machine:
            if not machine.state.active:
                if not await asyncio.to_thread(self.snapshots):
                    await asyncio.to_thread(root.renew, self._paths, machine)
                await asyncio.to_thread(root.check, machine)
                registry.save(machine, wanted)

    async def settled(self) -> None:
        """Wait until nobody has it stand still who writes it down. Raises ``StateError``: it has no VM."""
        await self._settled()

    async def purge(self) -> None:
        """Remove it, whatever it does."""
        await self._discard(force=True)

    async def agent(self) -> Agent:
        """The guest's agent, over the one connection to the supervisor that serves all."""
        async with self._reaching:
            await self._reach()
        return self._reached()

    async def connected(self, path: str) -> Stream:
        """A stream to the unix socket at ``path`` in the guest, which has taken the connection."""
        return await (await self.agent()).connect(path).accepted()

    def allocated(self) -> int:
        """Bytes of this host that its disk takes."""
        place = self.find().place
        return used_by(place, read_chain(place))
