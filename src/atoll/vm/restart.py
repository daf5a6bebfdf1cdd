"""When a machine that ended is started again, and after how long. Pure."""

from __future__ import annotations

from enum import StrEnum

from atoll.vm.state import Phase, State

__all__ = ["Policy", "delay", "settled"]

#: Seconds before the first restart; each next one waits twice as long, up to ``_LONGEST``.
_SHORTEST, _LONGEST = 0.5, 10.0

#: Seconds for which a guest must have been up for its next restart to count as the first again.
_SETTLED = 10.0


class Policy(StrEnum):
    """What follows when a guest ends without being asked to."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


def delay(policy: Policy, state: State) -> float | None:
    """Seconds until ``state``, in which a machine has just come to rest, is left again; None for never."""
    wanted = {
        Policy.NO: (),
        Policy.ON_FAILURE: (Phase.FAILED,),
        Policy.ALWAYS: (Phase.FAILED, Phase.STOPPED),
    }[policy]
    if state.phase not in wanted:
        return None
    return min(_SHORTEST * 2.0 ** min(state.restarts, 16), _LONGEST)


def settled(state: State, at: float) -> bool:
    """Whether the guest has been up long enough, by ``at``, to forget earlier restarts."""
    return state.booted > 0 and at - state.booted >= _SETTLED
