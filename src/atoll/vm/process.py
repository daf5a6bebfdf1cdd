"""The life of a supervisor's process: from its lock to the moment when nothing is left to look after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from atoll import store
from atoll.errors import AtollError
from atoll.events import Emit, Event, Warned, tee
from atoll.hypervisor.port import ResidentHypervisor, listen
from atoll.paths import VmPaths
from atoll.vm.bootplan import BootPlan
from atoll.vm.idleness import Idleness, observed, pause_between
from atoll.vm.messages import Files
from atoll.vm.service import Service, cpu_time
from atoll.vm.state import Phase
from atoll.vm.supervisor import Supervisor

__all__ = ["BUSY", "supervise"]

#: Exit status of a supervisor that found another one at its place.
BUSY = 75

#: Seconds that a machine may be at rest before its supervisor leaves: a client may just be asking.
_LINGER = 0.05

#: Seconds between two looks whether a machine shall be suspended that was not to be at the last.
_RARELY = 60.0

#: Seconds for the guest to say what runs in it.
_ANSWER = 5.0

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
    suspend: Callable[[], Awaitable[None]] | None = None,
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
        suspend: suspends the machine, which has done nothing for as long as its plan says.

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
        return asyncio.run(
            _run(place, hypervisor, read_plan, emit, client, start=start, files=files, suspend=suspend)
        )


async def _run(
    place: VmPaths,
    hypervisor: ResidentHypervisor,
    read_plan: Callable[[], BootPlan],
    emit: Emit,
    client: socket.socket | None,
    *,
    start: bool,
    files: Files | None,
    suspend: Callable[[], Awaitable[None]] | None,
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
        watching = asyncio.create_task(_watch_idleness(supervisor, service, suspend))
        try:
            await _until_over(supervisor, service)
        finally:
            watching.cancel()
    finally:
        await service.server.close()
        await supervisor.close()
        place.control.unlink(missing_ok=True)
    return status


async def _watch_idleness(
    supervisor: Supervisor, service: Service, suspend: Callable[[], Awaitable[None]] | None
) -> None:
    """Have a machine suspended that does nothing, if its plan says so."""
    seen: Idleness | None = None
    while suspend is not None:
        limit = 0.0
        with contextlib.suppress(AtollError):
            limit = supervisor.plan.idle_suspend
        await asyncio.sleep(pause_between(limit or _RARELY))
        vm = supervisor.vm
        if not limit or vm is None or supervisor.state.phase is not Phase.RUNNING:
            seen = None
            continue
        cpu = cpu_time(vm.process.pid) / 1e9
        seen = observed(seen, at=time.monotonic(), cpu=cpu, used=await _is_used(supervisor, service))
        if seen.at - seen.since >= limit:
            seen = None
            try:
                await suspend()
            except AtollError as error:
                message = f"{supervisor.name} is idle and cannot be suspended: {error.message}"
                supervisor.emit(Warned(message=message, hint=error.hint))


async def _is_used(supervisor: Supervisor, service: Service) -> bool:
    """Whether somebody is connected to the machine, or has something run in it."""
    if service.server.clients or supervisor.agent is None:
        return True
    try:
        async with asyncio.timeout(_ANSWER):
            return any(one.running for one in await supervisor.agent.executions())
    except (AtollError, TimeoutError):
        return True


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
