"""Writing a running machine down: its shares are set aside, and it stands still for one moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from atoll import store
from atoll.errors import ChannelError, GuestError
from atoll.events import Emit, VmCaptured, Warned
from atoll.guest.agent import Agent
from atoll.hypervisor.port import Instant, Pluggable, Resident, Standstill
from atoll.paths import VmPaths
from atoll.vm.branching import Branch, finish_branch, finish_switch, prepare_branch
from atoll.vm.chain import SERIAL
from atoll.vm.shares import Shares
from atoll.vm.state import StateError

__all__ = ["Aside", "Taken", "branch", "capture", "report", "set_aside", "thaw"]

#: Seconds in which the guest's file system stands still, and for which it does at most.
_STILL = 10.0

#: Seconds for the guest to have it go on, before somebody else is served.
_ANSWER = 5.0


class Taken(NamedTuple):
    """A VM that was written down.

    Attributes:
        branch: what became of its disk: the frozen files are what it was; None if it stands still.
        instant: the rest of it.
    """

    branch: Branch | None
    instant: Instant


async def capture(
    vm: Resident,
    place: VmPaths,
    shares: Shares,
    emit: Emit,
    *,
    flushed: Agent | None = None,
    hold: bool = False,
    live: bool = False,
) -> Taken:
    """Write ``vm`` down, which goes on.

    Args:
        vm: the machine's VM.
        place: where its disk is.
        shares: of the machine; no VM can be written down with the daemon of a share.
        emit: told for how long it stood still, and why, if it was not to.
        flushed: the agent of a guest whose files shall be whole on the disk alone.
        hold: it is paused then and without its shares, and its disk is not branched.
        live: else it goes on while its RAM is written, if it can.

    Raises:
        StateError: ``state.share_busy``: a share is in use in the guest; ``state.unsupported``.
        StoreError: the disk cannot be branched.
        BootError: stage ``capture``.
    """
    name = place.directory.name
    plugging = _plugging(vm)
    async with set_aside(shares) as aside:
        if flushed is not None and not await vm.paused():
            await _flush(flushed)
        taken = await (_held(vm) if hold else _branched(vm, place, plugging, live=live))
        aside.stays = hold
    report(taken.instant.stopped, name, emit)
    return taken


def report(stopped: Standstill, name: str, emit: Emit) -> None:
    """Say for how long a VM stood still, and why, if it was not to."""
    if stopped.reason:
        emit(Warned(message=f"{name}: it stood still while its RAM was copied: {stopped.reason}"))
    emit(VmCaptured(vm=name, stopped=stopped.seconds))


async def _held(vm: Resident) -> Taken:
    running = not await vm.paused()
    await vm.pause()
    try:
        return Taken(None, await vm.capture(_nothing))
    except BaseException:
        if running:
            await vm.resume()
        raise


async def _flush(agent: Agent) -> None:
    """Have the guest's files be whole on its disk, for those who go on from that alone."""
    with contextlib.suppress(GuestError, ChannelError, TimeoutError):
        async with asyncio.timeout(_STILL):
            await agent.freeze_data(_STILL)
            await agent.thaw_data()


async def thaw(agent: Agent) -> bool:
    """Have the guest's file system go on if it stands still; whether the guest answers.

    In one that does not it goes on by itself.
    """
    try:
        async with asyncio.timeout(_ANSWER):
            await agent.ready()
            await agent.thaw_data()
    except GuestError:  # it has no data disk
        return True
    except (ChannelError, TimeoutError):
        return False
    return True


async def _nothing() -> None:
    """Nobody writes to the disk of a VM that is about to be ended."""


async def _branched(vm: Resident, place: VmPaths, plugging: Pluggable, *, live: bool) -> Taken:
    branch = await _begin(place, plugging)

    async def switch() -> None:
        await plugging.branch_disk(SERIAL, place.directory / branch.after.active.name)

    instant = await vm.capture(switch, live=live)
    try:
        await asyncio.to_thread(finish_branch, place)
    except BaseException:
        instant.close()
        raise
    return Taken(branch, instant)


async def branch(vm: Resident, place: VmPaths, agent: Agent | None, emit: Emit) -> Branch:
    """Branch the disk of ``vm``, which goes on.

    Args:
        vm: the machine's VM.
        place: where its disk is.
        agent: has the guest's file system stand still meanwhile; None if the guest stands still itself.
        emit: told if it cannot: the disk is then as it would be after a power cut.

    Raises:
        StateError: ``state.unsupported``.
        StoreError, BootError: it cannot be branched; the guest goes on.
    """
    plugging = _plugging(vm)
    branch = await _begin(place, plugging)
    async with _still(agent, place.directory.name, emit):
        await plugging.branch_disk(SERIAL, place.directory / branch.after.active.name)
    await asyncio.to_thread(finish_branch, place)
    return branch


@asynccontextmanager
async def _still(agent: Agent | None, name: str, emit: Emit) -> AsyncIterator[None]:
    """Have the file system on the disk stand still."""
    frozen = False
    try:
        if agent is not None:
            try:
                async with asyncio.timeout(_STILL):
                    await agent.freeze_data(_STILL)
                frozen = True
            except (GuestError, ChannelError, TimeoutError) as error:
                emit(Warned(message=f"{name}: its file system could not be stopped: {error}"))
        yield
    finally:
        if frozen and agent is not None:
            with contextlib.suppress(GuestError, ChannelError):
                await agent.thaw_data()


async def _begin(place: VmPaths, plugging: Pluggable) -> Branch:
    await finish_switch(place, plugging)
    return await asyncio.to_thread(_prepare, place)


def _plugging(vm: Resident) -> Pluggable:
    plugging = vm.plugging
    if plugging is None:
        message = "this hypervisor cannot write a machine down"
        raise StateError(message, code="unsupported", hint="use QEMU")
    return plugging


def _prepare(place: VmPaths) -> Branch:
    """What QEMU would flush while the guest stands still is flushed before."""
    branch = prepare_branch(place)
    with contextlib.suppress(OSError):
        store.sync_file(place.directory / branch.before.active.name)
    return branch


@dataclass(slots=True)
class Aside:
    """Shares that were taken away; ``stays`` if they are not to be brought back."""

    stays: bool = False


@asynccontextmanager
async def set_aside(shares: Shares) -> AsyncIterator[Aside]:
    """Take the shares away and bring them back at the end. Raises as ``Shares.remove``."""
    removed = []
    aside = Aside()
    try:
        for share in sorted(await shares.listed(), key=lambda share: share.guest, reverse=True):
            await shares.remove(share.guest)
            removed.append(share)
        yield aside
    finally:
        for share in () if aside.stays else reversed(removed):
            await shares.bring_back(share)
