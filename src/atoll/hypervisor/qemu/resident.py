"""QEMU processes that outlive whoever started them.

QEMU listens on sockets in the machine's directory that were bound before it was spawned, so that nobody has
to wait for them to appear, and holds a lock there through a descriptor that it inherits: whatever is killed
at whatever moment, the lock tells whether a VM runs, and QEMU's pid file which process it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from msgspec.structs import replace

from atoll import process, store
from atoll.errors import BootError, ProcessError
from atoll.hypervisor.model import Machine, MemoryFile, Port
from atoll.hypervisor.port import (
    Departure,
    Frozen,
    Instant,
    Position,
    connect,
    end,
    find_holder,
    listen,
    sweep,
    wait_for_exit,
)
from atoll.hypervisor.qemu.argv import MORE, RAM, Descriptors, pluggable, render
from atoll.hypervisor.qemu.host import QemuHost
from atoll.hypervisor.qemu.orders import Order, going_on, open_frozen, orders
from atoll.hypervisor.qemu.plugging import Plugging
from atoll.hypervisor.qemu.qmp import Monitor
from atoll.paths import VmPaths
from atoll.process import Adopted, Process

__all__ = ["QemuResident", "adopt", "settle"]

_QMP = "qmp"

#: Seconds in which a QEMU answers that waits for nothing.
_LOOK = 1.0


def settle(host: QemuHost, machine: Machine, place: VmPaths, frozen: Frozen | None = None) -> QemuResident:
    """Start QEMU at ``place``. Raises as ``ResidentHypervisor.settle``."""
    place.logs.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack, ExitStack() as undo:
        lock = store.hold(place.vm_lock)
        if lock is None:
            hint = "another Atoll has just started it; see `atoll ls`"
            raise BootError(f"{machine.name}: its VM runs already", stage="spawn", hint=hint)
        stack.callback(os.close, lock)
        place.pid_file.unlink(missing_ok=True)  # of a QEMU that was killed
        names = [
            _QMP,
            Port.CHANNEL,
            Port.SERIAL,
            *((Port.CONSOLE, Port.AGENT_LOG) if machine.consoles else ()),
            *((Port.NETWORK,) if machine.card is not None else ()),
        ]
        sockets = {name: stack.enter_context(listen(place.socket(name))) for name in names}
        log = os.open(place.log("hypervisor"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, log)
        fds = Descriptors(
            channel=sockets[Port.CHANNEL].fileno(),
            serial=sockets[Port.SERIAL].fileno(),
            qmp=sockets[_QMP].fileno(),
            console=sockets[Port.CONSOLE].fileno() if machine.consoles else -1,
            agent_log=sockets[Port.AGENT_LOG].fileno() if machine.consoles else -1,
            network=sockets[Port.NETWORK].fileno() if machine.card is not None else -1,
            listening=True,
        )
        inherited = [lock, *(sock.fileno() for sock in sockets.values())]
        monitor = pending = None
        machine, memory = _with_memory(machine, frozen, stack)
        inherited += memory
        if frozen is not None:
            state = open_frozen(stack, machine.name, frozen.state)
            inherited.append(state)
            commands = going_on(state, ram_in_file=True, devices=frozen.devices)
            if frozen.more is None:
                told = undo.enter_context(connect(place.socket(_QMP)))
                told.sendall(orders(*commands))  # QEMU finds it there, also if this process is killed now
                monitor = Monitor(told, orders=len(commands) + 1)
            else:
                source = open_frozen(stack, machine.name, frozen.more)
                pending = _Pending(commands, os.dup(source), os.dup(memory[-1]))
                undo.callback(pending.close)
        argv = render(
            machine,
            host.program,
            fds,
            sandbox=host.sandbox,
            pid_file=place.pid_file,
            incoming=frozen is not None,
        )
        try:
            child = process.spawn(argv, pass_fds=inherited, output=log, die_with_parent=False)
        except ProcessError as error:
            raise BootError(error.message, stage="spawn", hint="run `atoll doctor`") from error
        undo.pop_all()
    return QemuResident(child, place, monitor, pending)


class _Pending:
    """What QEMU is told once it has made its devices.

    Up to 8.0 virtio-mem punches out what is in its file when it is made, also where it is to go on with that.
    """

    def __init__(self, commands: Sequence[Order], source: int, target: int) -> None:
        self._commands = commands
        self._source, self._target = source, target

    async def carry_out(self, monitor: Monitor) -> None:
        """Fill the memory and have QEMU go on."""
        await monitor.execute("query-status")  # answered once all devices are there
        try:
            await asyncio.to_thread(store.copy_data, self._source, self._target)
        except OSError as error:
            raise BootError(f"memory cannot be copied: {error.strerror}", stage="spawn") from error
        for name, arguments in self._commands:
            await monitor.execute(name, arguments)

    def close(self) -> None:
        """Let go of the files."""
        for fd in (self._source, self._target):
            os.close(fd)


def _with_memory(
    machine: Machine, frozen: Frozen | None, stack: ExitStack
) -> tuple[Machine, tuple[int, ...]]:
    """The machine with RAM in files in memory, and their descriptors, which are closed with ``stack``.

    Whoever looks after the VM finds them there (``freezing.capture``).
    """
    own = frozen is not None and frozen.own
    ram = _memory(machine, RAM, machine.memory, frozen.ram if frozen else None, stack, own=own)
    room = pluggable(machine)
    if not room:
        return replace(machine, ram=_shared(ram)), (ram,)
    more = _memory(machine, MORE, room, None, stack, own=False)
    return replace(machine, ram=_shared(ram), more=_shared(more)), (ram, more)


def _shared(fd: int) -> MemoryFile:
    return MemoryFile(Path(f"/proc/self/fd/{fd}"), shared=True)


def _memory(
    machine: Machine, name: str, size: int, source: Path | None, stack: ExitStack, *, own: bool
) -> int:
    """A file of ``size`` bytes in memory, with what is in ``source``."""
    try:
        if source is not None and own:
            fd = os.open(source, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        if source is not None:
            template = open_frozen(stack, machine.name, source)
            store.copy_data(template, fd)
        os.ftruncate(fd, size)
    except OSError as error:
        raise BootError(f"{machine.name}: {source or name}: {error.strerror}", stage="spawn") from error
    return fd


def adopt(place: VmPaths) -> QemuResident | None:
    """The QEMU that runs at ``place``; None if there is none."""
    found = find_holder(place)
    return QemuResident(found, place) if found is not None else None


class QemuResident:
    """A QEMU process at its place."""

    def __init__(
        self,
        handle: Process | Adopted,
        place: VmPaths,
        monitor: Monitor | None = None,
        pending: _Pending | None = None,
    ) -> None:
        self.process = handle
        self._place = place
        self._monitor = monitor
        self._pending = pending

    @property
    def departure(self) -> Departure:
        """How it ended, by QEMU's SHUTDOWN event (QAPI ``ShutdownCause``)."""
        cause = self._monitor.shutdown_cause if self._monitor is not None else ""
        if cause in {"guest-reset", "host-qmp-system-reset", "subsystem-reset"}:
            return Departure.RESET
        if cause in {"guest-shutdown", "guest-panic"}:
            return Departure.SHUTDOWN
        return Departure.QUIT if cause else Departure.LOST

    @property
    def plugging(self) -> Plugging:
        """What can be plugged in and out."""
        return Plugging(self._attached())

    def connect(self, port: Port) -> socket.socket | None:
        """A new connection; QEMU serves one at a time."""
        try:
            return connect(self._place.socket(port))
        except OSError:
            return None

    async def proceed(self) -> None:
        """Have it go on from what it was started with, as far as that was not ordered in advance."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with closing(pending):
                await pending.carry_out(self._attached())

    async def attach(self) -> None:
        """Connect the monitor."""
        await self._attached().execute("query-status")

    async def paused(self) -> bool:
        """Whether QEMU's run state is ``paused``, or what that becomes when it was captured then."""
        status = await self._attached().execute("query-status")
        return status["status"] in {"paused", "postmigrate"}

    async def pause(self) -> None:
        """Stop the vCPUs."""
        await self._attached().execute("stop")

    async def resume(self) -> None:
        """Let the vCPUs go on."""
        await self._attached().execute("cont")

    async def free_card(self) -> None:
        """See ``Resident.free_card``."""
        from atoll.hypervisor.qemu.unplugging import give_up_frames  # noqa: PLC0415 - rarely needed

        await give_up_frames(self._attached(), self._place.socket(Port.NETWORK))

    async def capture(self, branch: Callable[[], Awaitable[None]], *, live: bool = False) -> Instant:
        """Have QEMU write its devices down; its RAM is copied meanwhile."""
        from atoll.hypervisor.qemu import background, freezing  # noqa: PLC0415 - for captures only

        if live:
            return await background.capture(self._attached(), self.process.pid, branch)
        return await freezing.capture(self._attached(), self.process.pid, branch)

    async def recover(self, *, running: bool) -> None:
        """Wait until QEMU writes nothing any more, and have no memory be write-protected."""
        from atoll.hypervisor.qemu import background, freezing  # noqa: PLC0415 - for captures only

        try:
            async with asyncio.timeout(_LOOK):
                await self.attach()
        except (BootError, TimeoutError):
            # QEMU, too, waits for RAM that it left protected: only that can have it answer.
            await background.release(self.process.pid)
        await background.abandon(self._attached(), self.process.pid)
        if running and await self.paused():
            await freezing.go_on(self._attached())

    async def press_power_button(self) -> None:
        """An ACPI power button."""
        await self._attached().execute("system_powerdown")

    async def quit(self) -> None:
        """Have QEMU end."""
        await self._attached().execute("quit")

    async def position(self) -> Position:
        """Where the first vCPU executes."""
        try:
            return await self._attached().position()
        except BootError:
            return Position.UNKNOWN

    async def wait(self) -> int:
        """Wait for QEMU's end; its SHUTDOWN event is read by then."""
        status = await wait_for_exit(self.process)
        if self._monitor is not None:
            await self._monitor.drained()
        return status

    async def close(self) -> None:
        """Kill QEMU if it runs, and forget it."""
        try:
            await end(self.process)
        finally:
            await self.leave()
            sweep(self._place)

    async def leave(self) -> None:
        """Close the monitor and the handle."""
        if self._pending is not None:
            self._pending.close()
            self._pending = None
        if self._monitor is not None:
            monitor, self._monitor = self._monitor, None
            await monitor.close()
        self.process.forget()

    def _attached(self) -> Monitor:
        if self._monitor is None or self._monitor.failed:
            try:
                self._monitor = Monitor(connect(self._place.socket(_QMP)))
            except OSError as error:
                message = f"{self._place.directory.name}: QEMU's monitor: {error.strerror}"
                raise BootError(message, stage="spawn") from error
        return self._monitor
