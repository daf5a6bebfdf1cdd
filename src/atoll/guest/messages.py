"""Requests and replies of the agent protocol, sections 5, 6, 8 and 10, as typed records in MessagePack."""

from __future__ import annotations

from typing import Annotated

import msgspec

from atoll.guest import wire

__all__ = [
    "HOST_ERROR",
    "LINK_RESET",
    "BootWait",
    "Booted",
    "ClockStep",
    "CloneBegin",
    "Configured",
    "CpuOnline",
    "CpuTimes",
    "DataFreeze",
    "DataGrow",
    "DataLimit",
    "DataThaw",
    "DataTrim",
    "DiskUse",
    "Empty",
    "EntropyReseed",
    "ExecDetach",
    "ExecList",
    "ExecOutput",
    "ExecRelease",
    "ExecResize",
    "ExecSignal",
    "ExecStart",
    "ExecStdin",
    "ExecWait",
    "ExecutionState",
    "Executions",
    "Exit",
    "FsMount",
    "FsUnmount",
    "Grown",
    "Info",
    "Loaded",
    "MemoryUse",
    "ModuleLoad",
    "NetConfigure",
    "NetConnect",
    "NetworkUse",
    "Offset",
    "Online",
    "Ping",
    "Pong",
    "Poweroff",
    "Refusal",
    "Request",
    "Started",
    "Stats",
    "Stepped",
    "SystemInfo",
    "SystemStats",
    "TerminalSize",
    "Thawed",
    "TreeRead",
    "TreeWrite",
    "Trimmed",
    "Written",
]

#: The code of a refusal that carries an error of Atoll itself.
HOST_ERROR = "host"

#: The code of a refusal by a supervisor that brought the guest's link in step again.
LINK_RESET = "link_reset"


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="method"):
    """Base of all requests; the tag is the method's name."""


class Ping(Request, frozen=True, tag="ping"):
    """Ask for an echo of ``data``, at most 4,096 bytes."""

    data: bytes = b""


class SystemInfo(Request, frozen=True, tag="system.info"):
    """Ask what the guest is and how far it has booted."""


class BootWait(Request, frozen=True, tag="boot.wait"):
    """Ask to be answered when the root is mounted."""


class ClockStep(Request, frozen=True, tag="clock.step"):
    """Set the guest's realtime clock, ns since 1970."""

    realtime: int


class CloneBegin(Request, frozen=True, tag="clone.begin"):
    """Tell a clone who it is, and have its boot go on if that is held.

    Attributes:
        realtime: ns since 1970.
        seed: 32 to 512 bytes for its entropy pool, which is reseeded.
        mac: of its network card; empty leaves it.
        hostname: empty leaves it; ``machine_id`` likewise, 32 digits in hexadecimal.
        growth: bytes of memory that it will be given at once, by which its limits are raised.
        root: virtio-blk serial of the root of a boot that is held; ``data``, ``modules`` and
            ``emulator`` likewise.
        init: what becomes process 1 of that root.
        direct: directories of that root, with colons between, that lie on the data disk itself.
    """

    realtime: int
    seed: bytes
    mac: str = ""
    hostname: str = ""
    machine_id: str = ""
    growth: int = 0
    root: str = ""
    data: str = ""
    modules: str = ""
    init: str = ""
    direct: str = ""
    emulator: str = ""


class EntropyReseed(Request, frozen=True, tag="entropy.reseed"):
    """Credit ``seed``, 32 to 512 bytes, to the guest's entropy pool and reseed its generator."""

    seed: bytes


class Poweroff(Request, frozen=True, tag="system.poweroff"):
    """End the guest, ``orderly`` by its own init; ``grace`` in ms between SIGTERM and SIGKILL."""

    mode: str = "poweroff"
    grace: int = 2000
    orderly: bool = False


class SystemStats(Request, frozen=True, tag="system.stats"):
    """Ask what the guest uses."""


class ModuleLoad(Request, frozen=True, tag="module.load"):
    """Load kernel modules in the order in which they are needed; ``paths`` as in section 5."""

    paths: tuple[str, ...]


class NetConfigure(Request, frozen=True, tag="net.configure"):
    """Set up the interface that has ``mac``; ``address`` has a prefix length, ``wait`` is in ms."""

    mac: str
    address: str
    gateway: str | None = None
    resolvers: tuple[str, ...] = ()
    wait: int = 5000


class NetConnect(Request, frozen=True, tag="net.connect"):
    """Connect to a server in the guest: to ``port`` of an address, or to the unix socket at ``path``."""

    host: str | None = None
    port: int | None = None
    path: str | bytes | None = None
    window: int = wire.WINDOW


class NetDatagrams(Request, frozen=True, tag="net.datagrams"):
    """Exchange datagrams with a UDP server in the guest."""

    port: int
    host: str | None = None


class NetListening(Request, frozen=True, tag="net.listening"):
    """Have TCP ports told that programs listen on, as ``Listening``, looked at every ``interval`` ms."""

    interval: int | None = None


class Listening(msgspec.Struct, frozen=True):
    """A record behind ``NetListening``: a port, and the address on which it is listened on, of 4 or 16 bytes.

    Without an address nobody listens any more.
    """

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    address: Annotated[bytes, msgspec.Meta(max_length=16)] = b""


class FsMount(Request, frozen=True, tag="fs.mount"):
    """Mount ``source`` at ``target``, which is made where it is missing."""

    type: str
    source: str
    target: str
    options: str = ""
    read_only: bool = False


class FsUnmount(Request, frozen=True, tag="fs.unmount"):
    """Unmount what is mounted at ``target``; ``lazy`` also while it is in use."""

    target: str
    lazy: bool = False


class DataGrow(Request, frozen=True, tag="data.grow"):
    """Have the data disk's file system fill its disk."""


class DataTrim(Request, frozen=True, tag="data.trim"):
    """Discard the blocks that the data disk's file system does not use."""


class DataLimit(Request, frozen=True, tag="data.limit"):
    """Have a root that lies in memory take no more than ``size`` bytes."""

    size: int


class DataFreeze(Request, frozen=True, tag="data.freeze"):
    """Have the data disk's file system stand still, complete on its disk, for at most ``limit`` ms."""

    limit: int


class DataThaw(Request, frozen=True, tag="data.thaw"):
    """Let it go on."""


class Thawed(msgspec.Struct, frozen=True):
    """Whether the file system stood still until it was thawed."""

    frozen: bool


class CpuOnline(Request, frozen=True, tag="cpu.online"):
    """Bring vCPUs that were plugged in online."""


class TreeRead(Request, frozen=True, tag="tree.read"):
    """Ask for the tree at ``path``, absolute."""

    path: str | bytes


class TreeWrite(Request, frozen=True, tag="tree.write"):
    """Send a tree to ``path``, or into it as ``name`` where it is a directory; ``user`` shall own it all."""

    path: str | bytes
    name: str | bytes
    user: str | None = None


class TerminalSize(msgspec.Struct, frozen=True):
    """Size of a terminal in characters."""

    rows: int = 24
    cols: int = 80


class ExecStart(Request, frozen=True, tag="exec.start"):
    """Start a command; see section 6 for the defaults, also those of a ``container``."""

    id: str
    argv: tuple[str | bytes, ...]
    env: dict[str | bytes, str | bytes] = {}
    cwd: str | bytes | None = None
    user: str | None = None
    tty: TerminalSize | None = None
    stdin: bool = False
    container: bool = False


class ExecStdin(Request, frozen=True, tag="exec.stdin"):
    """Send input from ``offset`` on, or with ``append`` behind all that the guest has received."""

    id: str
    offset: int = 0
    append: bool = False


class ExecOutput(Request, frozen=True, tag="exec.output"):
    """Receive output of descriptor ``fd`` from ``offset`` on; None is the oldest held."""

    id: str
    fd: int
    offset: int | None = None


class ExecWait(Request, frozen=True, tag="exec.wait"):
    """Ask to be answered when the command has ended."""

    id: str


class ExecSignal(Request, frozen=True, tag="exec.signal"):
    """Send a signal to the command's process group."""

    id: str
    signal: int


class ExecResize(Request, frozen=True, tag="exec.resize"):
    """Change the size of the command's terminal."""

    id: str
    rows: int
    cols: int


class ExecList(Request, frozen=True, tag="exec.list"):
    """Ask which executions the guest holds, but for the first ``skip``."""

    skip: int = 0


class ExecDetach(Request, frozen=True, tag="exec.detach"):
    """Have an execution outlive its client."""

    id: str


class ExecRelease(Request, frozen=True, tag="exec.release"):
    """Forget an execution; a running one is killed."""

    id: str


class Empty(msgspec.Struct, frozen=True):
    """A reply without content."""


class Pong(msgspec.Struct, frozen=True):
    """Reply to ``Ping``."""

    data: bytes = b""


class Info(msgspec.Struct, frozen=True):
    """Reply to ``SystemInfo``: times in ns, memory in bytes, load times 100."""

    agent: str
    protocol: int
    kernel: str
    machine: str
    hostname: str
    phase: str
    init: str
    uptime: int
    realtime: int
    vcpus: int
    memory_total: int
    memory_available: int
    load: int
    timeline: dict[str, int]


class Booted(msgspec.Struct, frozen=True):
    """Reply to ``BootWait``: ns since the guest's boot for each step."""

    timeline: dict[str, int]


class Stepped(msgspec.Struct, frozen=True):
    """Reply to ``ClockStep``: the guest's realtime before, ns."""

    before: int


class CpuTimes(msgspec.Struct, frozen=True):
    """What the guest's vCPUs did since its boot, ns, all of them together."""

    user: int
    system: int
    idle: int
    iowait: int
    steal: int


class MemoryUse(msgspec.Struct, frozen=True):
    """The guest's memory now, bytes."""

    total: int
    free: int
    available: int
    cached: int
    swap_total: int
    swap_free: int


class DiskUse(msgspec.Struct, frozen=True):
    """Bytes that the guest's disks read and wrote since its boot, and ``size`` and ``free`` of ``/`` now."""

    read: int
    written: int
    size: int
    free: int


class NetworkUse(msgspec.Struct, frozen=True):
    """Bytes that the guest received and sent since its boot, but for those to itself."""

    received: int
    sent: int


class Stats(msgspec.Struct, frozen=True):
    """Reply to ``SystemStats``, section 5.2: ``load`` times 100, ``uptime`` in ns."""

    cpu: CpuTimes
    memory: MemoryUse
    load: int
    processes: int
    disk: DiskUse
    network: NetworkUse
    uptime: int


class Loaded(msgspec.Struct, frozen=True):
    """Reply to ``ModuleLoad``: how many modules were not there yet."""

    loaded: int


class Configured(msgspec.Struct, frozen=True):
    """Reply to ``NetConfigure``: the interface's name."""

    interface: str


class Grown(msgspec.Struct, frozen=True):
    """Reply to ``DataGrow``: bytes of the file system ``before`` and now."""

    before: int
    size: int


class Trimmed(msgspec.Struct, frozen=True):
    """Reply to ``DataTrim``: bytes that were discarded."""

    trimmed: int


class Online(msgspec.Struct, frozen=True):
    """Reply to ``CpuOnline``: how many vCPUs are online now."""

    vcpus: int


class Written(msgspec.Struct, frozen=True):
    """What a guest says at the end of ``TreeWrite``, as DATA."""

    entries: int
    bytes: int


class Started(msgspec.Struct, frozen=True):
    """Reply to ``ExecStart``: the guest's process id."""

    pid: int


class Offset(msgspec.Struct, frozen=True):
    """Reply to ``ExecStdin`` and ``ExecOutput``."""

    offset: int


class Exit(msgspec.Struct, frozen=True):
    """How a command ended.

    Attributes:
        code: its exit status, or None if a signal ended it.
        signal: the number of that signal, or None.
        core: whether it left a core dump.
        stdout: bytes that the command wrote to descriptor 1 before it ended; ``stderr`` likewise.
        started: ns of the guest's boot time clock; ``ended`` likewise.
        user: CPU time in µs; ``system`` likewise.
        maxrss: largest resident set, bytes.
    """

    stdout: int
    stderr: int
    started: int
    ended: int
    user: int
    system: int
    maxrss: int
    code: int | None = None
    signal: int | None = None
    core: bool = False

    @property
    def returncode(self) -> int:
        """Its status as a shell has it: 128 plus the number of the signal that ended it."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.code == 0

    @property
    def elapsed(self) -> float:
        """Seconds that it ran, by the guest's clock."""
        return (self.ended - self.started) / 1e9


class ExecutionState(msgspec.Struct, frozen=True):
    """One execution that the guest holds.

    Attributes:
        id: what ``attach`` takes.
        pid: its process id in the guest.
        running: whether it has not ended yet.
        stdin: whether it takes input.
        tty: whether it has a terminal.
    """

    id: str
    pid: int
    running: bool
    stdin: bool = False
    tty: bool = False
    arguments: tuple[bytes, ...] = msgspec.field(default=(), name="argv")

    @property
    def argv(self) -> tuple[str, ...]:
        """The command, of which the guest keeps 1,024 bytes; bytes that are no UTF-8 are replaced."""
        return tuple(argument.decode(errors="replace") for argument in self.arguments)


class Executions(msgspec.Struct, frozen=True):
    """Reply to ``ExecList``: as many as fit a frame, and whether there are ``more``."""

    executions: tuple[ExecutionState, ...]
    more: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Payload of RESET: why a request was refused or a stream ended.

    ``hint`` and ``detail`` come from a supervisor (docs/reference/control-protocol.md), with ``HOST_ERROR``
    as ``code`` and the error's own code as ``stage``.
    """

    code: str
    message: str
    errno: int = 0
    stage: str = ""
    hint: str = ""
    detail: str = ""
