"""The first step of a VM's life, apart from the others: it needs neither an event loop nor its imports.

A program that spawns first and loads the rest afterwards has the guest booting meanwhile.
"""

from __future__ import annotations

import time

import msgspec

from atoll.events import Emit, StageReached, VmSpawned
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import Hypervisor, VirtualMachine

__all__ = ["Spawned", "spawn"]


class Spawned(msgspec.Struct, frozen=True):
    """A VM whose process runs; ``began`` is when it was started, by the monotonic clock."""

    name: str
    vm: VirtualMachine
    began: float


def spawn(hypervisor: Hypervisor, machine: Machine, emit: Emit) -> Spawned:
    """Start ``machine``. Raises ``BootError`` with stage ``spawn``."""
    began = time.monotonic()
    vm = hypervisor.spawn(machine)
    try:
        emit(VmSpawned(vm=machine.name, pid=vm.process.pid))
        emit(StageReached(vm=machine.name, stage="spawn", elapsed=time.monotonic() - began))
    except BaseException:
        vm.discard()
        raise
    return Spawned(machine.name, vm, began)
