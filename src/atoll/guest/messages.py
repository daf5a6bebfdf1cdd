"""Requests and replies of the agent protocol, section 5 and 6, as typed records in MessagePack."""

from __future__ import annotations

import msgspec

__all__ = [
    "BootWait",
    "Booted",
    "ClockStep",
    "Empty",
    "EntropyReseed",
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
    "Info",
    "Offset",
    "Ping",
    "Pong",
    "Poweroff",
    "Refusal",
    "Request",
    "Started",
    "Stepped",
    "SystemInfo",
    "TerminalSize",
]


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


class EntropyReseed(Request, frozen=True, tag="entropy.reseed"):
    """Credit ``seed``, 32 to 512 bytes, to the guest's entropy pool and reseed its generator."""

    seed: bytes


class Poweroff(Request, frozen=True, tag="system.poweroff"):
    """End the guest in order; ``grace`` in ms between SIGTERM and SIGKILL."""

    mode: str = "poweroff"
    grace: int = 2000


class TerminalSize(msgspec.Struct, frozen=True):
    """Size of a terminal in characters."""

    rows: int = 24
    cols: int = 80


class ExecStart(Request, frozen=True, tag="exec.start"):
    """Start a command; see section 6 for the defaults."""

    id: str
    argv: tuple[str | bytes, ...]
    env: dict[str | bytes, str | bytes] = {}
    cwd: str | bytes | None = None
    user: str | None = None
    tty: TerminalSize | None = None
    stdin: bool = False


class ExecStdin(Request, frozen=True, tag="exec.stdin"):
    """Send input from ``offset`` on."""

    id: str
    offset: int = 0


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


class Started(msgspec.Struct, frozen=True):
    """Reply to ``ExecStart``: the guest's process id."""

    pid: int


class Offset(msgspec.Struct, frozen=True):
    """Reply to ``ExecStdin`` and ``ExecOutput``."""

    offset: int


class Exit(msgspec.Struct, frozen=True):
    """How a command ended: by itself with ``code``, or by ``signal``.

    Attributes:
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


class ExecutionState(msgspec.Struct, frozen=True):
    """One execution that the guest holds."""

    id: str
    pid: int
    running: bool


class Executions(msgspec.Struct, frozen=True):
    """Reply to ``ExecList``: as many as fit a frame, and whether there are ``more``."""

    executions: tuple[ExecutionState, ...]
    more: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Payload of RESET: why a request was refused or a stream ended."""

    code: str
    message: str
    errno: int = 0
    stage: str = ""
