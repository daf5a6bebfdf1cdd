"""The life of a supervisor's process: from its lock to the moment when nothing is left to look after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from atoll import store
from atoll.errors import AtollError
from atoll.events import Emit, Event, tee
from atoll.hypervisor.port import ResidentHypervisor, listen
from atoll.paths import VmPaths
from atoll.vm.bootplan import BootPlan
from atoll.vm.messages import Files
from atoll.vm.service import Service
from atoll.vm.supervisor import Supervisor

__all__ = ["BUSY", "supervise"]

#: Exit status of a supervisor that found another one at its place.
BUSY = 75

#: Seconds that a machine may be at rest before its supervisor leaves: a client may just be asking.
_LINGER = 0.05

#: Seconds between two looks whether a machine's directory is still there.
_LOOK = 2.0


def supervise(
    place: VmPaths,
    hypervisor: ResidentHypervisor,
    read_plan: Callable[[], BootPlan],
    *,
    emit: Emit,
    client: socket.socket | None = None,
    start: bool = False,
    files: Files | None = None,
) -> int:
    """Look after the machine at ``place`` until it is at rest; the exit status.

    Args:
        place: its directory.
        hypervisor: what runs it.
        read_plan: what is to be run.
        emit: told of everything.
        client: a connection that waits to be served, of whoever started this process.
        start: start the machine at once.
        files: what it goes on from then.

    Raises:
        StoreError: its records cannot be read or written.
    """
    with ExitStack() as stack:
        lock = store.hold(place.supervisor_lock)
        if lock is None:
            if client is not None:
                client.close()
            return BUSY
        stack.callback(os.close, lock)
        return asyncio.run(_run(place, hypervisor, read_plan, emit, client, start=start, files=files))


async def _run(
    place: VmPaths,
    hypervisor: ResidentHypervisor,
    read_plan: Callable[[], BootPlan],
    emit: Emit,
    client: socket.socket | None,
    *,
    start: bool,
    files: Files | None,
) -> int:
    tell: list[Emit] = []

    def listeners(event: Event) -> None:
        for listener in tell:
            listener(event)

    supervisor = Supervisor(place, hypervisor, read_plan, tee(emit, listeners))
    service = Service(supervisor)
    tell.append(service.tell)
    status = 0
    try:
        listener = listen(place.control)  # who connects from now on waits in its queue
        _catch_signals(supervisor)
        try:
            await supervisor.adopt()
        finally:
            service.server.listen(listener)
        if client is not None:
            service.server.add(client)
        if start:
            try:
                await supervisor.start(files)
            except AtollError:
                status = 1
        await _until_over(supervisor, service)
    finally:
        await service.server.close()
        await supervisor.close()
        place.control.unlink(missing_ok=True)
    return status


def _catch_signals(supervisor: Supervisor) -> None:
    """A service manager, or the host's end, asks by SIGTERM: the guest is ended in order."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[object]] = []

    def stop() -> None:
        tasks.append(asyncio.ensure_future(supervisor.stop(force=bool(tasks), timeout=30.0)))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop)


async def _until_over(supervisor: Supervisor, service: Service) -> None:
    """Until there is nothing left to look after, or somebody has removed the machine's directory."""
    resting = asyncio.create_task(_until_at_rest(supervisor, service))
    removed = asyncio.create_task(_until_removed(supervisor.place.directory))
    try:
        await asyncio.wait({resting, removed}, return_when=asyncio.FIRST_COMPLETED)
        if not resting.done():
            with contextlib.suppress(AtollError):
                await supervisor.stop(force=True, timeout=0.0)
        elif not resting.cancelled():
            resting.result()
    finally:
        resting.cancel()
        removed.cancel()


async def _until_removed(directory: Path) -> None:
    """Until the directory that is there now is gone, whatever it is called by then."""
    try:
        home = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while os.fstat(home).st_nlink:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(_LOOK)
    finally:
        os.close(home)


async def _until_at_rest(supervisor: Supervisor, service: Service) -> None:
    while True:
        changed = supervisor.changed
        if supervisor.expects_change:
            await changed.wait()
            continue
        await asyncio.sleep(_LINGER)
        if supervisor.at_rest and not service.server.busy:
            return
