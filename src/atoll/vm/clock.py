"""A guest's clock: it stands still while its vCPUs do, so the host sets it."""

from __future__ import annotations

import asyncio
import contextlib
import time

from atoll.errors import AtollError
from atoll.guest.agent import Agent

__all__ = ["PERIOD", "correct", "drifted", "set_clock"]

#: Seconds between two looks at a guest's clock.
PERIOD = 10.0

#: Seconds for a guest to take the right time: more would hold up others for one that hangs.
_WAIT = 5.0

#: Seconds by which a guest's clock may be off before it is set.
_DRIFT = 0.05


def drifted(guest: int, host: int) -> bool:
    """Whether a guest's clock is off by more than is borne; both in ns since 1970."""
    return abs(guest - host) > _DRIFT * 1e9


async def set_clock(agent: Agent) -> None:
    """Set the guest's clock to the host's; one that does not answer keeps what it has."""
    with contextlib.suppress(AtollError, TimeoutError):
        async with asyncio.timeout(_WAIT):
            await agent.ready()
            await agent.step_clock(time.time_ns())


async def correct(agent: Agent) -> None:
    """Set the guest's clock if it is off."""
    with contextlib.suppress(AtollError, TimeoutError):
        async with asyncio.timeout(_WAIT):
            before = time.time_ns()
            shown = (await agent.info()).realtime
            if not drifted(shown, (before + time.time_ns()) // 2):
                return
    await set_clock(agent)
