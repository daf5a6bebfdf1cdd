"""VMs that begin with a template, and without it where it is of no use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from atoll.errors import BootError
from atoll.events import Emit, Warned
from atoll.paths import Paths
from atoll.template import cache
from atoll.vm.life import Vm

__all__ = ["boot"]


async def boot(
    vm: Vm, again: Callable[[], Awaitable[Vm]], *, patience: float, paths: Paths, emit: Emit
) -> Vm:
    """Wait until a VM is up; one that does not come up from its template is closed, and that discarded.

    Args:
        vm: the VM.
        again: spawns another one, without a template.
        patience: seconds in which each of them is up.
        paths: where templates are kept.
        emit: told of a template that was discarded.

    Returns:
        The VM that is up.

    Raises:
        BootError: it does not come up without a template either, or had none.
    """
    try:
        await vm.boot(patience)
    except BootError as error:
        clone = vm.clone
        if clone is None or not clone.template:
            raise
        await vm.close()
        emit(Warned(message=f"a template is of no use and was discarded: {error.message}"))
        await asyncio.to_thread(cache.withdraw, paths, clone.template, clone.created)
        vm = await again()
        await vm.boot(patience)
    return vm
