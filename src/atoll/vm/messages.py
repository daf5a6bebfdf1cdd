"""What a supervisor is asked itself; the rest goes to the guest (docs/reference/control-protocol.md)."""

from __future__ import annotations

from typing import Any

import msgspec

from atoll.guest.messages import Request
from atoll.guest.messages import Stats as GuestStats
from atoll.hypervisor.model import Forward
from atoll.vm.bootplan import Share
from atoll.vm.chain import Layer
from atoll.vm.network.attachment import PortState, Reverse
from atoll.vm.state import Phase, State

__all__ = [
    "Branch",
    "Branched",
    "Capture",
    "Captured",
    "ConsoleAttach",
    "EgressSet",
    "EventsFollow",
    "Files",
    "MemoryState",
    "MemoryTarget",
    "NetworkJoin",
    "Pause",
    "Ports",
    "PortsChange",
    "PortsRead",
    "Resize",
    "Resized",
    "Resume",
    "ShareAdd",
    "ShareList",
    "ShareRemove",
    "Shared",
    "Start",
    "Stats",
    "StatsRead",
    "Status",
    "StatusRead",
    "Stop",
    "StopStep",
    "Stopped",
    "WaitFor",
]


class StatusRead(Request, frozen=True, tag="vm.status"):
    """Ask what the machine is doing."""


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """Open files of a process that hold what a VM was at one instant.

    Attributes:
        pid: of the process, which keeps them open until it was answered.
        ram: number of the descriptor of its RAM.
        state: of its devices.
        more: of RAM that was plugged in; -1 if that cannot be.
        devices: what was plugged in beside it, in the hypervisor's own words.
    """

    pid: int
    ram: int
    state: int
    more: int = -1
    devices: tuple[dict[str, Any], ...] = ()


class Start(Request, frozen=True, tag="vm.start"):
    """Ask to be answered when the guest is up; ``files`` is what it goes on from, and is its own then."""

    files: Files | None = None


class Branch(Request, frozen=True, tag="vm.branch"):
    """Have the VM's disk branched while its file system stands still for a moment."""


class Branched(msgspec.Struct, frozen=True):
    """A disk at one instant: files of the machine's directory, the lowest first, and its size in bytes."""

    layers: tuple[Layer, ...]
    size: int


class Capture(Request, frozen=True, tag="vm.capture"):
    """Have the VM written down. What was written is there until the stream is closed.

    With ``hold`` the VM stands still until then, without its shares, and its disk is not branched. With
    ``flush`` the guest's files are whole on the disk alone. With ``live`` it goes on while its RAM is
    written, if it can; one that is held does not.
    """

    hold: bool = False
    flush: bool = False
    live: bool = False


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that was written down.

    Attributes:
        files: what it was.
        layers: files of the machine's directory that its disk consisted of then, the lowest first.
        size: of the disk, bytes.
        vcpus: that it was started with.
        memory: likewise, bytes.
        stopped: seconds for which the vCPUs stood still.
    """

    files: Files
    layers: tuple[Layer, ...]
    size: int
    vcpus: int
    memory: int
    stopped: float


class Stop(Request, frozen=True, tag="vm.stop"):
    """End the guest: in order within ``timeout`` seconds, else by force; with ``force`` by force at once.

    With ``suspended`` it was written down for its next start.
    """

    force: bool = False
    timeout: float = 30.0
    suspended: bool = False


class Pause(Request, frozen=True, tag="vm.pause"):
    """Stop the vCPUs."""


class Resume(Request, frozen=True, tag="vm.resume"):
    """Let the vCPUs go on, and set the guest's clock."""


class WaitFor(Request, frozen=True, tag="vm.wait"):
    """Ask to be answered when the machine is in one of these phases, and nobody writes it down.

    What of that an earlier supervisor began is put right then.
    """

    phases: tuple[Phase, ...]


class EventsFollow(Request, frozen=True, tag="vm.events"):
    """Have all events sent as DATA, one line of JSON each, from now on."""


class ConsoleAttach(Request, frozen=True, tag="vm.console"):
    """Be connected to the guest's console: DATA in both directions, first what it wrote last."""

    replay: int = 4096


class StatsRead(Request, frozen=True, tag="vm.stats"):
    """Ask what the VM uses, seen from the host and from the guest."""


class MemoryTarget(Request, frozen=True, tag="vm.memory"):
    """Ask about the guest's memory; with ``target``, bytes, have the balloon leave it that much."""

    target: int | None = None


class EgressSet(Request, frozen=True, tag="vm.egress"):
    """Hold the guest to these lines of a policy from now on; answered when its network does."""

    egress: tuple[str, ...]


class ShareAdd(Request, frozen=True, tag="vm.share.add"):
    """Ask for a directory of the host in the guest; answered when it is mounted."""

    share: Share


class ShareRemove(Request, frozen=True, tag="vm.share.remove"):
    """Ask for the share at ``guest`` to be unmounted and taken away."""

    guest: str


class NetworkJoin(Request, frozen=True, tag="vm.network.join"):
    """Have the VM's network card plugged into another network; ``network`` is its name."""

    network: str


class ShareList(Request, frozen=True, tag="vm.share.list"):
    """Ask which directories are shared."""


class Shared(msgspec.Struct, frozen=True):
    """The directories that are shared."""

    shares: tuple[Share, ...]


class PortsRead(Request, frozen=True, tag="vm.ports"):
    """Ask which ports lead to the VM."""


class PortsChange(Request, frozen=True, tag="vm.ports.change"):
    """Have other ports lead to the VM; all can be had, or nothing is changed.

    When this stream ends the machine's record has been written, or has not: it says what holds then.

    Attributes:
        forwards: all that are to lead to it.
        reverse: all ports of the gateway that are to lead it to the host.
        close: end the connections of those that go.
    """

    forwards: tuple[Forward, ...]
    reverse: tuple[Reverse, ...]
    close: bool = False


class Ports(msgspec.Struct, frozen=True):
    """What leads to a VM, and from it to this host."""

    ports: tuple[PortState, ...]
    reverse: tuple[Reverse, ...]


class Resize(Request, frozen=True, tag="vm.resize"):
    """Have the guest use other vCPUs, memory or disk, bytes; 0 is as before.

    The disk's file has grown already.
    """

    cpus: int = 0
    memory: int = 0
    disk: int = 0


class Resized(msgspec.Struct, frozen=True):
    """For each of what was asked for whether the guest has it now; else it will when it is started again."""

    now: dict[str, bool]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The machine as its supervisor knows it.

    Attributes:
        state: what it does.
        supervisor: process id.
        vm: the hypervisor's process id, 0 if there is none.
        clients: connections to the control socket.
    """

    state: State
    supervisor: int
    vm: int = 0
    clients: int = 0


class StopStep(msgspec.Struct, frozen=True):
    """One attempt to end a guest: ``agent``, ``button``, ``quit`` or ``kill``; ``elapsed`` in seconds."""

    how: str
    elapsed: float
    ended: bool
    error: str = ""


class Stopped(msgspec.Struct, frozen=True):
    """How a guest was ended: the last of the steps did it."""

    steps: tuple[StopStep, ...]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM uses.

    Attributes:
        host_memory: resident memory of the hypervisor on the host, bytes.
        host_private: of it, what no other process shares.
        host_cpu: CPU time of the hypervisor, ns.
        supervisor_memory: private memory of the supervisor, bytes.
        disk: bytes that the machine's disk takes on the host.
        guest: what the guest counts (agent protocol, section 5.2); None if it does not answer.
    """

    host_memory: int
    host_private: int
    host_cpu: int
    supervisor_memory: int
    disk: int
    guest: GuestStats | None = None


class MemoryState(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's memory, bytes.

    Attributes:
        size: what it was started with and has been plugged in.
        actual: what the balloon leaves it.
        free: what the guest reports as free; -1 if it does not.
        available: what it could use without swapping; -1 likewise.
        host: resident memory of the hypervisor on the host.
    """

    size: int
    actual: int
    free: int = -1
    available: int = -1
    host: int = 0
