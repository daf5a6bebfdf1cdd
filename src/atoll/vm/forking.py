"""Copying a running VM: RAM, processes and disks, to others that go on from the same instant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import msgspec
from msgspec.structs import replace

from atoll.errors import UsageError
from atoll.events import Emit, VmForked
from atoll.hypervisor.model import Machine, MemoryFile
from atoll.hypervisor.port import CloningHypervisor, FreezableVm
from atoll.vm.life import Vm
from atoll.vm.spawning import Clone, Spawned, spawn_clone

__all__ = ["Forked", "fork"]


class Forked(msgspec.Struct, frozen=True):
    """The children of a VM, on their way up, and for how long it stood still, seconds."""

    children: tuple[Spawned, ...]
    stopped: float


async def fork(parent: Vm, names: Sequence[str], emit: Emit) -> Forked:
    """Copy ``parent``, which goes on, to one VM for each of ``names``.

    The children's hypervisors start while the parent is copied, and read the copy when it is whole.

    Raises:
        UsageError: ``usage.fork``: the VM writes to a disk that cannot be in two of them.
        BootError: stage ``copy`` or ``spawn``; no child is left, and the parent goes on.
    """
    _refuse_disks(parent.machine)
    hypervisor = cast(CloningHypervisor, parent.hypervisor)
    with _unnamed_file() as fd, ExitStack() as undo:
        children = []
        for name in names:
            child = _spawn(parent, name, fd, hypervisor, emit)
            undo.callback(child.vm.discard)
            children.append(child)
        stopped = (await parent.freezable.copy(fd)).seconds
        for child in children:
            cast(FreezableVm, child.vm).proceed()
        undo.pop_all()
    emit(VmForked(vm=parent.name, children=tuple(names), stopped=stopped))
    return Forked(tuple(children), stopped)


def _spawn(parent: Vm, name: str, state: int, hypervisor: CloningHypervisor, emit: Emit) -> Spawned:
    ram = MemoryFile(None, shared=False) if parent.machine.ram is not None else None
    machine = replace(parent.machine, name=name, ram=ram)
    snapshot = parent.clone.snapshot if parent.clone is not None else ""
    clone = Clone("", Path(f"/proc/self/fd/{state}"), machine.memory, snapshot=snapshot)
    attachment = parent.attachment and replace(parent.attachment, hostname=name)
    return spawn_clone(hypervisor, machine, clone, emit, hold=True, attachment=attachment)


def _refuse_disks(machine: Machine) -> None:
    for disk in machine.disks:
        if not disk.read_only:
            message = f"{machine.name} writes to a disk, which cannot be in two VMs"
            raise UsageError(message, code="fork", hint="fork a sandbox, whose disk is in its memory")


@contextmanager
def _unnamed_file() -> Iterator[int]:
    """A file in memory; each who opens it anew reads from its beginning."""
    fd = os.memfd_create("atoll-fork", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
