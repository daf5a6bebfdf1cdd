"""Puts the parts together: from settings and a request to a machine that can be spawned."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from atoll.config import Config
from atoll.errors import PreflightError, UsageError
from atoll.events import Emit, ignore
from atoll.hypervisor.model import Architecture, Machine, parse_architecture
from atoll.hypervisor.port import Hypervisor
from atoll.hypervisor.qemu.backend import QemuHypervisor
from atoll.hypervisor.qemu.host import QemuHost, inspect_host
from atoll.image import catalog, kernel
from atoll.vm import accelerator
from atoll.vm.plan import Bootable, Shape, check_memory, plan, smallest_memory
from atoll.vm.spawning import Spawned, spawn

__all__ = [
    "Foundation",
    "Prepared",
    "candidate",
    "ensure_image",
    "found",
    "host_architecture",
    "launch",
    "new_name",
    "prepare",
]


class Foundation(msgspec.Struct, frozen=True):
    """What any VM is made of.

    Attributes:
        hypervisor: what runs it.
        host: the hypervisor's executable.
        files: what it boots from, without a root.
        shape: its size and accelerator.
        devices: kernel modules by the device that needs them.
    """

    hypervisor: QemuHypervisor
    host: QemuHost
    files: Bootable
    shape: Shape
    devices: dict[str, tuple[str, ...]]


class Prepared(msgspec.Struct, frozen=True):
    """A machine and what spawns it."""

    hypervisor: Hypervisor
    machine: Machine


def host_architecture() -> Architecture:
    """This host's architecture. Raises ``PreflightError`` where no guest agent exists for it."""
    name = kernel.host_architecture()
    try:
        return parse_architecture(name)
    except ValueError:
        message = f"hosts of architecture {name} are not supported"
        raise PreflightError(message, hint="use x86_64 or aarch64") from None


def found(config: Config, *, emit: Emit = ignore) -> Foundation:
    """Everything but a root that must be there before a VM is spawned, built where it is missing.

    Quick once all is cached: some files are stat-ed and four small records read. Builds take tens of seconds.

    Args:
        config: size, accelerator, kernel and directories.
        emit: told of progress.

    Raises:
        PreflightError: the host lacks something.
        ImageError: the kernel cannot be had.
        StoreError: a directory is full or cannot be written.
    """
    native = host_architecture()
    tested = candidate(config, native, emit)
    least = smallest_memory(_size(tested.files.kernel), _size(tested.files.initramfs))
    check_memory(config.memory, least=least, most=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    chosen = accelerator.choose(config.accel, tested, config.paths.verdicts, emit)
    return Foundation(
        hypervisor=QemuHypervisor(tested.host),
        host=tested.host,
        files=tested.files,
        shape=Shape(native, chosen.accelerator, config.cpus, config.memory, chosen.tsc_khz),
        devices=tested.devices,
    )


def ensure_image(config: Config, name: str, emit: Emit = ignore) -> catalog.Image:
    """The image ``name``, built if it is not here. Raises as ``catalog.ensure``."""
    return catalog.ensure(
        config.paths, name, architecture=host_architecture(), mirror=config.ubuntu_mirror, emit=emit
    )


def prepare(config: Config, name: str, image: str, *, emit: Emit = ignore) -> Prepared:
    """A throw-away VM of ``image``.

    Raises:
        ImageError: the image is unknown, corrupt, or cannot be built; else as ``found``.
    """
    image_root = ensure_image(config, image, emit).root
    base = found(config, emit=emit)
    files = msgspec.structs.replace(base.files, root=image_root)
    return Prepared(base.hypervisor, plan(name, files, base.shape))


def new_name() -> str:
    """A name for a sandbox that no other has."""
    return f"sandbox-{os.urandom(4).hex()}"


def launch(config: Config, name: str, image: str, *, emit: Emit = ignore) -> Spawned:
    """Prepare a VM and spawn it. Raises as ``prepare``, and ``BootError`` with stage ``spawn``."""
    prepared = prepare(config, name, image, emit=emit)
    return spawn(prepared.hypervisor, prepared.machine, emit)


def candidate(config: Config, native: Architecture, emit: Emit = ignore) -> accelerator.Candidate:
    """QEMU and the kernel bundle that a guest would get. Raises as ``prepare``."""
    host = inspect_host(native, config.cache_dir)
    if config.kernel is not None and not os.path.exists(config.kernel):
        raise UsageError(f"there is no kernel {config.kernel}", code="kernel", hint="check the path")
    bundle = kernel.ensure(config.paths, architecture=native, kernel=config.kernel, emit=emit)
    return accelerator.Candidate(
        hypervisor=QemuHypervisor(host),
        host=host,
        files=Bootable(bundle.vmlinux, bundle.initramfs, bundle.modules),
        identity=bundle.manifest.key,
        architecture=native,
        native=native,
        devices=bundle.manifest.devices,
    )


def _size(path: Path) -> int:
    return path.stat().st_size
