"""The one stream of typed events that drives progress, ``-v``, ``--json`` and the SDK's callbacks.

Whoever does something takes an ``emit`` callable; whoever wants to know passes one. Events carry facts, not
prose: the command line decides how they read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

__all__ = [
    "AcceleratorChosen",
    "AutoPortClosed",
    "AutoPortOpened",
    "CommandRan",
    "Emit",
    "Event",
    "ExecutionEnded",
    "ExecutionStarted",
    "GuestBooted",
    "OutputReceived",
    "PortClosed",
    "PortOpened",
    "PortPublished",
    "PortRefused",
    "StageReached",
    "StateChanged",
    "StopTried",
    "TaskAdvanced",
    "TaskEnded",
    "TaskStarted",
    "VmCaptured",
    "VmExited",
    "VmForked",
    "VmSpawned",
    "WaitingFor",
    "Warned",
    "ignore",
    "progress",
    "task",
    "tee",
]

#: Seconds between two words of how far a task is.
_PAUSE = 0.1


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events.

    Attributes:
        at: seconds since the epoch when it was made.
    """

    at: float = msgspec.field(default_factory=time.time)


class CommandRan(Event, frozen=True, tag="command_ran"):
    """A program on the host has ended; ``elapsed`` in seconds."""

    argv: tuple[str, ...]
    status: int
    elapsed: float


class TaskStarted(Event, frozen=True, tag="task_started"):
    """Long work has begun; ``total`` is 0 where it is unknown."""

    task: str
    title: str
    total: int = 0
    unit: str = ""


class TaskAdvanced(Event, frozen=True, tag="task_advanced"):
    """Long work has come so far; ``note`` is one line of what it does now."""

    task: str
    done: int = 0
    note: str = ""


class TaskEnded(Event, frozen=True, tag="task_ended"):
    """Long work is over; ``elapsed`` in seconds."""

    task: str
    ok: bool
    elapsed: float


class AcceleratorChosen(Event, frozen=True, tag="accelerator_chosen"):
    """The accelerator of a VM, and why this one."""

    accelerator: str
    reason: str


class VmSpawned(Event, frozen=True, tag="vm_spawned"):
    """The hypervisor's process runs."""

    vm: str
    pid: int


class StageReached(Event, frozen=True, tag="stage_reached"):
    """A boot stage is complete; ``elapsed`` in seconds since the VM was spawned."""

    vm: str
    stage: str
    elapsed: float


class GuestBooted(Event, frozen=True, tag="guest_booted"):
    """The guest's root is mounted; ``timeline`` has its own clock's ns since its boot for each step."""

    vm: str
    timeline: dict[str, int]


class VmForked(Event, frozen=True, tag="vm_forked"):
    """A running VM was copied to ``children``; it stood still for ``stopped`` seconds."""

    vm: str
    children: tuple[str, ...]
    stopped: float


class PortOpened(Event, frozen=True, tag="port_opened"):
    """A port of this host leads to one that ``container`` publishes."""

    vm: str
    port: str
    container: str


class PortRefused(Event, frozen=True, tag="port_refused"):
    """A port that ``container`` publishes is not to be had on this host; it is tried again."""

    vm: str
    port: str
    container: str
    reason: str


class PortClosed(Event, frozen=True, tag="port_closed"):
    """A port of this host leads to ``container`` no more."""

    vm: str
    port: str
    container: str


class PortPublished(Event, frozen=True, tag="port_published"):
    """``host``, an address and port of this host, leads to ``port`` of a sandbox, as was asked for."""

    vm: str
    port: str
    host: str


class AutoPortOpened(Event, frozen=True, tag="auto_port_opened"):
    """A program of the guest listens on ``port``; ``host``, an address and port of this host, leads there."""

    vm: str
    port: int
    host: str


class AutoPortClosed(Event, frozen=True, tag="auto_port_closed"):
    """``host`` leads to ``port`` of the guest no more: nobody listens there."""

    vm: str
    port: int
    host: str


class VmCaptured(Event, frozen=True, tag="vm_captured"):
    """A running VM was written down; it stood still for ``stopped`` seconds."""

    vm: str
    stopped: float


class VmExited(Event, frozen=True, tag="vm_exited"):
    """The hypervisor's process is gone; a negative status is the number of a signal."""

    vm: str
    status: int


class ExecutionStarted(Event, frozen=True, tag="execution_started"):
    """A command runs in the guest."""

    vm: str
    execution: str
    argv: tuple[str, ...]
    guest_pid: int


class OutputReceived(Event, frozen=True, tag="output_received"):
    """A command wrote ``text`` to descriptor ``fd``; bytes that are no UTF-8 are replaced."""

    vm: str
    execution: str
    fd: int
    text: str


class ExecutionEnded(Event, frozen=True, tag="execution_ended"):
    """A command in the guest has ended: by itself with ``code``, or by ``signal``. ``elapsed`` in seconds."""

    vm: str
    execution: str
    code: int | None
    signal: int | None
    elapsed: float


class StateChanged(Event, frozen=True, tag="state_changed"):
    """A machine came into another phase, which is on disk already; ``error`` is a code, or empty."""

    vm: str
    phase: str
    cause: str
    error: str = ""


class StopTried(Event, frozen=True, tag="stop_tried"):
    """One way to end a guest was tried for ``elapsed`` seconds; ``ended`` if it worked."""

    vm: str
    how: str
    elapsed: float
    ended: bool


class WaitingFor(Event, frozen=True, tag="waiting_for"):
    """A machine that starts waits for something, by name."""

    vm: str
    what: str


class Warned(Event, frozen=True, tag="warned"):
    """Something the user should know although the work goes on."""

    message: str
    hint: str = ""


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


def tee(*listeners: Emit) -> Emit:
    """One listener that passes each event on to all of ``listeners``."""

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit


@contextmanager
def task(emit: Emit, name: str, title: str, *, total: int = 0, unit: str = "") -> Iterator[Emit]:
    """Frame long work with its start and end events, the end also on failure."""
    emit(TaskStarted(task=name, title=title, total=total, unit=unit))
    began = time.monotonic()
    ok = False
    try:
        yield emit
        ok = True
    finally:
        emit(TaskEnded(task=name, ok=ok, elapsed=time.monotonic() - began))


def progress(emit: Emit, name: str) -> Callable[[int], None]:
    """What tells of how far a task is, ten times a second at most; it is given that after each step."""
    told = 0.0

    def advance(done: int) -> None:
        nonlocal told
        if time.monotonic() - told > _PAUSE:
            told = time.monotonic()
            emit(TaskAdvanced(task=name, done=done))

    return advance
