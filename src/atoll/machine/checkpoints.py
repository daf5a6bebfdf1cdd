"""Machines that are written down while they run, and go on from what was written."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from typing import Self

import msgspec

from atoll import store
from atoll.config import Config
from atoll.errors import StoreError
from atoll.events import Emit, ignore
from atoll.machine import registry, suspending, undoing
from atoll.machine.forking import Child, as_captured, fork, opened
from atoll.machine.registry import Named
from atoll.machine.restoring import (
    add_from,
    fill_from,
    require_fit,
    require_own,
    resumed,
    thawed,
)
from atoll.machine.snapshots import Disk, base_of, default_name, make, note_base, require_unnamed
from atoll.machine.spec import check_name
from atoll.machine.supervised import Supervised
from atoll.paths import VmPaths
from atoll.patience import to_its_end
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot, manifest_of
from atoll.snapshot.manifest import Kind
from atoll.snapshot.storing import Wish
from atoll.vm.bootplan import BootPlan
from atoll.vm.branching import branch_at_rest, link_into
from atoll.vm.chain import size_of
from atoll.vm.messages import Captured, Files
from atoll.vm.state import Phase, State

__all__ = ["Checkpoints"]


class Checkpoints(Supervised):
    """A machine that can be copied, and gone back to."""

    async def fork(self, *names: str) -> tuple[Self, ...]:
        """Copy the running machine, RAM, processes and disk, to others that go on from the same instant.

        It stands still for a moment and goes on. The others have names, addresses and ids of their own, and
        none of its ports.

        Args:
            names: of the new machines.

        Raises:
            StoreError: ``store.already_exists``: a name is taken.
            StateError: it has no VM; ``state.share_busy``: a share is in use in it.
            BootError: it cannot be written down, or a copy does not come up: none is left, and it goes on.
        """
        async with self._changing() as machine:
            control = await self._active("forked")
            await self._follow(control)
            others = {name: type(self)(name, config=self._config, on_event=self._emit) for name in names}
            children = {
                name: Child(other._go_on, partial(other.remove, force=True))  # noqa: SLF001 - of this class
                for name, other in others.items()
            }
            await fork(self._paths, machine, control, children)
        return tuple(others.values())

    async def snapshot(
        self,
        name: str | None = None,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        disk_only: bool = False,
        pause: bool = True,
    ) -> Snapshot:
        """Keep what the machine is now: its disk and, if it runs, its RAM and devices at the same instant.

        It stands still for a moment and goes on.

        Args:
            name: of the snapshot; the time by default.
            description: what is said of it.
            labels: likewise.
            disk_only: leave out RAM and devices; the file system is whole on the disk then.
            pause: have it stand still while its RAM is copied. Else it does for as long as its disk and
                devices need, and its RAM takes its whole size on the host from then on. Where the host
                cannot do that it does stand still, and ``Warned`` tells why.

        Raises:
            StoreError: ``store.already_exists``: it has one of that name; ``store.full``: nothing is left.
            StateError: ``state.share_busy``: a share is in use in it; it is about to start or stop.
            BootError: it cannot be written down.
        """
        async with self._changing() as machine:
            called = name
            if called is None:
                called = await asyncio.to_thread(default_name, self._paths, machine, time.time())
            await asyncio.to_thread(require_unnamed, self._paths, machine, called)
            wish = Wish(name=called, description=description, labels=dict(labels or {}))
            if not machine.state.active:
                return await self._made(machine, partial(self._keep_at_rest, machine, wish))
            control = await self._active("written down")
            await self._follow(control)
            if disk_only:
                disk = Disk(*msgspec.structs.astuple(await control.branch()))
                return await self._make(machine, wish, disk, None)
            async with control.capture(flush=True, live=not pause) as captured:
                disk = Disk(captured.layers, captured.size)
                return await self._make(machine, wish, disk, captured)

    async def _make(self, machine: Named, wish: Wish, disk: Disk, captured: Captured | None) -> Snapshot:
        return await self._made(
            machine, partial(make, self._paths, machine, wish, disk, captured, self._emit)
        )

    async def _made(self, machine: Named, work: Callable[[], Snapshot]) -> Snapshot:
        """What a thread makes; nothing is left of it if nobody waits for it any more."""
        base = base_of(machine.place)
        making = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await to_its_end(making)
        except asyncio.CancelledError:
            if making.exception() is None:
                catalog.remove(self._paths, making.result().id)
                note_base(machine.place, base)
            raise

    def _keep_at_rest(self, machine: Named, wish: Wish) -> Snapshot:
        with registry.at_rest(machine, "written down"):
            undoing.settle(machine, self._emit)
            return make(self._paths, machine, wish, _disk_at_rest(machine), None, self._emit)

    @asynccontextmanager
    async def _kept_for(self, purpose: str) -> AsyncIterator[Snapshot]:
        """A snapshot of its disk that is there for as long as the block lasts."""
        base = base_of(self.find().place)
        name = f"for-{os.urandom(4).hex()}"
        snapshot = await self.snapshot(name, description=f"for {purpose}; it can be removed", disk_only=True)
        try:
            yield snapshot
        finally:
            await to_its_end(asyncio.to_thread(self._forget_kept, snapshot, base))

    def _forget_kept(self, snapshot: Snapshot, base: str) -> None:
        catalog.remove(self._paths, snapshot.id)
        with contextlib.suppress(StoreError):  # it was removed meanwhile
            place = self.find().place
            if base_of(place) == snapshot.id:
                note_base(place, base)

    async def suspend(self) -> None:
        """Keep RAM and devices, and end the VM: ``start`` has it go on where it was, whatever the host did.

        Raises:
            StateError: it has no VM; ``state.share_busy``: a share is in use in it.
            StoreError: ``store.full``: it cannot be kept, and goes on.
        """
        async with self._changing() as machine:
            control = await self._active("suspended")
            await self._follow(control)
            async with control.capture(hold=True, flush=True) as captured:
                known = catalog.listed(self._paths, machine.spec.id)
                await asyncio.to_thread(suspending.keep, machine, captured, known)
                await control.stop(force=True, suspended=True)

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, the oldest first."""
        return catalog.listed(self._paths, self.find().spec.id)

    async def restore(self, snapshot: str, *, disk_only: bool = False) -> State:
        """Go back to a snapshot: what the machine is now is gone. It runs then, if the snapshot has its RAM.

        Args:
            snapshot: its name or id.
            disk_only: go back to its disk alone, at rest.

        Returns:
            What the machine does then.

        Raises:
            StoreError: ``store.missing``: there is none; ``store.corrupt``: it was changed.
            StateError: ``state.foreign``: it is another machine's, or a sandbox's; ``state.mismatch``: this
                host cannot go on from it.
            BootError: it does not go on. In all cases the machine is what it was before, running if it ran.
        """
        async with self._changing() as machine:
            found = await asyncio.to_thread(catalog.find, self._paths, snapshot, machine.spec.id)
            require_own(found, machine)
            with ExitStack() as stack:
                files = await self._thawed(found, stack, disk_only=disk_only)
                await self._exchange(machine, found, files)
        return self.state

    async def _thawed(self, snapshot: Snapshot, stack: ExitStack, *, disk_only: bool) -> Files | None:
        """What of a snapshot is gone on from, verified, held with ``stack``; None if it is the disk alone."""
        if disk_only or not manifest_of(snapshot).ram:
            await asyncio.to_thread(catalog.check, snapshot)
            return None
        await asyncio.to_thread(require_fit, snapshot, self._config)
        return await to_its_end(asyncio.to_thread(stack.enter_context, thawed(snapshot)))

    async def _exchange(self, machine: Named, snapshot: Snapshot, files: Files | None) -> None:
        """Have the machine be what a snapshot is, or stay what it was."""
        async with AsyncExitStack() as stack:
            control = former = plan = None
            if machine.state.active:
                control = await self._active("restored")
                await self._follow(control)
                captured = await stack.enter_async_context(control.capture())
                former = stack.enter_context(opened(captured.files, copy=False))
                before = Disk(captured.layers, captured.size)
                running = store.read_record(machine.place.boot, BootPlan)
                plan = resumed(machine, as_captured(running, captured))
            else:
                before = await to_its_end(asyncio.to_thread(self._rest, machine))
            exchanging = undoing.exchanging(
                machine.place,
                partial(_fill_before, machine.place, before, plan),
                fill_from(machine, snapshot, self._config, ram=files is not None),
            )
            exchange = await to_its_end(asyncio.to_thread(stack.enter_context, exchanging))
            try:
                if control is not None:
                    await control.stop(force=True)
                await to_its_end(asyncio.to_thread(exchange.carry_out))
                if files is not None:
                    await self._go_on(files)
            except BaseException:
                await to_its_end(self._go_back(machine, exchange, former))
                raise
            await to_its_end(asyncio.to_thread(_settled, machine))

    async def _go_back(self, machine: Named, exchange: undoing.Exchange, former: Files | None) -> None:
        """Be what it was: of a machine that ran, ``former``."""
        await self.stop(force=True)
        await asyncio.to_thread(exchange.undo)
        if former is not None:
            await self._go_on(former)
            if machine.state.phase is Phase.PAUSED and not machine.state.held:
                await self.control.pause()

    def _rest(self, machine: Named) -> Disk:
        with registry.at_rest(machine, "restored"):
            undoing.settle(machine, self._emit)
            return _disk_at_rest(machine)

    @classmethod
    async def from_snapshot(
        cls,
        name: str,
        snapshot: str,
        *,
        disk_only: bool = False,
        config: Config | None = None,
        on_event: Emit = ignore,
    ) -> Self:
        """Make a machine of a snapshot of another one. It runs, if the snapshot has its RAM.

        Args:
            name: of the new machine.
            snapshot: id or name.
            disk_only: make it of the disk alone, at rest.
            config: resolved settings; by default those of this user.
            on_event: told of everything that happens.

        Raises:
            StoreError: ``store.already_exists``; else as ``restore``.
        """
        machine = cls(name, config=config, on_event=on_event)
        await machine._begin(snapshot, disk_only=disk_only)
        return machine

    async def _begin(self, reference: str, *, disk_only: bool) -> None:
        """Enter this machine as what a snapshot is."""
        check_name(self.name)
        found = await asyncio.to_thread(catalog.find, self._paths, reference, kind=Kind.MACHINE)
        catalog.require_kind(found, Kind.MACHINE)
        with ExitStack() as stack:
            files = await self._thawed(found, stack, disk_only=disk_only)
            added: list[VmPaths] = []
            try:
                adding = partial(add_from, self._config, found, self.name, ram=files is not None)
                await to_its_end(asyncio.to_thread(lambda: added.append(adding())))
                if files is not None:
                    await self._go_on(files)
            except BaseException:
                if added:
                    await to_its_end(self.remove(force=True))
                raise


def _fill_before(machine: VmPaths, disk: Disk, plan: BootPlan | None, place: VmPaths) -> None:
    """Put what a machine is into a directory; ``plan`` says how it goes on if it ran."""
    link_into(machine, disk.layers, place, disk.size)
    note_base(place, base_of(machine))
    if plan is not None:
        store.write_record(place.boot, plan)


def _settled(machine: Named) -> None:
    """The change has held: forget what the machine was."""
    if machine.state.phase is Phase.SUSPENDED:
        suspending.forget(machine)
    undoing.forget(machine.place)


def _disk_at_rest(machine: Named) -> Disk:
    """The disk of a machine that has no VM; the caller keeps others away."""
    chain = branch_at_rest(machine.place)
    return Disk(chain.frozen, size_of(machine.place, chain))
