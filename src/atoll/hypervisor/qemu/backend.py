"""Spawning QEMU and being told of its end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from atoll import process, store
from atoll.errors import BootError, ProcessError
from atoll.hypervisor.cgroups import bounds_of
from atoll.hypervisor.confinement import Confinement, confine
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import (
    Capture,
    ChannelEnd,
    Frozen,
    Position,
    Standstill,
    end,
    listen,
    wait_for_exit,
)
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.hypervisor.qemu.host import QemuHost
from atoll.hypervisor.qemu.orders import Order, going_on, open_frozen, orders
from atoll.paths import VmPaths

if TYPE_CHECKING:
    import asyncio

    from atoll.hypervisor.qemu.plugging import Plugging
    from atoll.hypervisor.qemu.qmp import Monitor
    from atoll.hypervisor.qemu.resident import QemuResident

__all__ = ["QemuHypervisor", "QemuVm"]


class QemuHypervisor:
    """Spawns QEMU.

    Args:
        host: which QEMU, and what it can do.
        cards: directory for the sockets at which network cards of VMs listen that do not stay.

    Attributes:
        host: likewise.
    """

    name = "qemu"

    def __init__(self, host: QemuHost, cards: Path | None = None) -> None:
        self.host = host
        self._cards = cards

    def vector(self, machine: Machine, *, incoming: bool = False) -> tuple[str, ...]:
        """The argument vector for ``machine``, but for the numbers of descriptors."""
        return render(
            machine,
            self.host.program,
            Descriptors(-1, -1, -1),
            sandbox=self.host.sandbox,
            incoming=incoming,
        )

    def spawn(self, machine: Machine) -> QemuVm:
        """Start QEMU with every descriptor passed in: no path, no polling. Raises ``BootError``."""
        return self._start(machine)

    def clone(self, machine: Machine, state: Path) -> QemuVm:
        """Start QEMU, which then waits for ``proceed``. Raises ``BootError``."""
        with ExitStack() as files:
            fd = open_frozen(files, machine.name, state)
            inherited = [fd]
            if machine.ram is not None and machine.ram.path is not None:
                ram = open_frozen(files, machine.name, machine.ram.path)
                inherited.append(ram)
                # QEMU opens it once more, to write to its mapping; its name may lead to another by then.
                by_number = replace(machine.ram, path=Path(f"/proc/self/fd/{ram}"))
                machine = replace(machine, ram=by_number)
            vm = self._start(machine, frozen=inherited)
        vm.orders = going_on(fd, ram_in_file=len(inherited) > 1)
        return vm

    def _start(self, machine: Machine, *, frozen: Sequence[int] = ()) -> QemuVm:
        with ExitStack() as ours, ExitStack() as theirs:
            channel = _pair(ours, theirs)
            console = _pair(ours, theirs)
            qmp = _pair(ours, theirs)
            stderr_read, stderr_write = os.pipe()
            ours.callback(os.close, stderr_read)
            theirs.callback(os.close, stderr_write)
            consoles = [_pair(ours, theirs) for _ in range(2 if machine.consoles else 0)]
            card, listener = self._listen(machine, ours, theirs)
            fds = Descriptors(
                channel=channel[1].fileno(),
                serial=console[1].fileno(),
                qmp=qmp[1].fileno(),
                console=consoles[0][1].fileno() if consoles else -1,
                agent_log=consoles[1][1].fileno() if consoles else -1,
                network=listener,
            )
            pairs = (channel, console, qmp, *consoles)
            inherited = [*(pair[1].fileno() for pair in pairs), *frozen, *([listener] if card else [])]
            argv = render(machine, self.host.program, fds, sandbox=self.host.sandbox, incoming=bool(frozen))
            confinement = confine(machine.name, bounds_of(machine))
            if confinement is not None:
                ours.callback(confinement.remove)
            entering = confinement.entries if confinement is not None else ()
            try:
                child = process.spawn(argv, pass_fds=inherited, output=stderr_write, entering=entering)
            except ProcessError as error:
                raise BootError(error.message, stage="spawn", hint="run `atoll doctor`") from error
            ours.pop_all()
            return QemuVm(
                child,
                channel=channel[0],
                console=Capture(console[0].detach()),
                diagnostics=Capture(stderr_read),
                qmp=qmp[0],
                unread=tuple(pair[0] for pair in consoles),
                confinement=confinement,
                card=card,
            )

    def _listen(self, machine: Machine, ours: ExitStack, theirs: ExitStack) -> tuple[Path | None, int]:
        """Where the VM's network card is to be reached, and the socket; None and -1 if it has none."""
        if machine.card is None:
            return None, -1
        assert self._cards is not None
        path = self._cards / os.urandom(8).hex()
        with store.refusing(self._cards):
            self._cards.mkdir(mode=0o700, parents=True, exist_ok=True)
        sock = theirs.enter_context(listen(path))
        ours.callback(path.unlink, missing_ok=True)
        return path, sock.fileno()

    def settle(self, machine: Machine, place: VmPaths, frozen: Frozen | None = None) -> QemuResident:
        """Start QEMU so that it stays. Raises ``BootError``."""
        from atoll.hypervisor.qemu import resident  # noqa: PLC0415 - a sandbox does not need it

        return resident.settle(self.host, machine, place, frozen)

    def adopt(self, place: VmPaths) -> QemuResident | None:
        """The QEMU that runs at ``place``."""
        from atoll.hypervisor.qemu import resident  # noqa: PLC0415

        return resident.adopt(place)


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    return ours.enter_context(one), theirs.enter_context(other)


class QemuVm:
    """A QEMU process.

    Attributes:
        orders: what makes a clone go on.
        card: socket at which its network card is to be reached; None if it has none.
    """

    def __init__(
        self,
        child: process.Process,
        *,
        channel: socket.socket,
        console: Capture,
        diagnostics: Capture,
        qmp: socket.socket,
        unread: tuple[socket.socket, ...] = (),
        confinement: Confinement | None = None,
        card: Path | None = None,
    ) -> None:
        self.process = child
        self.card = card
        self.console = console
        self.diagnostics = diagnostics
        self._qmp = qmp
        self._unread = unread
        self._confinement = confinement
        self._monitor: Monitor | None = None
        self._turn: asyncio.Lock | None = None
        self._ordered = 0
        self.orders: tuple[Order, ...] = ()
        self._channel = ChannelEnd(channel)

    @property
    def plugging(self) -> Plugging:
        """What can be plugged in and out."""
        from atoll.hypervisor.qemu.plugging import Plugging  # noqa: PLC0415 - rarely needed

        return Plugging(self._connected())

    def proceed(self) -> None:
        """Write to the monitor what makes QEMU go on. Does not wait."""
        assert self._monitor is None
        assert self.orders
        self._ordered = len(self.orders) + 1
        with contextlib.suppress(OSError):  # a QEMU that is gone is known by its channel
            self._qmp.sendall(orders(*self.orders))

    def take_channel(self) -> socket.socket:
        """The host's end of the channel, once."""
        return self._channel.take()

    async def wait(self) -> int:
        """Wait for QEMU's end."""
        return await wait_for_exit(self.process)

    async def position(self) -> Position:
        """Where the first vCPU executes; ``UNKNOWN`` if QEMU does not answer."""
        try:
            return await self._connected().position()
        except BootError:
            return Position.UNKNOWN

    def _connected(self) -> Monitor:
        from atoll.hypervisor.qemu.qmp import Monitor  # noqa: PLC0415 - slow to load, rarely needed

        if self._monitor is None:
            self._monitor = Monitor(self._qmp, orders=self._ordered)
        return self._monitor

    def _alone(self) -> asyncio.Lock:
        """Held by whoever stops the vCPUs or lets them go on."""
        import asyncio  # noqa: PLC0415 - a spawn needs none of it

        if self._turn is None:
            self._turn = asyncio.Lock()
        return self._turn

    async def pause(self) -> None:
        """Stop the vCPUs."""
        async with self._alone():
            await self._connected().execute("stop")

    async def resume(self) -> None:
        """Let the vCPUs go on."""
        async with self._alone():
            await self._connected().execute("cont")

    async def free_card(self) -> None:
        """See ``VirtualMachine.free_card``."""
        from atoll.hypervisor.qemu.unplugging import give_up_frames  # noqa: PLC0415 - rarely needed

        if self.card is not None:
            async with self._alone():
                await give_up_frames(self._connected(), self.card)

    async def copy(self, fd: int, *, leave_out_shared: bool = False, live: bool = False) -> Standstill:
        """Have QEMU write devices and RAM, and go on."""
        from atoll.hypervisor.qemu import background, freezing  # noqa: PLC0415

        monitor = self._connected()
        async with self._alone():
            if live:
                return await background.copy(monitor, self.process.pid, fd, leave_out_shared=leave_out_shared)
            return Standstill(await freezing.copy(monitor, fd, leave_out_shared=leave_out_shared))

    async def freeze(self, state: Path) -> None:
        """Have QEMU write its devices' state; RAM in a shared file is left out."""
        from atoll.hypervisor.qemu import freezing  # noqa: PLC0415 - for templates only

        await freezing.freeze(self._connected(), state)

    def discard(self) -> None:
        """Kill QEMU and close all it was connected to."""
        self.process.close()
        if self._confinement is not None:
            self._confinement.remove()
        if self.card is not None:
            self.card.unlink(missing_ok=True)
        self._channel.close()
        self._qmp.close()
        for sock in self._unread:
            sock.close()
        self.console.close()
        self.diagnostics.close()

    async def close(self) -> None:
        """``discard``, waiting on the event loop."""
        try:
            await end(self.process)
            if self._monitor is not None:
                await self._monitor.close()
        finally:
            self.discard()
