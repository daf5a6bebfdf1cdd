"""Whether a machine has been idle for so long that it may be suspended. Pure."""

from __future__ import annotations

import msgspec

__all__ = ["Idleness", "observed", "pause_between"]

#: Part of one processor's time below which a VM does nothing: an idle Debian takes 0.2 % under TCG.
_QUIET = 0.05

#: Seconds between two looks, at most and at least.
_RAREST, _OFTENEST = 15.0, 0.25


class Idleness(msgspec.Struct, frozen=True):
    """What was seen at the last look.

    Attributes:
        at: seconds, by a clock that does not go back.
        cpu: CPU time that the VM had taken, seconds.
        since: when it was last seen at work.
    """

    at: float
    cpu: float
    since: float


def pause_between(limit: float) -> float:
    """Seconds between two looks at a machine that may be idle for ``limit`` seconds."""
    return min(max(limit / 4, _OFTENEST), _RAREST)


def observed(before: Idleness | None, *, at: float, cpu: float, used: bool) -> Idleness:
    """What is seen now.

    Args:
        before: what was seen at the last look; None at the first.
        at: now.
        cpu: CPU time that the VM has taken, seconds.
        used: somebody is connected to it, or runs something in it.
    """
    if before is None or used or cpu - before.cpu > _QUIET * (at - before.at):
        return Idleness(at, cpu, at)
    return Idleness(at, cpu, before.since)
