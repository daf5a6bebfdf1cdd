"""The states of a machine and the ways between them. Pure: what is known goes in, the next state out."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from atoll.errors import AtollError
from atoll.process import Identity

__all__ = ["TRANSITIONS", "Cause", "Failure", "Phase", "State", "StateError", "advance", "truth"]


class Phase(StrEnum):
    """What a machine is doing."""

    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    SUSPENDED = "suspended"


class Cause(StrEnum):
    """Why a machine came into the state that it is in."""

    CREATED = "created"
    STARTED = "start was asked for"
    RESTARTED = "restarted by policy"
    REBOOTED = "the guest rebooted"
    BOOTED = "the guest is up"
    NOT_BOOTED = "the start failed"
    PAUSED = "pause was asked for"
    HELD = "it is being written down"
    RESUMED = "resume was asked for"
    STOP_ASKED = "stop was asked for"
    SUSPEND_ASKED = "suspend was asked for"
    STOP_FAILED = "the stop was given up"
    STOPPED = "stopped"
    SUSPENDED = "suspended: `atoll start` has it go on"
    POWERED_OFF = "the guest powered off"
    PANICKED = "the guest's kernel panicked"
    HYPERVISOR_DIED = "the hypervisor died"
    KILLED = "its processes were killed"
    HOST_RESTARTED = "the host was restarted"


class Failure(msgspec.Struct, frozen=True):
    """What went wrong the last time, as an error says it."""

    code: str
    message: str
    hint: str = ""
    detail: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a machine.

    Attributes:
        phase: what it does.
        cause: why it does.
        since: seconds since the epoch when it came into this phase.
        origin: where a start goes back to if it fails.
        vm: the hypervisor's process, while there is one.
        booted: seconds since the epoch when the guest was last up.
        restarts: restarts by policy since it was last started by hand or ran for a while.
        failure: what went wrong the last time; None after a start that succeeded.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    phase: Phase = Phase.CREATED
    cause: Cause = Cause.CREATED
    since: float = 0.0
    origin: Phase = Phase.CREATED
    vm: Identity | None = None
    booted: float = 0.0
    restarts: int = 0
    failure: Failure | None = None

    @property
    def active(self) -> bool:
        """Whether there is, or is about to be, a VM."""
        return self.phase in {Phase.STARTING, Phase.RUNNING, Phase.PAUSED, Phase.STOPPING}

    @property
    def held(self) -> bool:
        """Whether its vCPUs stand still for who writes it down, and not because that was asked for."""
        return self.phase is Phase.PAUSED and self.cause is Cause.HELD

    @property
    def suspending(self) -> bool:
        """Whether it was written down for its next start, and its VM is ended."""
        return self.phase is Phase.STOPPING and self.cause is Cause.SUSPEND_ASKED


class StateError(AtollError):
    """The machine is in a state in which this cannot be done."""

    family = "state"


_AT_REST = (Phase.CREATED, Phase.STOPPED, Phase.FAILED, Phase.SUSPENDED)
_UP = (Phase.RUNNING, Phase.PAUSED)
_ACTIVE = (Phase.STARTING, *_UP, Phase.STOPPING)

#: From which phases a cause leads where. ``NOT_BOOTED`` leads to the state's ``origin``.
TRANSITIONS: dict[Cause, tuple[tuple[Phase, ...], Phase | None]] = {
    Cause.STARTED: (_AT_REST, Phase.STARTING),
    Cause.RESTARTED: ((Phase.STOPPED, Phase.FAILED), Phase.STARTING),
    Cause.REBOOTED: (_UP, Phase.STARTING),
    Cause.BOOTED: ((Phase.STARTING,), Phase.RUNNING),
    Cause.NOT_BOOTED: ((Phase.STARTING,), None),
    Cause.PAUSED: ((Phase.RUNNING,), Phase.PAUSED),
    Cause.HELD: ((Phase.RUNNING,), Phase.PAUSED),
    Cause.RESUMED: ((Phase.PAUSED,), Phase.RUNNING),
    Cause.STOP_ASKED: ((Phase.STARTING, *_UP), Phase.STOPPING),
    Cause.SUSPEND_ASKED: ((Phase.PAUSED,), Phase.STOPPING),
    Cause.STOP_FAILED: ((Phase.STOPPING,), Phase.RUNNING),
    Cause.STOPPED: ((Phase.STOPPING,), Phase.STOPPED),
    Cause.SUSPENDED: ((Phase.STOPPING,), Phase.SUSPENDED),
    Cause.POWERED_OFF: (_UP, Phase.STOPPED),
    Cause.PANICKED: (_UP, Phase.FAILED),
    Cause.HYPERVISOR_DIED: (_UP, Phase.FAILED),
    Cause.KILLED: (_ACTIVE, Phase.FAILED),
    Cause.HOST_RESTARTED: (_ACTIVE, Phase.STOPPED),
}


def advance(
    state: State, cause: Cause, at: float, *, vm: Identity | None = None, failure: Failure | None = None
) -> State:
    """The state that ``cause`` leads to.

    Args:
        state: now.
        cause: what happened.
        at: seconds since the epoch.
        vm: the hypervisor's process, if it is new.
        failure: what went wrong.

    Raises:
        StateError: ``state.CAUSE``: no way leads there.
    """
    origins, target = TRANSITIONS.get(cause, ((), None))
    if state.phase not in origins:
        raise StateError(f"a machine that is {state.phase} does not become so by: {cause}", code="transition")
    phase = target or state.origin
    next_state = msgspec.structs.replace(state, phase=phase, cause=cause, since=at, failure=failure)
    if phase is Phase.STARTING:
        # A reboot that fails leaves no guest: it does not go back to running.
        origin = state.phase if state.phase in _AT_REST else Phase.FAILED
        restarts = state.restarts + 1 if cause is Cause.RESTARTED else 0
        return msgspec.structs.replace(
            next_state, origin=origin, restarts=restarts, vm=vm, failure=state.failure
        )
    if cause is Cause.BOOTED:
        return msgspec.structs.replace(next_state, booted=at, vm=vm or state.vm)
    if not next_state.active:
        return msgspec.structs.replace(next_state, vm=None)
    return next_state


def truth(state: State, *, supervised: bool, alive: bool, boot: str, at: float) -> State:
    """The state of a machine whose record may be old: its processes may have been killed.

    Args:
        state: as recorded.
        supervised: a supervisor lives, which keeps the record true.
        alive: the hypervisor lives.
        boot: the host's boot id now.
        at: seconds since the epoch.
    """
    if supervised or alive or not state.active:
        return state
    if state.phase is Phase.STOPPING:
        return advance(state, Cause.SUSPENDED if state.suspending else Cause.STOPPED, at)
    if state.vm is not None and state.vm.boot != boot:
        return advance(state, Cause.HOST_RESTARTED, at)
    lost = Failure(
        "state.killed", "its supervisor and its hypervisor were killed", "`atoll start` starts it again"
    )
    return advance(state, Cause.KILLED, at, failure=lost)
