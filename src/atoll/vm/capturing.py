"""Writing a running machine down: its shares are set aside, and it stands still for one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from atoll.errors import AtollError
from atoll.events import Emit, VmCaptured, Warned
from atoll.hypervisor.port import Instant, Resident
from atoll.vm.shares import Shares

__all__ = ["capture", "set_aside"]


async def capture(
    vm: Resident, shares: Shares, branch: Callable[[], Awaitable[None]], name: str, emit: Emit
) -> Instant:
    """Write ``vm`` down, which goes on.

    Args:
        vm: the machine's VM.
        shares: of the machine; no VM can be written down with the daemon of a share.
        branch: called while it stands still.
        name: of the machine.
        emit: told for how long it stood still.

    Raises:
        StateError: ``state.share_busy``: a share is in use in the guest.
        BootError: stage ``capture``.
    """
    async with set_aside(shares, name, emit):
        instant = await vm.capture(branch)
    emit(VmCaptured(vm=name, stopped=instant.stopped))
    return instant


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
