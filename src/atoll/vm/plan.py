"""What machine to ask a hypervisor for: pure functions from a request to a device model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from atoll.errors import PreflightError
from atoll.hypervisor.model import (
    Accelerator,
    Architecture,
    CardNetwork,
    Disk,
    DiskFormat,
    Machine,
    UserNetwork,
)
from atoll.vm.network.attachment import with_mac

__all__ = [
    "ANY_MAC",
    "Bootable",
    "Limits",
    "Residence",
    "Shape",
    "check_memory",
    "limits_of",
    "plan",
    "plan_growing",
    "plan_held",
    "plan_resident",
    "smallest_memory",
]

_MIB = 1 << 20

_CONSOLES = {Architecture.X86_64: "ttyS0", Architecture.AARCH64: "ttyAMA0"}

#: The guest powers off when the host closes the channel. No clone is told so anew.
_LIFELINE = "atoll.lifeline=1"

#: The root is such as engines of containers use: they make files in it that it lacks.
_NAMES = "atoll.names=1"

#: The address of a template's network card; each clone is told its own.
ANY_MAC = "02:00:00:00:00:01"

#: Up to so many bytes a machine can grow while it runs if the host has them, however small it is.
_GROWTH = 16 << 30

#: Parameters that any guest gets: quiet, because each console line traps; a panic ends the VM at once. The
#: others keep a guest that does nothing from waking up for it, ten times a second without them.
_ALWAYS = (
    "quiet",
    "panic=-1",
    "random.trust_cpu=on",
    "nowatchdog",  # it would find lockups where a vCPU of a busy host just has to wait
    "sysctl.vm.compaction_proactiveness=0",  # makes room for huge pages, which this kernel does not use
    "sysctl.vm.stat_interval=20",  # seconds
)

#: What makes a boot under TCG faster, at the price of hardening that a throw-away guest does without.
_TCG = (
    "cryptomgr.notests",  # self-tests of algorithms: 0.16 s
    "noreplace-smp",  # patching locks for one vCPU: 0.09 s
    "no_timer_check",  # the emulated timer works
    "init_on_alloc=0",
    "lsm=",  # mandatory access control: the guest is one user's, for one command
    "mitigations=off",  # an emulated CPU does not speculate
    "norandmaps",  # TCG finds translated code by its virtual address: the same place in each process
)

#: The TSC need not be compared with another clock twice a second, in each VM that does nothing.
_TSC_IS_FINE = "tsc=nowatchdog"

#: Debian's own choice without bpf, for which systemd loads programs at each boot: 0.6 s under TCG.
_LSM = "lsm=landlock,lockdown,yama,integrity,apparmor"

#: For a machine whose memory can grow: what is plugged in is used at once, and for the most part in a way
#: that it can be given back. No bounce buffers: with memory above 4 GiB in sight the kernel would set 64 MiB
#: aside for devices with narrow addresses, of which there are none.
_GROWING = ("memhp_default_state=online", "memory_hotplug.online_policy=auto-movable", "swiotlb=noforce")

#: Of these a machine that stays does without.
_ONLY_THROW_AWAY = {"init_on_alloc=0", "lsm="}


class Bootable(msgspec.Struct, frozen=True):
    """The files that a VM boots from.

    Attributes:
        kernel: uncompressed kernel.
        initramfs: holds the agent.
        modules: EROFS with the kernel's modules, or None.
        root: EROFS with the root, or None to stay in the initramfs.
        emulator: EROFS with what runs the programs of a root of another architecture, or None.
    """

    kernel: Path
    initramfs: Path
    modules: Path | None = None
    root: Path | None = None
    emulator: Path | None = None


class Shape(msgspec.Struct, frozen=True):
    """How large a VM is and what runs it: ``memory`` in bytes, ``tsc_khz`` of the host where it is known."""

    architecture: Architecture
    accelerator: Accelerator
    vcpus: int
    memory: int
    tsc_khz: int | None = None


def plan(
    name: str,
    files: Bootable,
    shape: Shape,
    *,
    hostname: str = "",
    machine_id: str = "",
    lifeline: bool = True,
    names: bool = False,
) -> Machine:
    """The machine that boots ``files``.

    Args:
        name: of the VM; shown in process lists.
        files: what it boots from.
        shape: its size and accelerator.
        hostname: of the guest; ``name`` by default.
        machine_id: of the guest (machine-id(5)); its root's own by default.
        lifeline: the guest powers off when the host closes the channel.
        names: its agent sees to the files by which it knows its name.
    """
    disks: list[Disk] = []
    agent: list[str] = [f"atoll.hostname={hostname or name}"]
    if machine_id:
        agent.append(f"atoll.machine_id={machine_id}")
    if files.root is not None:
        disks.append(Disk(files.root, serial="root", read_only=True))
        agent.append("atoll.root=root")
    if files.modules is not None and files.root is not None:
        disks.append(Disk(files.modules, serial="modules", read_only=True))
        agent.append("atoll.modules=modules")
    if files.emulator is not None and files.root is not None:
        disks.append(Disk(files.emulator, serial="emulator", read_only=True))
        agent.append("atoll.emulator=emulator")
    if lifeline:
        agent.append(_LIFELINE)
    if names:
        agent.append(_NAMES)
    return Machine(
        name=name,
        architecture=shape.architecture,
        accelerator=shape.accelerator,
        vcpus=shape.vcpus,
        memory=shape.memory,
        kernel=files.kernel,
        initramfs=files.initramfs,
        cmdline=(f"console={_CONSOLES[shape.architecture]}", *_ALWAYS, *_profile(shape), *agent),
        disks=tuple(disks),
    )


def plan_growing(
    name: str, files: Bootable, shape: Shape, *, most: int, machine_id: str = "", names: bool = False
) -> Machine:
    """As ``plan``, with memory that can be plugged in up to ``most`` bytes."""
    machine = plan(name, files, shape, machine_id=machine_id, names=names)
    if most <= shape.memory:
        return machine
    return msgspec.structs.replace(machine, max_memory=most, cmdline=(*machine.cmdline, *_GROWING))


def plan_held(machine: Machine) -> Machine:
    """The VM from which ``machine`` can go on: the same devices, and a boot that is held before its root.

    Nothing of it is this machine's own: its disks are empty ones, its address is everybody's.
    """
    disks = tuple(Disk(Path(), disk.serial, DiskFormat.NONE, disk.read_only) for disk in machine.disks)
    told = [item for item in machine.cmdline if item.startswith("atoll.") and item != _LIFELINE]
    cmdline = tuple(item for item in machine.cmdline if item not in told)
    held = msgspec.structs.replace(
        machine,
        name="template",
        cmdline=(*cmdline, "atoll.hold=1"),
        disks=disks,
    )
    return with_mac(held, ANY_MAC)


class Limits(msgspec.Struct, frozen=True):
    """How far a machine can grow while it runs: vCPUs, and memory in bytes; 0 if it cannot."""

    vcpus: int
    memory: int


class Residence(msgspec.Struct, frozen=True):
    """What a machine that stays has beside a throw-away VM.

    Attributes:
        data: its disk, an ext4 file system; its serial is ``data``.
        init: program that becomes process 1 of its root; empty for the agent itself.
        network: its network card behind the hypervisor's own address translation, or None.
        card: its network card behind a socket, or None.
        max_vcpus: vCPUs that can be plugged in.
        max_memory: bytes up to which memory can grow.
        slots: devices that can be plugged in.
        parameters: more of the kernel's command line.
        machine_id: of the guest (machine-id(5)); its root's own by default.
        direct: directories of the root that lie on ``data`` itself, beside the overlay.
    """

    data: Disk
    init: str = ""
    network: UserNetwork | None = None
    max_vcpus: int = 0
    max_memory: int = 0
    slots: int = 0
    parameters: tuple[str, ...] = ()
    machine_id: str = ""
    direct: tuple[str, ...] = ()
    card: CardNetwork | None = None


def plan_resident(name: str, files: Bootable, shape: Shape, residence: Residence) -> Machine:
    """The machine that boots ``files`` with a disk of its own and outlives the program that starts it."""
    machine = plan(name, files, shape, machine_id=residence.machine_id, lifeline=False)
    parameters = [f"console={_CONSOLES[shape.architecture]}", "console=hvc0", *_ALWAYS, "net.ifnames=0"]
    parameters += _resident_profile(shape)
    if residence.max_memory > shape.memory:
        parameters += _GROWING
    agent = [item for item in machine.cmdline if item.startswith("atoll.")]
    if residence.init:
        agent.append(f"atoll.init={residence.init}")
    if residence.direct:
        agent.append(f"atoll.direct={':'.join(residence.direct)}")
    return msgspec.structs.replace(
        machine,
        cmdline=(*parameters, *residence.parameters, *agent, "atoll.data=data"),
        disks=(*machine.disks, residence.data),
        consoles=True,
        shared_memory=True,
        balloon=True,
        network=residence.network,
        card=residence.card,
        max_vcpus=residence.max_vcpus,
        max_memory=residence.max_memory,
        slots=residence.slots,
    )


def limits_of(shape: Shape, *, host_memory: int, host_cpus: int) -> Limits:
    """How far a machine of ``shape`` can grow while it runs, on a host of that size.

    Memory that may come costs nothing at a start. A vCPU that may come does under TCG: QEMU then has to keep
    each of the guest's atomic operations atomic for a second thread, which makes a command 10 % slower; a
    machine that has several vCPUs bears that anyway. On arm64 none of this was tried.
    """
    if shape.architecture is not Architecture.X86_64:
        return Limits(0, 0)
    alone = shape.accelerator is Accelerator.TCG and shape.vcpus == 1
    most = min(host_memory, max(_GROWTH, 4 * shape.memory))
    return Limits(
        vcpus=host_cpus if host_cpus > shape.vcpus and not alone else 0,
        memory=most if most > shape.memory else 0,
    )


def _resident_profile(shape: Shape) -> tuple[str, ...]:
    """As ``_profile``, but with what guards one user of a guest from another."""
    return (*(item for item in _profile(shape) if item not in _ONLY_THROW_AWAY), _LSM)


def _profile(shape: Shape) -> tuple[str, ...]:
    if shape.accelerator is Accelerator.KVM:
        return ()
    if shape.architecture is Architecture.X86_64 and shape.tsc_khz is not None:
        return (*_TCG, f"tsc_early_khz={shape.tsc_khz}", _TSC_IS_FINE)
    return _TCG


def smallest_memory(kernel_size: int, initramfs_size: int) -> int:
    """Least guest memory, bytes, in which a kernel and initramfs of these sizes come up.

    Both lie in memory as files while the kernel unpacks a second copy of the initramfs; the kernel then wants
    about 64 MiB for itself.
    """
    needed = kernel_size + 2 * initramfs_size + 64 * _MIB
    return -(-needed // _MIB) * _MIB


def check_memory(memory: int, *, least: int, most: int) -> None:
    """Refuse a VM that could not come up; ``most`` is what the host has. Raises ``PreflightError``."""
    if memory > most:
        message = f"{memory // _MIB} MiB of memory is more than this host has ({most // _MIB} MiB)"
        raise PreflightError(message, hint="ask for less with --memory")
    if memory < least:
        message = f"{memory // _MIB} MiB of memory is too little: this kernel needs {least // _MIB} MiB"
        raise PreflightError(message, hint=f"use --memory {least // _MIB}M or more")
