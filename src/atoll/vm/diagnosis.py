"""Why a guest did not come up, told from what it left behind. Pure: evidence in, error out."""

from __future__ import annotations

import re

import msgspec

from atoll.errors import BootError
from atoll.hypervisor.port import Position
from atoll.process import describe_status

__all__ = ["Evidence", "diagnose"]

#: Lines that the agent writes to the console as it gets on.
_IN_INITRAMFS = "atoll: initramfs"
_HAS_CHANNEL = "atoll: channel"

_FAILED = re.compile(r"atoll: failed: (initramfs|root): (.+)")
_PANIC = re.compile(r"Kernel panic - not syncing: (.+)")
_NO_MEMORY = re.compile(r"Out of memory|deadlocked on memory|Cannot allocate memory|No space left on device")
_NO_HOST_MEMORY = re.compile(r"cannot (set up|allocate) .*memory|Cannot allocate memory", re.IGNORECASE)

_PORT_TAKEN = re.compile(r"Could not set up host forwarding rule '(tcp|udp):([\d.]*):(\d+)-")

_MORE_MEMORY = "give the guest more with --memory"
_COMMAND_ENDED = "the command, or what it started, ended the VM; see the console's last lines"
_REBUILD_KERNEL = (
    "if you gave --kernel, check that file; else `atoll image build --refresh-kernel IMAGE` gets a new one"
)
_REBUILD_IMAGE = "rebuild the image with `atoll image build --force IMAGE`"


class Evidence(msgspec.Struct, frozen=True):
    """What is known about a guest that failed.

    Attributes:
        vm: its name.
        status: exit status of the hypervisor, None while it runs.
        position: where the guest executes, if it runs.
        console: what the guest wrote.
        diagnostics: what the hypervisor wrote.
        answered: the agent has answered.
        booted: the root was mounted.
        waited: seconds since the spawn.
    """

    vm: str
    status: int | None
    position: Position
    console: str
    diagnostics: str
    answered: bool
    booted: bool
    waited: float


def diagnose(evidence: Evidence) -> BootError:
    """The stage that failed, the reason in words, the console's last lines and what to do."""
    for examine in (_agent_said, _kernel_panicked, _hypervisor_failed, _guest_ended, _guest_stuck):
        error = examine(evidence)
        if error is not None:
            return error
    raise AssertionError("unreachable: _guest_stuck always has an answer")


def _error(evidence: Evidence, message: str, stage: str, hint: str) -> BootError:
    lines = [line for line in evidence.console.splitlines() if line.strip()][-15:]
    return BootError(f"{evidence.vm}: {message}", stage=stage, hint=hint, detail="\n".join(lines))


def _agent_said(evidence: Evidence) -> BootError | None:
    found = _FAILED.search(evidence.console)
    if found is None:
        return None
    stage = found[1]
    hint = _REBUILD_IMAGE if stage == "root" else _REBUILD_KERNEL
    return _error(evidence, f"the guest stopped: {found[2].strip()}", stage, hint)


def _kernel_panicked(evidence: Evidence) -> BootError | None:
    found = _PANIC.search(evidence.console)
    if found is None:
        return None
    reason = found[1].strip()
    hint = _MORE_MEMORY if _NO_MEMORY.search(evidence.console) else ""
    hint = hint or (_COMMAND_ENDED if evidence.booted else "")
    if evidence.booted:
        stage = "command"
    elif evidence.answered or _HAS_CHANNEL in evidence.console:
        stage = "agent"
    elif _IN_INITRAMFS in evidence.console or "init" in reason or "root fs" in reason:
        stage, hint = "initramfs", hint or _REBUILD_KERNEL
    else:
        stage, hint = "kernel", hint or _REBUILD_KERNEL
    return _error(evidence, f"the guest's kernel panicked: {reason}", stage, hint)


def _hypervisor_failed(evidence: Evidence) -> BootError | None:
    if evidence.status in {None, 0}:
        return None
    assert evidence.status is not None
    taken = _PORT_TAKEN.search(evidence.diagnostics)
    if taken is not None:
        message = f"the host's port {taken[2]}:{taken[3]}/{taken[1]} is taken"
        hint = (
            f"see who has it with `ss -lnp`, or choose another: `atoll edit {evidence.vm} ports=HOST:GUEST`"
        )
        return _error(evidence, message, "spawn", hint)
    said = evidence.diagnostics.strip().splitlines()
    reason = f"QEMU {describe_status(evidence.status)}" + (f": {said[-1].strip()}" if said else "")
    started = bool(evidence.console.strip()) or evidence.answered
    stage = _reached(evidence) if started else "spawn"
    hint = (
        "ask for less with --memory" if _NO_HOST_MEMORY.search(evidence.diagnostics) else "run `atoll doctor`"
    )
    return _error(evidence, reason, stage, hint)


def _guest_ended(evidence: Evidence) -> BootError | None:
    if evidence.status is None:
        return None
    if evidence.booted:
        return _error(evidence, "the guest powered off or reset", "command", _COMMAND_ENDED)
    stage = _reached(evidence)
    return _error(evidence, f"the guest reset itself in stage {stage}", stage, _REBUILD_KERNEL)


def _guest_stuck(evidence: Evidence) -> BootError:
    stage = _reached(evidence)
    if evidence.answered:
        return _error(evidence, "the guest's agent no longer answers", stage, "see the console's last lines")
    message = f"the guest did not come up within {evidence.waited:.0f} s; it is in stage {stage}"
    hint = "a slow host may need more: set boot_timeout" if stage != "firmware" else _REBUILD_KERNEL
    return _error(evidence, message, stage, hint)


def _reached(evidence: Evidence) -> str:
    """The stage in which the guest is, by the marks that it left."""
    if evidence.booted:
        return "command"
    if evidence.answered:
        return "root"
    if _HAS_CHANNEL in evidence.console:
        return "agent"
    if _IN_INITRAMFS in evidence.console:
        return "initramfs"
    if evidence.position is Position.FIRMWARE and not evidence.console.strip():
        return "firmware"
    return "kernel"
