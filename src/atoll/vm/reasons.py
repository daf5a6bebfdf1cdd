"""Why a guest ended, and why a start failed, as a state tells it. Pure."""

from __future__ import annotations

import re

from atoll.errors import AtollError, BootError
from atoll.hypervisor.port import Departure
from atoll.process import describe_status
from atoll.vm.state import Cause, Failure

__all__ = ["ended", "failure_of", "unready"]

_PANIC = re.compile(r"Kernel panic - not syncing: (.+)")


def ended(
    name: str, departure: Departure, status: int, *, console: str, said: str
) -> tuple[Cause, Failure | None]:
    """Why a guest that ran has ended.

    Args:
        name: of the machine.
        departure: what the hypervisor knows of it.
        status: of the hypervisor's process.
        console: what the guest's kernel wrote since it began.
        said: what the hypervisor wrote.
    """
    panic = _PANIC.search(console)
    if panic and departure in {Departure.RESET, Departure.SHUTDOWN}:  # a panic resets at once
        message = f"{name}: the guest's kernel panicked: {panic[1].strip()}"
        return Cause.PANICKED, Failure("boot.panic", message, "see `atoll logs`")
    if departure is Departure.RESET:
        return Cause.REBOOTED, None
    if departure is Departure.SHUTDOWN:
        return Cause.POWERED_OFF, None
    lines = said.strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    message = f"{name}: the hypervisor {describe_status(status)}{last}"
    return Cause.HYPERVISOR_DIED, Failure("state.hypervisor", message, "see `atoll logs --source hypervisor`")


def unready(name: str, timeout: float, waits_for: str) -> BootError:
    """The error for a guest that is up but after ``timeout`` seconds not ready: it waits for something."""
    message = f"{name}: the guest is up, but after {timeout:g} s it still waits for its {waits_for}"
    stage = "probe" if waits_for.startswith("probe") else "setup"
    hint = f"change what is probed: `atoll edit {name} ready_probe=...`, or allow more: `boot_timeout=...`"
    return BootError(message, stage=stage, hint=hint if stage == "probe" else "see `atoll logs`")


def failure_of(error: Exception) -> Failure:
    """What a state keeps of an error."""
    if isinstance(error, AtollError):
        return Failure(error.code, error.message, error.hint, error.detail)
    hint = "this is a bug; `atoll logs --source supervisor` has the details"
    return Failure("internal", f"{type(error).__name__}: {error}", hint)
