"""Sees to it that a sandbox ends, or stands still, when its time is over or nobody uses it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from atoll.errors import AtollError
from atoll.sandbox.limits import Limits
from atoll.vm.life import Vm
from atoll.vm.state import StateError

__all__ = ["Keeper"]


class Keeper:
    """Keeps the time of one sandbox. Belongs to its event loop.

    Args:
        limits: of the sandbox.
        vm: which is up.
        close: ends the sandbox.

    Attributes:
        ended: why the sandbox was closed; empty as long as it was not closed from here.
    """

    def __init__(self, limits: Limits, vm: Vm, close: Callable[[], Awaitable[None]]) -> None:
        self._limits = limits
        self._vm = vm
        self._close = close
        self._asleep = False
        self._turning = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.ended = ""
        self.begin()

    def begin(self) -> None:
        """Keep the time, from now on."""
        if self._limits.ttl:
            self._tasks.add(asyncio.create_task(self._live()))
        if self._limits.idle_timeout:
            self._tasks.add(asyncio.create_task(self._watch()))

    def stop(self) -> None:
        """Keep the time no longer."""
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._tasks.clear()

    async def wake(self) -> None:
        """Have a sandbox that stands still because nobody used it go on.

        Raises:
            StateError: ``state.expired``: it was closed when its time was over.
            BootError: the VM died.
        """
        if self.ended:
            raise self.expired(self._vm.name)
        if self._asleep:
            async with self._turning:
                if self._asleep:
                    await self._vm.renew()
                    self._asleep = False

    def expired(self, name: str) -> StateError:
        """What those are told who use a sandbox whose time is over."""
        hint = "open a new one; `ttl` and `idle_timeout` say how long it lives"
        return StateError(f"{name} was closed: {self.ended}", code="expired", hint=hint)

    async def _live(self) -> None:
        await asyncio.sleep(self._limits.ttl)
        await self._end(f"its {self._limits.ttl:g} s are over")

    async def _watch(self) -> None:
        """Look again when it could have been idle for long enough."""
        limit = self._limits.idle_timeout
        while True:
            left = limit - (0.0 if self._asleep else self._vm.idle)
            if left > 0:
                await asyncio.sleep(left)
            elif self._limits.on_idle == "stop":
                await self._end(f"nobody used it for {limit:g} s")
                return
            else:
                await self._put_to_sleep(limit)

    async def _put_to_sleep(self, limit: float) -> None:
        async with self._turning:
            if self._vm.idle >= limit:
                with contextlib.suppress(AtollError):  # a VM that died says so to whoever uses it
                    await self._vm.freezable.pause()
                    self._asleep = True

    async def _end(self, why: str) -> None:
        self.ended = why
        await self._close()
