"""The virtio socket of a sandbox: of one that is booted, since what is cloned shares no memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll.errors import UsageError
from atoll.events import Emit
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import SUN_PATH
from atoll.vm.bootplan import OpenPort
from atoll.vm.life import Vm
from atoll.vm.vsock import DRIVER, VsockDevice
from atoll.vsock.hello import MOST_PORT

__all__ = ["Wanted", "parse"]


class Wanted(msgspec.Struct, frozen=True):
    """A virtio socket as it was asked for.

    Attributes:
        ports: of the host that the guest may connect to.
        path: unix socket where programs of the host connect; none if empty.
        devices: drivers that it needs.
    """

    ports: tuple[OpenPort, ...] = ()
    path: str = ""
    devices: ClassVar[tuple[str, ...]] = (DRIVER,)

    def shaped(self, machine: Machine) -> Machine:
        """The same VM with a place for the device, and memory that its server can map."""
        return msgspec.structs.replace(machine, shared_memory=True, slots=1)

    async def plug_into(self, vm: Vm, emit: Emit) -> VsockDevice:
        """Give ``vm`` its device. Raises as ``VsockDevice.plug``; nothing is left then."""
        device = VsockDevice(vm.name, emit)
        try:
            at = Path(self.path) if self.path else None
            device.join(vm.freezable, vm.agent, vm.machine.slots - 1, self.ports, modules=(), at=at)
            await device.plug()
        except BaseException:
            await device.forget()
            raise
        return device


def parse(
    vsock: bool | str | Path,
    vsock_ports: Mapping[int, str | Path] | None,
    *,
    template: str | None = None,
    snapshot: str | None = None,
) -> Wanted:
    """What was asked for. Raises ``UsageError``: ``usage.vsock``: it is malformed, or cannot be."""
    if template is not None or snapshot is not None:
        message = "what goes on from a template or a snapshot can have no virtio socket"
        raise UsageError(message, code="vsock", hint="name an image; the sandbox is booted then")
    ports = tuple(OpenPort(_port(port), _socket(path)) for port, path in (vsock_ports or {}).items())
    return Wanted(ports, "" if isinstance(vsock, bool) else _socket(vsock))


def _port(port: int) -> int:
    if not 0 <= port <= MOST_PORT:
        raise UsageError(f"{port} is no port", code="vsock", hint=f"ports are 0 to {MOST_PORT}")
    return port


def _socket(path: str | Path) -> str:
    full = os.path.abspath(os.path.expanduser(path)) if str(path) else ""
    if not 0 < len(os.fsencode(full)) <= SUN_PATH:
        message = f"{full!r} is no path for a socket"
        raise UsageError(message, code="vsock", hint=f"use one of {SUN_PATH} bytes at most")
    return full
