"""Writing a QEMU down while its guest runs on (QAPI ``MigrationCapability``, ``background-snapshot``).

QEMU keeps the state of the devices, write-protects the RAM by userfaultfd(2) and has the guest go on. Whoever
writes to a page waits until it is saved: vCPUs, and QEMU's own threads. The thread that saves needs nothing
that they may hold, so the wait has an end; for the same reason QEMU starts the VM from its main loop and not
from that thread (``bg_migration_thread`` in QEMU's migration/migration.c).

The stream goes to a file in memory: a pipe would have the guest wait for its reader, and for ever if that
were killed. A migration of this kind is never cancelled (``atoll.hypervisor.qemu.protection``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from msgspec.structs import replace

from atoll.errors import AtollError, BootError
from atoll.hypervisor.port import Instant, Standstill
from atoll.hypervisor.qemu import freezing, protection
from atoll.hypervisor.qemu.argv import MORE, MORE_ID, RAM, RAM_ID
from atoll.hypervisor.qemu.memory import PIECE, find_memory, provide, unmapped
from atoll.hypervisor.qemu.migrating import Watch, begin, set_capabilities, wait_for_former, why
from atoll.hypervisor.qemu.qmp import Monitor
from atoll.hypervisor.qemu.unpacking import put, unpack
from atoll.patience import to_its_end

__all__ = ["abandon", "capture", "copy", "release"]


class _HinderedError(Exception):
    """The guest cannot run on, for this reason; it is as it was."""


async def capture(monitor: Monitor, pid: int, branch: Callable[[], Awaitable[None]]) -> Instant:
    """As ``freezing.capture``, but the guest goes on while its RAM is written, if it runs and can.

    Its RAM takes its whole size on the host then, since QEMU reads all of it.

    Raises:
        BootError: stage ``capture``: it cannot be written; the guest goes on.
        StreamError: QEMU wrote what is not known here; likewise.
    """
    await wait_for_former(monitor)
    if not await _runs(monitor):
        return await freezing.capture(monitor, pid, branch)
    try:
        await _prepare(monitor, pid, leave_out_shared=False)
        addresses = await _addresses(monitor)
        await _provide(monitor, pid)
    except _HinderedError as hindrance:
        instant = await freezing.capture(monitor, pid, branch)
        return replace(instant, stopped=Standstill(instant.stopped.seconds, str(hindrance)))
    return await to_its_end(_capture(monitor, pid, branch, addresses), unwanted=Instant.close)


async def copy(monitor: Monitor, pid: int, fd: int, *, leave_out_shared: bool) -> Standstill:
    """As ``freezing.copy``, but the guest goes on while its RAM is written, if it runs and can.

    Raises:
        BootError: stage ``copy``; the guest goes on.
    """

    async def stand_still() -> float:
        return await freezing.copy(monitor, fd, leave_out_shared=leave_out_shared)

    async def instead() -> None:
        os.truncate(fd, os.lseek(fd, 0, os.SEEK_SET))
        await stand_still()

    if not await _runs(monitor):
        return Standstill(await stand_still())
    try:
        await _prepare(monitor, pid, leave_out_shared=leave_out_shared)
    except _HinderedError as hindrance:
        return Standstill(await stand_still(), str(hindrance))
    try:
        return await to_its_end(_stream(monitor, pid, fd, "copy", None, instead))
    except AtollError:
        await to_its_end(_forget(monitor, pid, leave_out_shared=leave_out_shared))
        raise


async def abandon(monitor: Monitor, pid: int) -> None:
    """Have nothing be left of what a process that is gone had QEMU write; waits for the end of that.

    Raises:
        BootError: stage ``capture``: the RAM stays write-protected.
    """
    with contextlib.suppress(BootError):
        await wait_for_former(monitor)
    await release(pid)


async def release(pid: int) -> None:
    """Take off what write protection a QEMU has put on its guest's RAM. Raises as ``abandon``."""
    try:
        protection.require_reach(pid)
    except OSError:  # nobody protected anything: who is as far from it as that does not begin
        return
    await asyncio.to_thread(_take_off, pid, "capture")


async def _forget(monitor: Monitor, pid: int, *, leave_out_shared: bool) -> None:
    """Have QEMU forget that it once protected RAM: one to which that was left fails to copy it ever after.

    It forgets when it has come to an end with it.
    """
    with contextlib.suppress(AtollError, OSError), ExitStack() as stack:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, nowhere)
        await set_capabilities(monitor, leave_out_shared=leave_out_shared, background=True)
        await _stream(monitor, pid, nowhere, "copy", None, _nothing)


async def _nothing() -> None:
    """There is nothing more to do while it stands still."""


async def _capture(
    monitor: Monitor, pid: int, branch: Callable[[], Awaitable[None]], addresses: dict[str, int]
) -> Instant:
    shape = await freezing.shape_of(monitor)
    instead: list[Instant] = []

    async def stand_still() -> None:
        instead.append(await freezing.capture(monitor, pid, _nothing))

    with ExitStack() as made, ExitStack() as streams:
        stream = _file(streams, "atoll-stream")
        stopped = await _stream(monitor, pid, stream, "capture", branch, stand_still)
        if instead:
            return replace(instead[0], stopped=stopped)
        images = {RAM_ID: _file(made, RAM)}
        if MORE_ID in addresses:
            images[MORE_ID] = _file(made, MORE)
        state = _file(made, "atoll-state")
        try:
            await asyncio.to_thread(_unpack, pid, stream, images, addresses, state)
        except OSError as error:
            raise BootError(f"the RAM cannot be copied: {error.strerror}", stage="capture") from error
        made.pop_all()
    more = images.get(MORE_ID, -1)
    return Instant(images[RAM_ID], state, more, shape.devices, shape.vcpus, shape.memory, stopped)


async def _stream(
    monitor: Monitor,
    pid: int,
    fd: int,
    stage: str,
    branch: Callable[[], Awaitable[None]] | None,
    instead: Callable[[], Awaitable[None]],
) -> Standstill:
    """Have the guest stand still for as long as ``branch`` and QEMU need, and QEMU write it down.

    Args:
        monitor: of the QEMU.
        pid: of its process.
        fd: of the file.
        stage: of errors.
        branch: called while the guest stands still; with None QEMU stops it by itself, when it has read
            all RAM.
        instead: done while it stands still, if it turns out that QEMU cannot protect the RAM.
    """
    if branch is not None:
        await monitor.execute("stop")
    began = time.monotonic()
    begun = False
    with Watch(monitor) as watch:
        try:
            if branch is not None:
                await branch()
            begun = True
            await begin(monitor, fd)
            await watch.resume_or_fail()
            if watch.resumed is None and (reason := await _never_protected(monitor, watch)):
                await instead()
                return Standstill(time.monotonic() - (watch.stopped or began), reason)
            await watch.end()
            if watch.outcome != "completed":
                raise BootError(f"QEMU: {await why(monitor)}", stage=stage)
        except AtollError:
            if begun:  # there may be protection, whatever was heard of QEMU
                await asyncio.to_thread(_take_off, pid, stage)
            raise
        finally:
            if watch.resumed is None:
                with contextlib.suppress(BootError):  # it ended meanwhile: whoever uses it is told
                    await freezing.go_on(monitor)
    assert watch.resumed is not None, "it was waited for"
    return Standstill(watch.resumed - (watch.stopped or began))


async def _never_protected(monitor: Monitor, watch: Watch) -> str:
    """Why QEMU could not protect the RAM, of one that has failed; empty if it could, and failed later.

    Then it has the guest go on from its main loop, at once, which it may do after it says that it failed.
    The same loop answers: by its second answer it has done what it meant to do before the first.
    """
    reason = await why(monitor)
    await _runs(monitor)
    return reason if watch.resumed is None else ""


def _take_off(pid: int, stage: str) -> None:
    try:
        protection.take_off(pid)
    except ProcessLookupError:
        pass  # it has ended
    except OSError as error:
        message = f"QEMU failed, and the guest's RAM stays write-protected: {error.strerror}"
        raise BootError(message, stage=stage, hint="end it by force") from error


async def _runs(monitor: Monitor) -> bool:
    return bool((await monitor.execute("query-status"))["running"])


async def _prepare(monitor: Monitor, pid: int, *, leave_out_shared: bool) -> None:
    """Make sure that QEMU can protect the RAM, and that it can be taken off where QEMU fails to."""
    try:
        await set_capabilities(monitor, leave_out_shared=leave_out_shared, background=True)
    except BootError as error:
        raise _HinderedError(error.message.rpartition(": ")[2]) from error
    try:
        protection.require_reach(pid)
    except OSError as error:
        raise _HinderedError(f"QEMU's process is out of reach: {error.strerror}") from error


async def _addresses(monitor: Monitor) -> dict[str, int]:
    """Where the RAM lies in the region of memory that it is a part of, by the names of its backends."""
    addresses: dict[str, int] = {}
    backends = {one["name"] for one in await monitor.execute("qom-list", {"path": "/objects"})}
    for name in (RAM_ID, MORE_ID):
        if name in backends:
            path = f"/objects/{name}"
            every = await monitor.execute("qom-list", {"path": path})
            regions = [one["name"] for one in every if one["type"] == "child<memory-region>"]
            arguments = {"path": f"{path}/{regions[0]}", "property": "addr"}
            addresses[name] = int(await monitor.execute("qom-get", arguments))
    return addresses


async def _provide(monitor: Monitor, pid: int) -> None:
    """Have the host provide the pages that QEMU is about to read, as long as the guest runs."""
    plugged = sum(int(one["data"]["size"]) for one in await monitor.execute("query-memory-devices"))
    try:
        await asyncio.to_thread(provide, pid, {RAM: None, MORE: plugged})
    except OSError as error:
        raise _HinderedError(f"the host has no memory for all of its RAM: {error.strerror}") from error
    await _map(monitor, pid)


async def _map(monitor: Monitor, pid: int) -> None:
    """Have QEMU read the RAM that it has not mapped, a piece at a time: the guest would wait for that.

    If it does not work out, the guest does.
    """
    with contextlib.suppress(OSError, BootError):
        offsets = await asyncio.to_thread(lambda: list(unmapped(pid, RAM)))
        if not offsets:
            return
        text = await monitor.execute("human-monitor-command", {"command-line": "info mtree -f"})
        for first, last, begin_at in places_of(str(text), RAM_ID):
            for offset in offsets:
                start, end = max(offset, begin_at), min(offset + PIECE, begin_at + last + 1 - first)
                if start < end:
                    where = {"val": first + start - begin_at, "size": end - start, "filename": os.devnull}
                    await monitor.execute("pmemsave", where)


def places_of(text: str, name: str) -> set[tuple[int, int, int]]:
    """Where the guest has a block of RAM, by ``info mtree -f``: first and last address, offset."""
    place = re.compile(
        rf"^ *([0-9a-f]+)-([0-9a-f]+) \(prio -?\d+, ram\): {name}(?: @([0-9a-f]+))?\s", re.MULTILINE
    )
    return {(int(one[1], 16), int(one[2], 16), int(one[3] or "0", 16)) for one in place.finditer(text)}


def _unpack(pid: int, stream: int, images: dict[str, int], addresses: dict[str, int], state: int) -> None:
    for name, image in zip((RAM, MORE), images.values(), strict=False):
        fd = find_memory(pid, name)
        try:
            os.truncate(image, os.fstat(fd).st_size)
        finally:
            os.close(fd)
    put(state, memoryview(unpack(stream, images, addresses=addresses)))


def _file(stack: ExitStack, name: str) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    return fd
