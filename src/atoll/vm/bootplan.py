"""What a supervisor runs: made of the user's wishes when a machine is started, kept for its restarts."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.host import QemuHost
from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.network.attachment import Attachment
from atoll.vm.origin import Origin
from atoll.vm.restart import Policy

__all__ = [
    "AutoPorts",
    "Beginning",
    "BootPlan",
    "NetworkSetup",
    "OpenPort",
    "Probe",
    "Setup",
    "Share",
    "Vsock",
    "user_network",
]


class NetworkSetup(msgspec.Struct, frozen=True):
    """A network card's addresses.

    Attributes:
        mac: the card's own.
        address: with its prefix length, as ``10.0.2.15/24``.
        gateway: where the default route leads; empty for no such route.
        resolvers: name servers.
        mtu: bytes of the largest packet; 0 for what the card says.
    """

    mac: str
    address: str
    gateway: str
    resolvers: tuple[str, ...]
    mtu: int = 0


def user_network(mac: str) -> NetworkSetup:
    """The addresses of QEMU's user network: its guest, its gateway and its name server."""
    return NetworkSetup(mac, "10.0.2.15/24", "10.0.2.2", ("10.0.2.3",))


class Probe(msgspec.Struct, frozen=True):
    """What must work before a machine counts as running: a TCP port of the guest, or a command."""

    port: int = 0
    command: tuple[str, ...] = ()


class Share(msgspec.Struct, frozen=True):
    """A directory of the host in the guest.

    Attributes:
        host: absolute path on the host.
        guest: absolute path in the guest.
        read_only: the guest cannot write, whatever it tries.
    """

    host: str
    guest: str
    read_only: bool = False


class OpenPort(msgspec.Struct, frozen=True):
    """A port of the host that a guest may connect to over AF_VSOCK.

    Attributes:
        port: which.
        path: unix socket that serves it; empty for ``vsock.sock_PORT`` in the machine's directory.
    """

    port: int
    path: str = ""


class Vsock(msgspec.Struct, frozen=True):
    """A virtio socket device.

    Attributes:
        ports: of the host that the guest may connect to.
        kernel: it is the host's kernel's (/dev/vhost-vsock), and part of the machine; no port is opened then.
    """

    ports: tuple[OpenPort, ...] = ()
    kernel: bool = False


class AutoPorts(msgspec.Struct, frozen=True):
    """Which ports that programs of a guest listen on get one of this host by themselves.

    Attributes:
        allow: ranges of them, each with its first and last; lower ones than these are of services that each
            guest has for itself.
        deny: ranges of those that do not, of these.
    """

    allow: tuple[tuple[int, int], ...] = ((1024, 65535),)
    deny: tuple[tuple[int, int], ...] = ()

    def permits(self, port: int) -> bool:
        """Whether a port is one of them."""
        return _is_in(port, self.allow) and not _is_in(port, self.deny)


def _is_in(port: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= port <= last for first, last in ranges)


class Setup(msgspec.Struct, frozen=True):
    """What is done in the guest once its root is mounted, in this order.

    Attributes:
        modules: paths of kernel modules below the kernel's own directory.
        network: addresses, or None without a network.
        script: for the guest's ``/bin/sh``, as root; empty for none.
        shares: directories of the host.
        probe: what is waited for at last, or None.
        user: the machine's user, to whom shares belong; empty for root.
        drivers: modules of devices that may come later, by the device.
        vsock: a virtio socket device, or None.
        farewell: for the guest's ``/bin/sh``, as root, before it is ended in order; empty for none.
        inherited: what it takes over of this host, and no more of what it took over before; None to let be.
        systemd: that is process 1 of it.
        name: what the guest knows itself by, in files of its own; empty to let them be.
    """

    modules: tuple[str, ...] = ()
    network: NetworkSetup | None = None
    script: str = ""
    shares: tuple[Share, ...] = ()
    probe: Probe | None = None
    user: str = ""
    drivers: dict[str, tuple[str, ...]] = {}
    farewell: str = ""
    vsock: Vsock | None = None
    inherited: Inheritance | None = None
    systemd: bool = False
    name: str = ""


class Beginning(StrEnum):
    """How a guest comes up the first time: by its kernel, where it stood still, or as a copy of another."""

    BOOT = "boot"
    RESUME = "resume"
    FORK = "fork"


class BootPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that a start needs.

    Attributes:
        machine: what the hypervisor is asked for.
        host: which QEMU runs it; None for the fake hypervisor.
        setup: what is done in the guest.
        policy: what follows when the guest ends by itself.
        boot_timeout: seconds in which the guest must be up.
        origin: what it goes on from; None if it boots.
        beginning: how it comes up if the start brings what it was; else it boots.
        disk: bytes that the machine's disk shall have at least.
        idle_suspend: seconds after which it is suspended if it does nothing; 0 for never.
        attachment: where the card of its machine is plugged in; None if that has none.
        auto_ports: which ports of the guest get one of this host by themselves; None for none.
        auto_ports: which ports of the guest get one of this host by themselves; None for none.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    machine: Machine
    host: QemuHost | None
    setup: Setup = Setup()
    policy: Policy = Policy.NO
    boot_timeout: float = 60.0
    origin: Origin | None = None
    beginning: Beginning = Beginning.BOOT
    disk: int = 0
    idle_suspend: float = 0.0
    attachment: Attachment | None = None
    auto_ports: AutoPorts | None = None
