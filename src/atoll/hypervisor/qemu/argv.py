"""QEMU's argument vector, rendered from the device model by pure functions.

Options are those of QEMU 7.2 and later; see "Invocation" in QEMU's system emulation manual.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from atoll.hypervisor.model import (
    CHANNEL_PORT,
    Accelerator,
    Architecture,
    CardNetwork,
    Disk,
    DiskFile,
    DiskFormat,
    Forward,
    Machine,
    MemoryFile,
    UserNetwork,
)

__all__ = [
    "MORE",
    "MORE_ID",
    "RAM",
    "RAM_ID",
    "SANDBOX",
    "Descriptors",
    "disk_node",
    "file_node",
    "overlay_node",
    "pluggable",
    "ram_block",
    "render",
]

_MIB = 1 << 20


#: Bytes that the guest's kernel calls a memory block on x86-64: what virtio-mem can give is a multiple.
_PLUG_STEP = 128 * _MIB


class Descriptors(msgspec.Struct, frozen=True):
    """Numbers of the descriptors that QEMU inherits.

    Attributes:
        network: a listening socket, always.
        listening: the others are listening sockets, whose clients may come and go; else ends of socket pairs.
    """

    channel: int
    serial: int
    qmp: int
    console: int = -1
    agent_log: int = -1
    network: int = -1
    listening: bool = False


class _Board(msgspec.Struct, frozen=True):
    """What differs between architectures.

    Attributes:
        machine: its type, and what it does without.
        ram: what QEMU calls the RAM that it makes by itself (hw/i386/x86.c, hw/arm/virt.c).
        firmware: which one.
        tcg_cpu: under TCG.
    """

    machine: str
    ram: str
    firmware: tuple[str, ...]
    tcg_cpu: str


_BOARDS = {
    # No legacy devices: each one is probed by the guest's kernel. qboot hands over to a PVH kernel at once.
    Architecture.X86_64: _Board(
        machine="q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off",
        ram="pc.ram",
        firmware=("-bios", "qboot.rom"),
        tcg_cpu="max,la57=off,erms=off,fsrm=off",
    ),
    # The architected algorithm of pointer authentication is slow to emulate; guests cannot tell them apart.
    Architecture.AARCH64: _Board(
        machine="virt,gic-version=3,highmem=on",
        ram="mach-virt.ram",
        firmware=(),
        tcg_cpu="max,pauth-impdef=on",
    ),
}

#: Names of the files in memory that hold the RAM of a VM that stays, and what can be plugged in.
RAM, MORE = "atoll-ram", "atoll-more"

#: What QEMU calls RAM that it is given: its backend.
RAM_ID = "ram"

#: What QEMU calls what can be plugged in: the backend of its virtio-mem device.
MORE_ID = "more"

#: How QEMU is confined by seccomp.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def render(
    machine: Machine,
    program: str,
    fds: Descriptors,
    *,
    sandbox: bool,
    pid_file: Path | None = None,
    incoming: bool = False,
) -> tuple[str, ...]:
    """The argument vector for ``machine``.

    Args:
        machine: what is asked for.
        program: QEMU's executable.
        fds: descriptors for the sockets.
        sandbox: confine QEMU by seccomp; off where the host's QEMU or kernel cannot.
        pid_file: where QEMU writes its process id.
        incoming: it goes on from a state that it is given, and boots nothing.
    """
    board = _BOARDS[machine.architecture]
    return (
        program,
        *("-name", f"guest={_escape(machine.name)}"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-global", "migration.store-global-state=off"),  # what goes on from a VM that stands still runs
        *(("-pidfile", str(pid_file)) if pid_file else ()),
        *(("-sandbox", SANDBOX) if sandbox else ()),
        *("-machine", board.machine + (f",memory-backend={RAM_ID}" if _has_backend(machine) else "")),
        *("-accel", _accelerator(machine)),
        *("-cpu", "host" if machine.accelerator is Accelerator.KVM else board.tcg_cpu),
        *("-smp", _vcpus(machine)),
        *_memory(machine),
        *board.firmware,
        *(("-incoming", "defer") if incoming else _kernel(machine)),
        *_socket("qmp", fds.qmp, fds),
        *("-mon", "chardev=qmp,mode=control"),
        *_socket("serial", fds.serial, fds),
        *("-serial", "chardev:serial"),
        *_ports(machine, fds),
        *("-device", "virtio-rng-pci"),
        *_network(machine.network),
        *_card(machine.card, fds),
        *(
            ("-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on")
            if machine.balloon
            else ()
        ),
        *_disks(machine.disks),
        *(argument for number in range(machine.slots) for argument in _slot(number)),
    )


def _kernel(machine: Machine) -> tuple[str, ...]:
    """What is booted. A VM that goes on from a state has it in its RAM: no need to read it again."""
    return (
        *("-kernel", str(machine.kernel)),
        *("-initrd", str(machine.initramfs)),
        *("-append", " ".join(machine.cmdline)),
    )


def _has_backend(machine: Machine) -> bool:
    return machine.shared_memory or machine.ram is not None


def _vcpus(machine: Machine) -> str:
    more = f",maxcpus={machine.max_vcpus}" if machine.max_vcpus > machine.vcpus else ""
    return f"{machine.vcpus}{more}"


def _memory(machine: Machine) -> tuple[str, ...]:
    """RAM, shared where other processes must map it, and a virtio-mem device for what may be added.

    What is added to a throw-away VM is in no file that outlives QEMU: were it shared, a migration would leave
    it out.
    """
    size = f"{machine.memory // _MIB}M"
    more = pluggable(machine)
    most = f"{(machine.memory + more) // _MIB}M"
    arguments = ["-m", f"size={size},slots=1,maxmem={most}" if more else size]
    share = ",share=on" if machine.shared_memory else ""
    kind = "memory-backend-memfd" if machine.shared_memory else "memory-backend-ram"
    if machine.ram is not None:
        arguments += ["-object", _backend(RAM_ID, machine.ram, size)]
    elif machine.shared_memory:
        arguments += ["-object", f"{kind},id={RAM_ID},size={size}{share}"]
    if more:
        room = f"{more // _MIB}M"
        anonymous = f"{kind},id={MORE_ID},size={room},reserve=off{share}"
        backend = (
            anonymous if machine.more is None else f"{_backend(MORE_ID, machine.more, room)},reserve=off"
        )
        arguments += ["-object", backend]
        arguments += ["-device", f"virtio-mem-pci,id=memory,memdev={MORE_ID},requested-size=0"]
    return tuple(arguments)


def pluggable(machine: Machine) -> int:
    """Bytes of memory that ``machine`` can be given while it runs."""
    return max(machine.max_memory - machine.memory, 0) // _PLUG_STEP * _PLUG_STEP


def ram_block(machine: Machine) -> str:
    """The name of the RAM that ``machine`` is started with, in what QEMU writes of it."""
    return RAM_ID if _has_backend(machine) else _BOARDS[machine.architecture].ram


def _backend(name: str, ram: MemoryFile, size: str) -> str:
    if ram.path is None:
        return f"memory-backend-ram,id={name},size={size}"
    file = f"memory-backend-file,id={name},size={size},mem-path={_escape(str(ram.path))}"
    return f"{file},share={'on' if ram.shared else 'off'}"


def _ports(machine: Machine, fds: Descriptors) -> tuple[str, ...]:
    """The virtio-serial device; its port 0 can only be a console (Virtio 1.2, 5.3.5)."""
    consoles: tuple[str, ...] = ()
    if machine.consoles:
        consoles = (
            *_socket("console", fds.console, fds),
            *("-device", "virtconsole,bus=serial0.0,chardev=console"),
            *_socket("agent-log", fds.agent_log, fds),
            *("-device", "virtconsole,bus=serial0.0,chardev=agent-log"),
        )
    return (
        *("-device", f"virtio-serial-pci,id=serial0,max_ports={4 if consoles else 2}"),
        *consoles,
        *_socket("channel", fds.channel, fds),
        *("-device", f"virtserialport,bus=serial0.0,chardev=channel,name={CHANNEL_PORT}"),
    )


def _network(network: UserNetwork | None) -> tuple[str, ...]:
    if network is None:
        return ()
    forwards = "".join(f",hostfwd={_escape(_forward(forward))}" for forward in network.forwards)
    return (
        *("-netdev", f"user,id=net0{forwards}"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={_escape(network.mac)},romfile="),
    )


def _card(card: CardNetwork | None, fds: Descriptors) -> tuple[str, ...]:
    """A card that QEMU listens for: whoever connects is the network, and may come again."""
    if card is None:
        return ()
    device = f"virtio-net-pci,netdev=net0,mac={_escape(card.mac)},host_mtu={card.mtu},romfile="
    return (
        *("-netdev", f"stream,id=net0,server=on,addr.type=fd,addr.str={fds.network}"),
        *("-device", device),
    )


def _forward(forward: Forward) -> str:
    return f"{forward.protocol}:{forward.address}:{forward.host_port}-:{forward.guest_port}"


def _slot(number: int) -> tuple[str, ...]:
    return ("-device", f"pcie-root-port,id=slot{number},chassis={number + 1},slot={number + 1}")


def _accelerator(machine: Machine) -> str:
    if machine.accelerator is Accelerator.KVM:
        return "kvm"
    return "tcg,thread=multi" if machine.vcpus > 1 else "tcg,thread=single"


def _socket(name: str, fd: int, fds: Descriptors) -> tuple[str, str]:
    return ("-chardev", f"socket,id={name},fd={fd}" + (",server=on,wait=off" if fds.listening else ""))


def disk_node(serial: str) -> str:
    """What QEMU calls the disk of that serial (QAPI ``node-name``: letters, digits and dashes)."""
    return "disk-" + re.sub(r"[^A-Za-z0-9-]", "-", serial)


def overlay_node(path: Path) -> str:
    """What QEMU calls a file of a chain: by its own name, since another lies over it one day."""
    return re.sub(r"[^A-Za-z0-9-]", "-", path.stem)


def file_node(node: str) -> str:
    """The node below a disk's node that reads and writes the file itself."""
    return f"{node}-file"


def _disks(disks: tuple[Disk, ...]) -> tuple[str, ...]:
    """All disks; a file that several of them lie over is opened once."""
    every = [argument for disk in disks for argument in _disk(disk)]
    options = dict.fromkeys(zip(every[::2], every[1::2], strict=True))
    return tuple(word for option in options for word in option)


def _disk(disk: Disk) -> tuple[str, ...]:
    node = overlay_node(disk.path) if disk.backing else disk_node(disk.serial)
    access = "on" if disk.read_only else "off"
    device = f"virtio-blk-pci,drive={node},serial={_escape(disk.serial)}"
    if disk.format is DiskFormat.NONE:
        nothing = f"driver=null-co,node-name={node},size={_MIB},read-zeroes=on,read-only={access}"
        return ("-blockdev", nothing, "-device", device)
    file = _file(node, disk.path, access)
    layout = _layout(node, disk.format, disk.backing, access)
    trim = "" if disk.read_only else ",discard=unmap"  # both nodes must pass on what the guest discards
    zeroes = "" if disk.read_only else ",detect-zeroes=unmap"
    return (
        *(argument for number in range(len(disk.backing)) for argument in _below(disk.backing, number)),
        *("-blockdev", file + trim),
        *("-blockdev", layout + trim + zeroes),
        *("-device", device),
    )


def _below(files: tuple[DiskFile, ...], number: int) -> tuple[str, ...]:
    """One of the files that a disk lies over. What its header says of the next one is not looked at."""
    file = files[number]
    node = overlay_node(file.path)
    layout = _layout(node, file.format, files[:number], "on")
    return ("-blockdev", _file(node, file.path, "on"), "-blockdev", layout)


def _layout(node: str, layout: DiskFormat, below: tuple[DiskFile, ...], access: str) -> str:
    over = f",backing={overlay_node(below[-1].path)}" if below else ""
    return f"driver={layout},node-name={node},file={file_node(node)}{over},read-only={access}"


def _file(node: str, path: Path, access: str) -> str:
    return f"driver=file,node-name={file_node(node)},filename={_escape(str(path))},read-only={access}"


def _escape(value: str) -> str:
    """QEMU's option syntax doubles a comma inside a value."""
    return value.replace(",", ",,")
