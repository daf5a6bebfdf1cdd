"""The first step of a VM's life, apart from the others: it needs neither an event loop nor its imports.

A program that spawns first and loads the rest afterwards has the guest booting meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from atoll.events import Emit, StageReached, VmSpawned
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import CloningHypervisor, Hypervisor, VirtualMachine
from atoll.image.oci.runconfig import RunConfig
from atoll.vm.network.attachment import Attachment

__all__ = ["Clone", "Spawned", "spawn", "spawn_clone"]


class Clone(msgspec.Struct, frozen=True):
    """What a VM goes on from.

    Attributes:
        template: name of the template.
        state: of its devices.
        memory: bytes that the VM shall have; what the template has not is plugged in.
        created: when the template was made, seconds since the epoch: tells it from others of its name.
        snapshot: id of the snapshot from which it goes on, or the VM did that it is a copy of; else empty.
        same: it stays who it was: nothing of its root is changed.
    """

    template: str
    state: Path
    memory: int
    created: float = 0.0
    snapshot: str = ""
    same: bool = False


def _nothing() -> None:
    """Nothing is held for a VM."""


class Spawned(msgspec.Struct, frozen=True):
    """A VM whose process runs.

    Attributes:
        name: of the VM.
        hypervisor: what runs it.
        vm: the VM.
        began: when it was started, by the monotonic clock.
        machine: as it was asked for.
        clone: what it goes on from; None if it boots.
        modules: of the kernel, which are loaded once it is up; a clone has them.
        attachment: where its network card is plugged in; None if that has none.
        release: lets go of what is held for it. Called once it is gone; calling it twice is fine.
        run: how its image wants to be run; None if that says nothing of it. It is no part of the VM.
        shell: what runs in it where no command is given; empty if it has none.
    """

    name: str
    hypervisor: Hypervisor
    vm: VirtualMachine
    began: float
    machine: Machine
    clone: Clone | None = None
    modules: tuple[str, ...] = ()
    attachment: Attachment | None = None
    release: Callable[[], None] = _nothing
    run: RunConfig | None = None
    shell: str = "/bin/sh"

    def discard(self) -> None:
        """Remove the VM, which nobody has talked to; blocks for milliseconds."""
        try:
            self.vm.discard()
        finally:
            self.release()


def spawn(
    hypervisor: Hypervisor,
    machine: Machine,
    emit: Emit,
    *,
    modules: tuple[str, ...] = (),
    attachment: Attachment | None = None,
) -> Spawned:
    """Start ``machine``. Raises ``BootError`` with stage ``spawn``."""
    began = time.monotonic()
    vm = hypervisor.spawn(machine)
    spawned = Spawned(machine.name, hypervisor, vm, began, machine, modules=modules, attachment=attachment)
    return _told(spawned, emit)


def spawn_clone(
    hypervisor: CloningHypervisor,
    machine: Machine,
    clone: Clone,
    emit: Emit,
    *,
    hold: bool = False,
    attachment: Attachment | None = None,
) -> Spawned:
    """Start ``machine`` from where its template was frozen. Raises as ``spawn``.

    Args:
        hypervisor: what runs it.
        machine: the VM.
        clone: what it goes on from.
        emit: told of the start.
        attachment: where its network card is plugged in.
        hold: it goes on when ``FreezableVm.proceed`` is called, and what from may be written until then.
    """
    began = time.monotonic()
    vm = hypervisor.clone(machine, clone.state)
    if not hold:
        vm.proceed()
    spawned = Spawned(machine.name, hypervisor, vm, began, machine, clone, attachment=attachment)
    return _told(spawned, emit)


def _told(spawned: Spawned, emit: Emit) -> Spawned:
    try:
        emit(VmSpawned(vm=spawned.name, pid=spawned.vm.process.pid))
        emit(StageReached(vm=spawned.name, stage="spawn", elapsed=time.monotonic() - spawned.began))
    except BaseException:
        spawned.vm.discard()
        raise
    return spawned
