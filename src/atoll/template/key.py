"""What a template depends on, and what VM it is made of: pure functions.

A clone that differs in the least from what was frozen hangs or crashes in a way that nobody can read: a CPU
with other features, a device at another address. So everything that the two must have in common is written
down with a template, and one for which it reads otherwise is stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from atoll.hypervisor.model import Machine, MemoryFile
from atoll.hypervisor.port import CloningHypervisor
from atoll.paths import TemplatePaths
from atoll.template.cache import Manifest
from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.network.attachment import Attachment
from atoll.vm.plan import Bootable, Shape, plan_growing

__all__ = [
    "FORMAT",
    "Recipe",
    "base_memory",
    "clone_of",
    "draft",
    "identity_of",
    "most_memory",
    "name_of",
    "original",
    "plan_original",
    "with_disks_at",
]

_MIB = 1 << 20

#: Characters that an image has in the name of a template.
_LONGEST_WORD = 100

#: Counts changes of what a template is.
FORMAT = 1

#: What a template's guest is started with, bytes: what a clone has beyond it is plugged in.
_BASES = (512 * _MIB, 256 * _MIB, 128 * _MIB)

#: What guests take memory in, bytes: QEMU 2 MiB, kernels before 5.16 4 MiB. A rest would never be taken.
_STEP = 4 * _MIB

#: So much of what a VM may have at most cannot be plugged in, bytes: QEMU gets a multiple of a memory block.
_BLOCK = 128 * _MIB

#: Up to how much memory clones of the same template can have, bytes, and how many times as much those of the
#: next. Each clone pays for what it could have: QEMU keeps and fills bitmaps of it, 96 KiB for each GiB. The
#: last block cannot be plugged in: it is more than 4 GiB, so that this serves 4 GiB.
_MOST = 4608 * _MIB
_MORE = 4

#: The names that all templates have: what a clone is called does not change what it is.
_NAME = "template"
_MACHINE_ID = "0" * 32


class Recipe(msgspec.Struct, frozen=True):
    """What a template is made of.

    Attributes:
        hypervisor: what runs it.
        machine: as ``plan_original`` plans it.
        manifest: all but what is known when it is sealed.
        modules: kernel modules that clones shall have, in order.
        held: its boot stops before the root: clones go on to one of their own.
        boot_timeout: seconds in which it must be up.
        keeps_disks: it has disks of its own, by hard links: what they come from may be built anew.
        patience: seconds in which it must be prepared once it is up.
        attachment: where its network card is plugged in while it is prepared; None if it stays unplugged.
    """

    hypervisor: CloningHypervisor
    machine: Machine
    manifest: Manifest
    modules: tuple[str, ...]
    boot_timeout: float
    held: bool = False
    keeps_disks: bool = False
    patience: float = 30.0
    attachment: Attachment | None = None
    inherited: Inheritance | None = None


def base_memory(memory: int, *, least: int, most: int) -> int:
    """Bytes that the template for a VM with so much memory has.

    Args:
        memory: of the VM, bytes.
        least: what its kernel needs to come up.
        most: up to how much its clones can grow; 0 if its kernel cannot take memory that is plugged in.
    """
    if memory <= most - _BLOCK:
        for base in _BASES:
            if least <= base <= memory and (memory - base) % _STEP == 0:
                return base
    return memory


def most_memory(memory: int, *, host: int) -> int:
    """Up to how many bytes clones can have of the template for a VM with so much memory.

    Args:
        memory: of the VM, bytes.
        host: what the host has.
    """
    most = _MOST
    while memory > most - _BLOCK:
        most *= _MORE
    return min(most, host)


def plan_original(files: Bootable, shape: Shape, *, most: int, names: bool = False) -> Machine:
    """The VM that is frozen once it is up.

    Args:
        files: what it boots from.
        shape: its size.
        most: up to how much memory clones may have, bytes.
        names: as for ``plan``.
    """
    return plan_growing(_NAME, files, shape, most=most, machine_id=_MACHINE_ID, names=names)


def name_of(image: str, shape: Shape, kernel: str, *, most: int = 0) -> str:
    """The name of a template: what a user may choose.

    Args:
        image: name of the image.
        shape: of the template.
        kernel: the kernel's identity.
        most: up to how much memory clones may have, bytes; 0 if they cannot grow.
    """
    size = f"{shape.memory // _MIB}M" + (f"-{most // _MIB}M" if most else "")
    return ".".join((_word(image), f"{shape.vcpus}", size, shape.accelerator, kernel[:8]))


def _word(image: str) -> str:
    """The name of an image as a part of the name of a file."""
    word = image.replace(":", "+").replace("/", "=").replace("@", "=")
    if len(word) <= _LONGEST_WORD:
        return word
    import hashlib  # noqa: PLC0415 - few images have such names

    return f"{word[:_LONGEST_WORD]}~{hashlib.sha256(image.encode()).hexdigest()[:8]}"


def identity_of(argv: Iterable[str], parts: Iterable[str]) -> str:
    """What a template and its clones must have in common, word by word.

    Args:
        argv: the hypervisor's argument vector for the template.
        parts: whatever else must be the same: digests of what the vector names, the hypervisor, the CPU.
    """
    return "\n".join((f"{FORMAT}", *argv, "", *parts))


def draft(machine: Machine, *, name: str, identity: str, hypervisor: str, image: str = "") -> Manifest:
    """What can be said of a template before it is made.

    Args:
        machine: that is to be frozen.
        name: of the template.
        identity: as ``identity_of``.
        hypervisor: QEMU's version.
        image: name of its image; empty for machines.
    """
    return Manifest(
        name=name,
        identity=identity,
        image=image,
        accelerator=machine.accelerator,
        vcpus=machine.vcpus,
        memory=machine.memory,
        hypervisor=f"QEMU {hypervisor}",
        created=0.0,
    )


def original(machine: Machine, ram: Path) -> Machine:
    """``machine`` with RAM that others can start from."""
    return replace(machine, ram=MemoryFile(ram, shared=True))


def with_disks_at(machine: Machine, place: TemplatePaths) -> Machine:
    """``machine`` with disks that lie in a template's directory."""
    return replace(
        machine, disks=tuple(replace(disk, path=place.disk(disk.serial)) for disk in machine.disks)
    )


def clone_of(machine: Machine, name: str, ram: Path) -> Machine:
    """The VM that goes on where ``machine`` was frozen, and leaves ``ram`` as it is."""
    return replace(machine, name=name, ram=MemoryFile(ram, shared=False))
