"""Writing a running machine down: its shares are set aside, and it stands still for one moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from atoll import store
from atoll.errors import AtollError
from atoll.events import Emit, VmCaptured, Warned
from atoll.hypervisor.port import Instant, Resident
from atoll.paths import VmPaths
from atoll.vm.branching import Branch, finish_branch, finish_switch, prepare_branch
from atoll.vm.chain import SERIAL
from atoll.vm.shares import Shares
from atoll.vm.state import StateError

__all__ = ["Taken", "capture", "set_aside"]


class Taken(NamedTuple):
    """A VM that was written down.

    Attributes:
        branch: what became of its disk: the frozen files are what it was.
        instant: the rest of it.
    """

    branch: Branch
    instant: Instant


async def capture(vm: Resident, place: VmPaths, shares: Shares, emit: Emit) -> Taken:
    """Write ``vm`` down, which goes on.

    Args:
        vm: the machine's VM.
        place: where its disk is.
        shares: of the machine; no VM can be written down with the daemon of a share.
        emit: told for how long it stood still.

    Raises:
        StateError: ``state.share_busy``: a share is in use in the guest; ``state.unsupported``.
        StoreError: the disk cannot be branched.
        BootError: stage ``capture``.
    """
    name = place.directory.name
    async with set_aside(shares, name, emit):
        plugging = vm.plugging
        if plugging is None:
            message = "this hypervisor cannot write a machine down"
            raise StateError(message, code="unsupported", hint="use QEMU")
        await finish_switch(place, plugging)
        branch = await asyncio.to_thread(_prepare, place)
        overlay = place.directory / branch.after.active.name

        async def switch() -> None:
            await plugging.branch_disk(SERIAL, overlay)

        instant = await vm.capture(switch)
        try:
            await asyncio.to_thread(finish_branch, place)
        except BaseException:
            instant.close()
            raise
    emit(VmCaptured(vm=name, stopped=instant.stopped))
    return Taken(branch, instant)


def _prepare(place: VmPaths) -> Branch:
    """What QEMU would flush while the guest stands still is flushed before."""
    branch = prepare_branch(place)
    with contextlib.suppress(OSError):
        store.sync_file(place.directory / branch.before.active.name)
    return branch


@asynccontextmanager
async def set_aside(shares: Shares, name: str, emit: Emit) -> AsyncIterator[None]:
    """Take the shares away and bring them back at the end. Raises as ``Shares.remove``."""
    removed = []
    try:
        for share in sorted(await shares.listed(), key=lambda share: share.guest, reverse=True):
            await shares.remove(share.guest)
            removed.append(share)
        yield
    finally:
        for share in reversed(removed):
            try:
                await shares.add(share)
            except (AtollError, TimeoutError) as error:
                message = f"{name}: {share.guest} could not be brought back: {error}"
                emit(Warned(message=message, hint=f"`atoll mount {name} {share.host}:{share.guest}`"))
