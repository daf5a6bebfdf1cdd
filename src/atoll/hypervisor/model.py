"""The computer that a hypervisor is asked for: plain data, free of any hypervisor's syntax."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

__all__ = [
    "CHANNEL_PORT",
    "Accelerator",
    "Architecture",
    "CardNetwork",
    "Disk",
    "DiskFile",
    "DiskFormat",
    "Forward",
    "Machine",
    "MemoryFile",
    "Port",
    "UserNetwork",
    "parse_architecture",
]

#: Name of the virtio-serial port of the guest channel (docs/reference/agent-protocol.md, section 1).
CHANNEL_PORT = "atoll.agent.0"


class Architecture(StrEnum):
    """Instruction sets of guests, by the name that uname(1) prints."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class Accelerator(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class DiskFormat(StrEnum):
    """How a disk's file is laid out."""

    RAW = "raw"
    QCOW2 = "qcow2"
    NONE = "none"


class DiskFile(msgspec.Struct, frozen=True):
    """A file that others lie over: nobody writes it, and any number of VMs may read it."""

    path: Path
    format: DiskFormat


class Disk(msgspec.Struct, frozen=True):
    """One virtio-blk disk.

    Attributes:
        path: its file on the host; none where there is no format.
        serial: virtio-blk serial by which the guest finds it, at most 20 bytes (Virtio 1.2, 5.2.6.1).
        format: layout of the file; ``NONE`` is a small disk that reads as zeroes, in the place of another.
        read_only: the guest cannot write; several VMs may then share the file.
        backing: files below it, the lowest first; it holds what differs from them.
    """

    path: Path
    serial: str
    format: DiskFormat = DiskFormat.RAW
    read_only: bool = False
    backing: tuple[DiskFile, ...] = ()

    def __post_init__(self) -> None:
        assert 0 < len(self.serial.encode()) <= 20
        # What lies over another says so by its format, and the lowest one is not to name one by itself.
        formats = (*(file.format for file in self.backing), self.format) if self.backing else ()
        assert all((layout is DiskFormat.QCOW2) is (number > 0) for number, layout in enumerate(formats))


class MemoryFile(msgspec.Struct, frozen=True):
    """What a VM's RAM begins with.

    Attributes:
        path: a file on the host; None for zeroes.
        shared: what the guest writes goes to the file; else it stays with this VM, and the file is as it was.
    """

    path: Path | None
    shared: bool


class Port(StrEnum):
    """What a VM can be connected to."""

    CHANNEL = "channel"
    SERIAL = "serial"
    CONSOLE = "console"
    AGENT_LOG = "agent"
    NETWORK = "network"


class Forward(msgspec.Struct, frozen=True):
    """A port of the host that leads to one of the guest.

    Attributes:
        host_port: of the host; 0 for any that is free.
        guest_port: of the guest.
        protocol: ``tcp`` or ``udp``.
        address: of the host.
        path: of a unix socket of the host, in the place of an address and a port; empty for none.
    """

    host_port: int
    guest_port: int
    protocol: str = "tcp"
    address: str = "127.0.0.1"
    path: str = ""


class UserNetwork(msgspec.Struct, frozen=True):
    """A network card behind the hypervisor's own address translation.

    Attributes:
        mac: its address, ``02:...``.
        forwards: ports of the host that lead into the guest.
    """

    mac: str
    forwards: tuple[Forward, ...] = ()


class CardNetwork(msgspec.Struct, frozen=True):
    """A network card whose frames leave by a socket at which the hypervisor listens (``Port.NETWORK``).

    Attributes:
        mac: its address, ``02:...``.
        mtu: bytes of the largest packet; the guest is told.
    """

    mac: str
    mtu: int = 65520


class Machine(msgspec.Struct, frozen=True):
    """One virtual machine, as a backend is asked to make it.

    Every machine has a guest channel (``CHANNEL_PORT``) and a serial port.

    Attributes:
        name: shown in process lists; of ``[a-z0-9-]``.
        vcpus: number of vCPUs.
        memory: guest RAM in bytes, a multiple of 1 MiB.
        kernel: uncompressed kernel that the hypervisor loads itself.
        initramfs: its initial file system.
        cmdline: kernel command line, one item per parameter.
        disks: in the order in which they are attached.
        consoles: virtio consoles for a terminal (hvc0) and the agent's log (hvc1).
        shared_memory: RAM that other processes of the host can map, as virtiofsd does.
        balloon: a virtio balloon with free page reporting.
        max_vcpus: vCPUs that can be plugged in while it runs; 0 if none beyond ``vcpus``.
        max_memory: bytes up to which RAM can grow while it runs; 0 if not at all.
        slots: PCIe slots for devices that come and go.
        network: its network card behind the hypervisor's own address translation, or None.
        card: its network card behind a socket, or None; it has at most one of the two.
        vsock_cid: CID of a virtio socket device of the host's kernel (vsock(7)); 0 for none.
        ram: what its RAM begins with, as one of those that are frozen or cloned; None for others.
        more: likewise the RAM that is plugged in while it runs.
    """

    name: str
    architecture: Architecture
    accelerator: Accelerator
    vcpus: int
    memory: int
    kernel: Path
    initramfs: Path
    cmdline: tuple[str, ...] = ()
    disks: tuple[Disk, ...] = ()
    consoles: bool = False
    shared_memory: bool = False
    balloon: bool = False
    max_vcpus: int = 0
    max_memory: int = 0
    slots: int = 0
    network: UserNetwork | None = None
    vsock_cid: int = 0
    ram: MemoryFile | None = None
    more: MemoryFile | None = None
    card: CardNetwork | None = None

    def __post_init__(self) -> None:
        # What a balloon or free page reporting gives back, QEMU punches out of the file, although the mapping
        # is private: it would go missing in all VMs that share the file.
        assert not (self.ram is not None and not self.ram.shared and self.balloon)
        assert self.network is None or self.card is None

    @property
    def mac(self) -> str:
        """The address of its network card; empty if it has none."""
        card = self.card or self.network
        return card.mac if card is not None else ""


def parse_architecture(name: str) -> Architecture:
    """The architecture by any of its usual names; ``ValueError`` if it is none we know."""
    aliases = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
    return Architecture(aliases.get(name.lower(), name.lower()))
