"""QEMU's argument vector, rendered from the device model by pure functions.

Options are those of QEMU 7.2 and later; see "Invocation" in QEMU's system emulation manual.
"""

from __future__ import annotations

import msgspec

from atoll.hypervisor.model import CHANNEL_PORT, Accelerator, Architecture, Disk, Machine

__all__ = ["SANDBOX", "Descriptors", "render"]

_MIB = 1 << 20


class Descriptors(msgspec.Struct, frozen=True):
    """Numbers of the descriptors that QEMU inherits: its ends of socket pairs."""

    channel: int
    console: int
    qmp: int


class _Board(msgspec.Struct, frozen=True):
    """What differs between architectures."""

    machine: str
    firmware: tuple[str, ...]
    tcg_cpu: str


_BOARDS = {
    # No legacy devices: each one is probed by the guest's kernel. qboot hands over to a PVH kernel at once.
    Architecture.X86_64: _Board(
        machine="q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off",
        firmware=("-bios", "qboot.rom"),
        tcg_cpu="max,la57=off,erms=off,fsrm=off",
    ),
    # The architected algorithm of pointer authentication is slow to emulate; guests cannot tell them apart.
    Architecture.AARCH64: _Board(
        machine="virt,gic-version=3,highmem=on", firmware=(), tcg_cpu="max,pauth-impdef=on"
    ),
}

#: How QEMU is confined by seccomp.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def render(machine: Machine, program: str, fds: Descriptors, *, sandbox: bool) -> tuple[str, ...]:
    """The argument vector for ``machine``.

    Args:
        machine: what is asked for.
        program: QEMU's executable.
        fds: descriptors for the sockets.
        sandbox: confine QEMU by seccomp; off where the host's QEMU or kernel cannot.
    """
    board = _BOARDS[machine.architecture]
    return (
        program,
        *("-name", f"guest={_escape(machine.name)}"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *(("-sandbox", SANDBOX) if sandbox else ()),
        *("-machine", board.machine),
        *("-accel", _accelerator(machine)),
        *("-cpu", "host" if machine.accelerator is Accelerator.KVM else board.tcg_cpu),
        *("-smp", str(machine.vcpus)),
        *("-m", f"{machine.memory // _MIB}M"),
        *board.firmware,
        *("-kernel", str(machine.kernel)),
        *("-initrd", str(machine.initramfs)),
        *("-append", " ".join(machine.cmdline)),
        *_socket("qmp", fds.qmp),
        *("-mon", "chardev=qmp,mode=control"),
        *_socket("console", fds.console),
        *("-serial", "chardev:console"),
        *("-device", "virtio-serial-pci,id=serial0,max_ports=2"),
        *_socket("channel", fds.channel),
        *("-device", f"virtserialport,bus=serial0.0,chardev=channel,name={CHANNEL_PORT}"),
        *("-device", "virtio-rng-pci"),
        *(argument for number, disk in enumerate(machine.disks) for argument in _disk(number, disk)),
    )


def _accelerator(machine: Machine) -> str:
    if machine.accelerator is Accelerator.KVM:
        return "kvm"
    return "tcg,thread=multi" if machine.vcpus > 1 else "tcg,thread=single"


def _socket(name: str, fd: int) -> tuple[str, str]:
    return ("-chardev", f"socket,id={name},fd={fd}")


def _disk(number: int, disk: Disk) -> tuple[str, ...]:
    node = f"disk{number}"
    access = "on" if disk.read_only else "off"
    file = f"driver=file,node-name={node}-file,filename={_escape(str(disk.path))},read-only={access}"
    layout = f"driver={disk.format},node-name={node},file={node}-file,read-only={access}"
    trim = "" if disk.read_only else ",discard=unmap,detect-zeroes=unmap"
    return (
        *("-blockdev", file),
        *("-blockdev", layout + trim),
        *("-device", f"virtio-blk-pci,drive={node},serial={_escape(disk.serial)}"),
    )


def _escape(value: str) -> str:
    """QEMU's option syntax doubles a comma inside a value."""
    return value.replace(",", ",,")
