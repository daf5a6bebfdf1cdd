"""How large a running guest is, and how it becomes larger: memory, vCPUs, disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path

from atoll.errors import AtollError, BootError, GuestError
from atoll.guest.agent import Agent
from atoll.hypervisor.port import Pluggable, Resident
from atoll.vm.bootplan import Setup
from atoll.vm.messages import MemoryState, Resize
from atoll.vm.state import StateError
from atoll.vm.steps import plug_memory

__all__ = ["memory_of", "memory_state", "resize", "set_balloon"]

_MIB = 1 << 20

#: Memory is plugged in in steps of so many bytes (QEMU's virtio-mem, ``block-size``).
_STEP = 2 * _MIB

#: Seconds in which a guest gives memory to its balloon, or takes memory that was plugged in.
_PATIENCE = 20.0

#: Seconds between two looks at how far it got, and without progress after which it is left at that.
_LOOK, _STUCK = 0.02, 2.0

#: What a guest needs at least, bytes: below it even its kernel finds nothing.
_LEAST = 96 * _MIB


def memory_of(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and what of it no other shares (proc(5), ``smaps_rollup``); bytes.

    A guest's RAM that was given back to the host counts no more, whoever shared it.
    """
    resident = private = 0
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, rest = line.partition(":")
        size = int(rest.split()[0]) << 10
        resident += size if name == "Rss" else 0
        private += size if name.startswith("Private_") else 0
    return resident, private


def _plugging(vm: Resident) -> Pluggable:
    plugging = vm.plugging
    if plugging is None:
        message = "this hypervisor cannot change a machine while it runs"
        raise StateError(message, code="unsupported", hint="use QEMU")
    return plugging


async def memory_state(vm: Resident) -> MemoryState:
    """The guest's memory. Raises ``StateError`` if it cannot be told."""
    plugging = _plugging(vm)
    try:
        balloon = await plugging.balloon()
        size = await plugging.memory()
    except BootError as error:
        raise StateError(f"the memory cannot be told: {error.message}", code="refused") from error
    return MemoryState(
        size=size.now,
        actual=balloon.actual,
        free=balloon.free,
        available=balloon.available,
        host=memory_of(vm.process.pid)[0],
    )


async def set_balloon(vm: Resident, target: int) -> MemoryState:
    """Have the balloon leave the guest ``target`` bytes, and wait until it does or gets no further.

    A guest that needs more takes it back from the balloon (``deflate-on-oom``), so that nothing is killed.

    Raises:
        StateError: the guest cannot be left that much, or that little.
    """
    plugging = _plugging(vm)
    try:
        size = await plugging.memory()
        least = max(_LEAST, size.now - size.started + _MIB)  # QEMU counts nothing that was plugged in
        if not least <= target <= size.now:
            message = f"the guest cannot be left {target // _MIB} MiB"
            hint = f"name {least // _MIB}M to {size.now // _MIB}M; `atoll resize` changes what it has"
            raise StateError(message, code="memory", hint=hint)
        await plugging.inflate(target)
        await _settled(plugging, target)
    except BootError as error:
        raise StateError(f"the balloon cannot be set: {error.message}", code="refused") from error
    return await memory_state(vm)


async def _settled(plugging: Pluggable, target: int) -> None:
    """Wait for the balloon."""
    last, progress = -1, time.monotonic()
    deadline = progress + _PATIENCE
    while (actual := await plugging.left_by_balloon()) != target:
        now = time.monotonic()
        if actual != last:
            last, progress = actual, now
        if now > deadline or now - progress > _STUCK:
            return
        await asyncio.sleep(_LOOK)


async def resize(vm: Resident, agent: Agent, setup: Setup, wanted: Resize) -> dict[str, bool]:
    """Give the guest what can be given while it runs; for each of what was asked for whether it has it now.

    Args:
        vm: the machine.
        agent: in its guest.
        setup: the modules that devices need.
        wanted: what it shall have.
    """
    plugging = _plugging(vm)
    works: dict[str, Coroutine[None, None, bool]] = {}
    if wanted.cpus:
        works["cpus"] = _vcpus(plugging, agent, wanted.cpus)
    if wanted.memory:
        works["memory"] = _memory(plugging, agent, setup, wanted.memory)
    if wanted.disk:
        works["disk"] = _disk(plugging, agent, wanted.disk)
    done = await asyncio.gather(*(_bounded(what, work) for what, work in works.items()))
    return dict(zip(works, done, strict=True))


async def _bounded(what: str, work: Coroutine[None, None, bool]) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await work
    except (BootError, GuestError, TimeoutError) as error:
        reason = error.message if isinstance(error, AtollError) else "the guest does not take it"
        hint = "it is recorded all the same: it has it when it is started again"
        raise StateError(f"{what} cannot be changed now: {reason}", code="refused", hint=hint) from error


async def _vcpus(plugging: Pluggable, agent: Agent, count: int) -> bool:
    if await plugging.plug_vcpus(count) != count:
        return False
    while await agent.bring_cpus_online() != count:  # noqa: ASYNC110 - the guest finds them by itself
        await asyncio.sleep(_LOOK)
    return True


async def _memory(plugging: Pluggable, agent: Agent, setup: Setup, size: int) -> bool:
    """Plug memory in, or what was plugged in out."""
    memory = await plugging.memory()
    if not memory.started <= size <= memory.most or (size - memory.started) % _STEP:
        return size == memory.now
    if modules := setup.drivers.get("virtio_mem"):
        await agent.load_modules(modules)
    await plug_memory(plugging, size)
    return True


async def _disk(plugging: Pluggable, agent: Agent, size: int) -> bool:
    await plugging.grow_disk("data", size)
    await agent.grow_data()
    return True
