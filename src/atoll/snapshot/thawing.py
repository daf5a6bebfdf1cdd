"""What has to be done to go on from a snapshot's RAM, of whatever it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from atoll.errors import StoreError
from atoll.hypervisor.model import Accelerator, Machine
from atoll.hypervisor.qemu.host import QemuHost, cpu_identity, host_memory
from atoll.image.kernel import host_architecture
from atoll.snapshot.catalog import Snapshot, manifest_of
from atoll.vm.state import StateError

__all__ = ["Thawed", "require_fit", "require_host", "thaw"]

#: Nobody can change the file any more, nor take this away from it (memfd_create(2), fcntl(2)).
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Thawed(msgspec.Struct, frozen=True):
    """Descriptors of files in memory with what a VM was.

    Attributes:
        state: of its devices.
        ram: its RAM.
        more: RAM that was plugged in; -1 if that is among the devices, or cannot be.
    """

    state: int
    ram: int
    more: int = -1


def require_fit(snapshot: Snapshot, host: QemuHost, *, lost: Sequence[Path] = (), hint: str) -> None:
    """See that this host can go on from a snapshot's RAM.

    Args:
        snapshot: with RAM.
        host: its QEMU.
        lost: files that its VM had and that are here no more.
        hint: what can be done instead.

    Raises:
        StateError: ``state.mismatch``: with which other QEMU, CPU or kernel it was made, or that
            it had more memory than this host.
    """
    manifest = manifest_of(snapshot)
    _require_memory(snapshot, manifest.memory, hint)
    reasons = (
        (host.version != manifest.hypervisor, f"QEMU {manifest.hypervisor}; this host has {host.version}"),
        (cpu_identity() != manifest.cpu, "another CPU"),
        (bool(lost), f"a kernel whose modules are gone: {', '.join(map(str, lost))}"),
    )
    for differs, what in reasons:
        if differs:
            message = f"snapshot {manifest.name} was made with {what}"
            raise StateError(message, code="mismatch", hint=hint)


def require_host(machine: Machine, hint: str) -> None:
    """See that this host can run a VM from elsewhere.

    Args:
        machine: the VM.
        hint: what can be done instead.

    Raises:
        StateError: ``state.mismatch``: this host is too small, or of another kind.
    """
    foreign = machine.architecture != host_architecture() and machine.accelerator is not Accelerator.TCG
    if foreign or machine.memory > host_memory():
        message = f"it was made of {machine.architecture} with {machine.memory >> 20} MiB of memory"
        raise StateError(message, code="mismatch", hint=hint)


def _require_memory(snapshot: Snapshot, count: int, hint: str = "use a host with more memory") -> None:
    """See that this host has as much memory: one that had not would kill programs half-way."""
    most = host_memory()
    if count > most:
        name = manifest_of(snapshot).name
        message = f"snapshot {name} needs {count >> 20} MiB of memory; this host has {most >> 20}"
        raise StateError(message, code="mismatch", hint=hint)


def thaw(snapshot: Snapshot, stack: ExitStack, *, sealed: bool = False) -> Thawed:
    """A snapshot's RAM and devices, verified, in files in memory that are closed with ``stack``.

    Args:
        snapshot: whose other files the caller compares (``catalog.check``).
        stack: of the caller.
        sealed: nobody can write to the files: any number of VMs begin with them.

    Raises:
        StoreError: ``store.corrupt``: it was changed, or has no RAM; ``store.full``: no memory is left.
        StateError: ``state.mismatch``: what is stored is more than this host's memory.
    """
    from atoll.snapshot import packs  # noqa: PLC0415 - for snapshots only, and slow to load

    index = packs.load(snapshot.place.directory, manifest_of(snapshot).packs)
    # Chunks that are stored once may stand for any number of bytes.
    _require_memory(snapshot, sum(image.data for image in index.images))
    fds = []
    for name, image in zip(Thawed.__struct_fields__, index.images, strict=False):
        fd = os.memfd_create(f"atoll-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        stack.callback(os.close, fd)
        packs.restore(image, snapshot.place.directory, fd)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        fds.append(fd)
    if len(fds) < 2:
        message = f"snapshot {snapshot.id} lacks its RAM"
        raise StoreError(message, code="corrupt", hint="`atoll snapshot rm` removes it")
    return Thawed(*fds)
