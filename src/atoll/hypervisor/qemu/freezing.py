"""Writing a running QEMU down: migration to a file (QEMU's docs/devel/migration.rst)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from atoll.errors import BootError
from atoll.hypervisor.port import Instant, Standstill
from atoll.hypervisor.qemu.argv import MORE, RAM
from atoll.hypervisor.qemu.memory import Copy, find_memory
from atoll.hypervisor.qemu.migrating import wait_for_former, write
from atoll.hypervisor.qemu.qmp import Monitor
from atoll.hypervisor.qemu.vcpus import vcpus_of

__all__ = ["Shape", "capture", "copy", "freeze", "go_on", "shape_of"]


async def freeze(monitor: Monitor, state: Path) -> None:
    """Have QEMU stop and write its devices' state to ``state``, a new file. RAM in a shared file is left out.

    Raises:
        BootError: stage ``freeze``.
    """
    try:
        fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootError(f"{state}: {error.strerror}", stage="freeze") from error
    try:
        await write(monitor, fd, "freeze", leave_out_shared=True)
    finally:
        os.close(fd)


async def copy(monitor: Monitor, fd: int, *, leave_out_shared: bool = False) -> float:
    """Write devices and RAM to a file, and have the guest go on if it ran; for how long it stood still.

    It stands still all the while: under TCG QEMU 7.2 now and then misses what a guest writes while its RAM is
    copied, and what was copied crashes.

    Args:
        monitor: of the QEMU.
        fd: of the file.
        leave_out_shared: without RAM that is in a shared file; and in the form that
            ``atoll.hypervisor.qemu.stream`` takes apart.

    Returns:
        Seconds.

    Raises:
        BootError: stage ``copy``; the guest goes on.
    """

    async def work() -> None:
        await write(monitor, fd, "copy", leave_out_shared=leave_out_shared)

    return await _stopped(monitor, work)


async def _stopped(monitor: Monitor, work: Callable[[], Awaitable[None]]) -> float:
    """Do ``work``, a migration, while the guest stands still; for how long it did, seconds."""
    status = await monitor.execute("query-status")
    if status["status"] == "postmigrate":  # it was copied while it stood still, and only ``cont`` ends that
        await asyncio.gather(monitor.execute("cont"), monitor.execute("stop"))  # nothing comes between them
    else:
        await monitor.execute("stop")
    began = time.monotonic()
    try:
        await work()
    except BaseException:
        with contextlib.suppress(BootError):
            await monitor.execute("migrate_cancel")
        raise
    finally:
        if status["running"]:
            with contextlib.suppress(BootError):  # it ended meanwhile: whoever uses it is told
                await go_on(monitor)
    return time.monotonic() - began


async def capture(monitor: Monitor, pid: int, branch: Callable[[], Awaitable[None]]) -> Instant:
    """Write devices and RAM of a VM that stays to files in memory, and have the guest go on if it ran.

    Args:
        monitor: of the QEMU, whose RAM is in files in memory.
        pid: of its process.
        branch: called while it stands still.

    Raises:
        BootError: stage ``capture``; the guest goes on.
    """
    await wait_for_former(monitor)
    shape = await shape_of(monitor)
    with ExitStack() as sources, ExitStack() as made:
        state = os.memfd_create("atoll-state", os.MFD_CLOEXEC)
        made.callback(os.close, state)
        copies = await asyncio.to_thread(_copies, pid, sources, made)

        async def work() -> None:
            settled = asyncio.create_task(asyncio.to_thread(_settle, copies.values()))
            try:
                await branch()
                await write(monitor, state, "capture", leave_out_shared=True)
            finally:
                await asyncio.wait([settled])
            await settled

        stopped = await _stopped(monitor, work)
        made.pop_all()
    more = copies[MORE].fd if MORE in copies else -1
    return Instant(copies[RAM].fd, state, more, shape.devices, shape.vcpus, shape.memory, Standstill(stopped))


def _copies(pid: int, sources: ExitStack, made: ExitStack) -> dict[str, Copy]:
    """Copies of the RAM, which is written meanwhile, by their names."""
    copies: dict[str, Copy] = {}
    try:
        for name in (RAM, MORE):
            fd = find_memory(pid, name)
            if fd >= 0:
                sources.callback(os.close, fd)
                copies[name] = Copy(fd, name)
                made.callback(os.close, copies[name].fd)
                copies[name].settle()
    except OSError as error:
        raise BootError(f"the RAM cannot be read: {error.strerror}", stage="capture") from error
    if RAM not in copies:
        raise BootError("the RAM is not to be found", stage="capture", hint="restart the machine")
    return copies


def _settle(copies: Iterable[Copy]) -> None:
    try:
        for copy in copies:
            copy.settle()
    except OSError as error:
        raise BootError(f"the RAM cannot be copied: {error.strerror}", stage="capture") from error


class Shape(NamedTuple):
    """What a VM was started with, and the vCPUs plugged in since, each as ``device_add`` takes it."""

    vcpus: int
    memory: int
    devices: tuple[dict[str, Any], ...]


async def shape_of(monitor: Monitor) -> Shape:
    """Ask QEMU. Raises ``BootError``."""
    present = [one for one in reversed(await vcpus_of(monitor)) if "qom-path" in one]
    plugged = [one for one in present if "/peripheral/" in one["qom-path"]]
    memory = int((await monitor.execute("query-memory-size-summary"))["base-memory"])
    devices = tuple(
        {"driver": one["type"], "id": one["qom-path"].rpartition("/")[2], **one["props"]} for one in plugged
    )
    return Shape(len(present) - len(plugged), memory, devices)


async def go_on(monitor: Monitor) -> None:
    """Let the vCPUs go on. For a moment after its last event a migration is not over yet."""
    while (await monitor.execute("query-status"))["status"] == "finish-migrate":  # noqa: ASYNC110 - no event
        await asyncio.sleep(0)
    await monitor.execute("cont")
