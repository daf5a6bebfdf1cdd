"""What a user asks for when a machine is made. Pure."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from atoll.errors import UsageError
from atoll.hypervisor.model import Forward
from atoll.hypervisor.port import SUN_PATH
from atoll.vm.bootplan import AutoPorts, OpenPort, Probe, Share, Vsock
from atoll.vm.network.attachment import DEFAULT, Reverse
from atoll.vm.restart import Policy
from atoll.vsock.hello import MOST_PORT

__all__ = [
    "RESERVED",
    "Init",
    "MachineSpec",
    "Service",
    "Share",
    "check_free",
    "check_guest_path",
    "check_name",
    "check_user",
    "cid_of",
    "closed",
    "mac_of",
    "parse_alias",
    "parse_idle",
    "parse_probe",
    "parse_share",
    "parse_vsock",
    "reference_of",
]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_GIB = 1 << 30

#: Letters of an alias: with the domain behind it, it is a name still (RFC 1035, section 2.3.4).
_LONGEST_ALIAS = 200

#: Names of the machines that Atoll itself makes, and which command does it.
RESERVED = {"docker": "`atoll docker`", "image-builder": "`atoll builder`"}

_IDLE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smh]?)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Init(StrEnum):
    """What is process 1 of a machine: its own systemd, or Atoll's agent alone."""

    SYSTEMD = "systemd"
    MINIMAL = "minimal"


class Service(msgspec.Struct, frozen=True):
    """What a machine is for that Atoll itself made: programs that run in it from each start to each stop.

    Attributes:
        start: for the guest's ``/bin/sh``, as root, at each start.
        stop: likewise, before the guest is ended in order.
        direct: directories of the root that lie on the disk itself, beside the overlay.
        trusted: it may use all ports of this host, as its user's own programs do.
    """

    start: str
    stop: str = ""
    direct: tuple[str, ...] = ()
    trusted: bool = True


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. Only ``edit`` and the like change it.

    Attributes:
        id: 32 hex digits that stay when the machine is renamed; addresses are made from it.
        image: its root.
        created: seconds since the epoch.
        cpus: vCPUs.
        memory: bytes.
        disk: bytes that the guest may write at most.
        init: what is process 1.
        user: the user whom commands are run as; empty for root.
        env: variables of every command.
        workdir: directory in which commands start; empty for their user's home.
        shares: directories of the host.
        forwards: ports of the host that lead into the guest.
        network: whether it has a network.
        reverse: ports of its network's gateway that lead it to the host.
        auto_ports: which ports that its programs listen on get one of the host by themselves; None for none.
        slirp: it is QEMU's user network.
        lan: the network of Atoll that it is on; empty for that of all machines.
        egress: lines of the policy that it is held to; none for no policy.
        aliases: what other machines call it, too.
        ca: it takes over this host's certificates of authorities, and its proxies.
        kernel: to boot instead of Debian's cloud kernel; empty for that.
        accel: ``auto``, ``kvm`` or ``tcg``.
        full: it is a whole VM of its image's platform, whatever the host's is.
        restart: what follows when the guest ends by itself.
        probe: what must work before it counts as running.
        boot_timeout: seconds in which the guest must be up.
        idle_suspend: seconds after which a machine that does nothing is suspended; 0 for never.
        service: of a machine that Atoll itself made; None for a user's.
        vsock: its virtio socket device, or None.
    """

    SCHEMA: ClassVar[int] = 1
    MIGRATIONS: ClassVar[dict[int, Any]] = {}

    schema: int = 1
    id: str
    image: str
    created: float
    cpus: int = 1
    memory: int = 512 << 20
    disk: int = 16 * _GIB
    init: Init = Init.SYSTEMD
    user: str = ""
    env: dict[str, str] = {}
    workdir: str = ""
    shares: tuple[Share, ...] = ()
    forwards: tuple[Forward, ...] = ()
    network: bool = True
    kernel: str = ""
    accel: str = "auto"
    restart: Policy = Policy.NO
    probe: Probe | None = None
    boot_timeout: float = 60.0
    idle_suspend: float = 0.0
    service: Service | None = None
    vsock: Vsock | None = None
    slirp: bool = False
    lan: str = ""
    egress: tuple[str, ...] = ()
    reverse: tuple[Reverse, ...] = ()
    auto_ports: AutoPorts | None = None
    aliases: tuple[str, ...] = ()
    ca: bool = True
    full: bool = False

    @property
    def on(self) -> str:
        """The name of Atoll's network that it is on; empty if it is on none."""
        return (self.lan or DEFAULT) if self.network and not self.slirp else ""


def check_name(name: str) -> str:
    """A machine's name. Raises ``UsageError``: ``usage.name``: it is malformed."""
    if not _NAME.fullmatch(name):
        hint = "use at most 63 lower-case letters, digits and dashes, as web-1"
        raise UsageError(f"{name!r} is no name for a machine", code="name", hint=hint)
    return name


def check_free(name: str, spec: MachineSpec | None = None) -> str:
    """A name for a machine with that record. Raises ``UsageError``: as ``check_name``; ``usage.reserved``."""
    if check_name(name) in RESERVED and (spec is None or spec.service is None):
        message = f"the name {name} is kept for a machine of Atoll's own"
        raise UsageError(
            message, code="reserved", hint=f"choose another name; {RESERVED[name]} uses that machine"
        )
    return name


def check_user(name: str) -> str:
    """A user's name, or empty for root. Raises ``UsageError``: ``usage.user``."""
    if name and not _USER.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a user", code="user", hint="use lower-case letters and digits"
        )
    return "" if name == "root" else name


def mac_of(identifier: str) -> str:
    """The machine's MAC address: locally administered, unicast (IEEE 802, 8.4), the same for ever."""
    digest = hashlib.sha256(f"atoll mac {identifier}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def cid_of(identifier: str) -> int:
    """The CID of a machine on the virtio sockets of the host's kernel, which knows all guests (vsock(7))."""
    digest = hashlib.sha256(f"atoll cid {identifier}".encode()).digest()
    return 1024 + int.from_bytes(digest[:4], "big") % (1 << 31)


def reference_of(distro: str, init: Init) -> str:
    """The image for ``--distro debian[:suite]``: with systemd it is the distribution's machine flavour."""
    name, colon, tag = distro.partition(":")
    return f"{name}-machine{colon}{tag}" if init is Init.SYSTEMD else distro


def parse_share(text: str) -> Share:
    """``HOST:GUEST[:ro]``. Raises ``UsageError``: ``usage.mount``."""
    parts = text.split(":")
    read_only = len(parts) == 3 and parts[2] == "ro"
    if len(parts) not in {2, 3} or (len(parts) == 3 and parts[2] not in {"ro", "rw"}) or not parts[0]:
        raise UsageError(f"--mount {text}: malformed", code="mount", hint="write HOST:GUEST or HOST:GUEST:ro")
    return Share(parts[0], check_guest_path(parts[1]), read_only)


def check_guest_path(path: str) -> str:
    """The place of a share in the guest, in its plain form. Raises ``UsageError``: ``usage.mount``."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or not parts or ".." in parts or "\0" in path:
        hint = "name an absolute path in the guest, not its root"
        raise UsageError(f"{path!r} is no place for a share", code="mount", hint=hint)
    return "/" + "/".join(parts)


def parse_alias(text: str) -> str:
    """A further name of a machine, of one or more labels. Raises ``UsageError``: ``usage.alias``."""
    labels = text.split(".")
    if not all(_NAME.fullmatch(label) for label in labels) or len(text) > _LONGEST_ALIAS or text == "host":
        hint = "use lower-case letters, digits, dashes, and dots between, as db or api.web; host is taken"
        raise UsageError(f"{text!r} is no alias", code="alias", hint=hint)
    return text


def parse_vsock(wanted: bool | str, ports: Iterable[str], *, named: bool = False) -> Vsock | None:
    """A virtio socket device, if it is wanted or ports are opened: ``PORT[:PATH]`` each.

    Args:
        wanted: whether; ``kernel`` for that of the host's kernel.
        ports: of the host that the guest may connect to.
        named: each needs a path.

    Raises:
        UsageError: ``usage.vsock``.
    """
    if not isinstance(wanted, bool) and wanted != "kernel":
        raise UsageError(f"vsock = {wanted!r}", code="vsock", hint='use True, False or "kernel"')
    opened = tuple(_open_port(text, named=named) for text in ports)
    if len({one.port for one in opened}) != len(opened):
        raise UsageError("a port is opened twice", code="vsock", hint="name each port once")
    if opened and wanted == "kernel":
        hint = "programs of the host listen with AF_VSOCK then: no port is opened"
        raise UsageError("the kernel's virtio socket has no ports of ours", code="vsock", hint=hint)
    return Vsock(opened, wanted == "kernel") if wanted or opened else None


def closed(vsock: Vsock | None) -> Vsock | None:
    """The same device for a machine from elsewhere: no port of this host is open to it."""
    return Vsock() if vsock is not None else None


def _open_port(text: str, *, named: bool) -> OpenPort:
    number, colon, path = text.partition(":")
    if (
        not re.fullmatch(r"[0-9]{1,10}", number, re.ASCII)
        or int(number) > MOST_PORT
        or bool(colon) > bool(path)
    ):
        hint = "write PORT:PATH, as 5000:/run/user/1000/agent.sock"
        raise UsageError(f"{text}: no port for a virtio socket", code="vsock", hint=hint)
    if named and not path:
        raise UsageError(f"port {number}: nothing serves it", code="vsock", hint="write PORT:PATH")
    full = os.path.abspath(os.path.expanduser(path)) if path else ""
    if len(os.fsencode(full)) > SUN_PATH:
        message = f"{full} is too long for a socket"
        raise UsageError(message, code="vsock", hint=f"use a path of {SUN_PATH} bytes at most")
    return OpenPort(int(number), full)


def parse_idle(text: str | float) -> float:
    """Seconds such as ``10m``; 0 for never. Raises ``UsageError``: ``usage.idle``."""
    match = _IDLE.fullmatch(str(text) or "0")
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match is not None else -1.0
    if seconds < 0 or 0 < seconds < 1:
        hint = "write a number with s, m or h, such as 10m, or 0 for never"
        raise UsageError(f"{text!r} is no time to be idle", code="idle", hint=hint)
    return seconds


def parse_probe(text: str) -> Probe:
    """``PORT``, or a command for the guest's shell. Raises ``UsageError``: ``usage.probe``."""
    if text.isascii() and text.isdigit():
        if not 0 < int(text) < 65_536:
            raise UsageError(f"--ready-probe {text}: no port", code="probe", hint="ports are 1 to 65535")
        return Probe(port=int(text))
    if not text.strip():
        raise UsageError("--ready-probe is empty", code="probe", hint="name a TCP port or a command")
    return Probe(command=("/bin/sh", "-c", text))
