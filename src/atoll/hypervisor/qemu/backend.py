"""Spawning QEMU and being told of its end."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from atoll import process
from atoll.errors import BootError, ProcessError
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import Capture, ChannelEnd, Position, end, wait_for_exit
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.hypervisor.qemu.host import QemuHost
from atoll.paths import VmPaths

if TYPE_CHECKING:
    from atoll.hypervisor.qemu.qmp import Monitor
    from atoll.hypervisor.qemu.resident import QemuResident

__all__ = ["QemuHypervisor", "QemuVm"]


class QemuHypervisor:
    """Spawns QEMU.

    Args:
        host: which QEMU, and what it can do.
    """

    name = "qemu"

    def __init__(self, host: QemuHost) -> None:
        self._host = host

    def spawn(self, machine: Machine) -> QemuVm:
        """Start QEMU with every descriptor passed in: no path, no polling. Raises ``BootError``."""
        with ExitStack() as ours, ExitStack() as theirs:
            channel = _pair(ours, theirs)
            console = _pair(ours, theirs)
            qmp = _pair(ours, theirs)
            stderr_read, stderr_write = os.pipe()
            ours.callback(os.close, stderr_read)
            theirs.callback(os.close, stderr_write)
            fds = Descriptors(channel=channel[1].fileno(), serial=console[1].fileno(), qmp=qmp[1].fileno())
            argv = render(machine, self._host.program, fds, sandbox=self._host.sandbox)
            try:
                child = process.spawn(argv, pass_fds=[fds.channel, fds.serial, fds.qmp], output=stderr_write)
            except ProcessError as error:
                raise BootError(error.message, stage="spawn", hint="run `atoll doctor`") from error
            ours.pop_all()
            return QemuVm(
                child,
                channel=channel[0],
                console=Capture(console[0].detach()),
                diagnostics=Capture(stderr_read),
                qmp=qmp[0],
            )

    def settle(self, machine: Machine, place: VmPaths) -> QemuResident:
        """Start QEMU so that it stays. Raises ``BootError``."""
        from atoll.hypervisor.qemu import resident  # noqa: PLC0415 - a sandbox does not need it

        return resident.settle(self._host, machine, place)

    def adopt(self, place: VmPaths) -> QemuResident | None:
        """The QEMU that runs at ``place``."""
        from atoll.hypervisor.qemu import resident  # noqa: PLC0415

        return resident.adopt(place)


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    return ours.enter_context(one), theirs.enter_context(other)


class QemuVm:
    """A QEMU process."""

    def __init__(
        self,
        child: process.Process,
        *,
        channel: socket.socket,
        console: Capture,
        diagnostics: Capture,
        qmp: socket.socket,
    ) -> None:
        self.process = child
        self.console = console
        self.diagnostics = diagnostics
        self._qmp = qmp
        self._monitor: Monitor | None = None
        self._channel = ChannelEnd(channel)

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
            self._monitor = Monitor(self._qmp)
        return self._monitor

    def discard(self) -> None:
        """Kill QEMU and close all it was connected to."""
        self.process.close()
        self._channel.close()
        self._qmp.close()
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
