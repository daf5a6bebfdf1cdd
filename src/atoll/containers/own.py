"""Machines that Atoll itself makes and brings up, and who may do so now."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from atoll import store
from atoll.config import Config
from atoll.containers import root
from atoll.errors import StoreError, UsageError
from atoll.events import Emit, Warned, ignore
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.machine import creation, registry
from atoll.machine.machine import Machine
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.vm.chain import read_chain, used_by
from atoll.vm.state import Phase, StateError

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
    """A machine of Atoll's own that has the engine's root; users neither make nor remove it.

    Args:
        name: of the machine.
        title: what people call it, as ``the engine``.
        config: resolved settings.
        on_event: told of everything that happens.
    """

    def __init__(
        self, name: str, *, title: str, config: Config | None = None, on_event: Emit = ignore
    ) -> None:
        super().__init__(name, config=config, on_event=on_event)
        self._title = title
        self._reaching = asyncio.Lock()

    def exists(self) -> bool:
        """Whether a machine of its name is there."""
        return registry.exists(self._paths, self.name)

    def require_own(self) -> Named:
        """It as it is. Raises ``UsageError``: ``usage.reserved``: it is one that a user has made."""
        machine = self.find()
        if machine.spec.service is None:
            message = f"the machine {self.name} is not {self._title}'s: somebody made one of that name"
            raise UsageError(message, code="reserved", hint=f"`atoll rename {self.name} NAME` makes room")
        return machine

    async def bring_up(
        self, made: Callable[[], MachineSpec], wanted: Callable[[MachineSpec], MachineSpec]
    ) -> None:
        """Have it run: made, started, resumed, or gone on with where it was. Image and kernel are here.

        Args:
            made: says what a new one is.
            wanted: says what one that is about to boot shall be, by what it was.

        Raises:
            UsageError: as ``require_own``.
            AtollError: as ``Machine.create`` and ``Machine.start``.
        """
        if not self.exists():
            await asyncio.to_thread(creation.enter, self._config, self.name, made(), self._emit)
        if self.state.held:
            await self.settled()
        machine = self.require_own()
        if machine.state.phase is Phase.SUSPENDED:
            await asyncio.to_thread(root.check, machine)
            if await self._goes_on():
                return
        elif machine.state.phase is Phase.PAUSED:
            await self.resume()
            return
        if not self.state.active:
            await self.settle(wanted(machine.spec))
        await self.start(discard=True)

    async def _goes_on(self) -> bool:
        """Go on where it was; False if this host cannot, as after an update of QEMU."""
        try:
            await self.start()
        except (StoreError, StateError) as error:
            if error.code not in {"store.corrupt", "state.mismatch"}:
                raise
            self._emit(Warned(message=f"{self._title} boots anew: {error.message}", hint=error.hint))
            return False
        return True

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
