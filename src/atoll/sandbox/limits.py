"""What a sandbox may use beside its vCPUs and memory, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from atoll.config import parse_memory
from atoll.errors import UsageError
from atoll.guest.agent import Agent
from atoll.guest.files import Files

__all__ = ["CODE_EXECUTION", "Limits", "OnIdle", "enforce", "parse"]

#: What is done with a sandbox that nobody uses.
OnIdle = Literal["stop", "pause"]

#: Arguments of ``Sandbox`` for code that somebody else wrote, or nobody has read: no network, and an end.
CODE_EXECUTION: Mapping[str, Any] = MappingProxyType(
    {"disk": "256M", "processes": 256, "command_timeout": 60.0, "ttl": 3600.0, "idle_timeout": 600.0}
)

#: Where the kernel counts processes and threads (sysctl/kernel.rst, ``threads-max``).
_THREADS_MAX = "/proc/sys/kernel/threads-max"


class Limits(msgspec.Struct, frozen=True):
    """Limits of one sandbox; 0 stands for none.

    Attributes:
        disk: bytes that can be written to its root, which lies in its memory.
        processes: processes and threads beside those of the kernel and the agent.
        ttl: seconds after which it is closed.
        idle_timeout: seconds without a request after which ``on_idle`` is done.
        on_idle: ``stop`` closes it; ``pause`` has it stand still until the next request.
    """

    disk: int = 0
    processes: int = 0
    ttl: float = 0.0
    idle_timeout: float = 0.0
    on_idle: OnIdle = "stop"


def parse(
    *,
    disk: str | int | None,
    processes: int | None,
    ttl: float | None,
    idle_timeout: float | None,
    on_idle: str,
) -> Limits:
    """Limits as a program gives them.

    Raises:
        UsageError: ``usage.limit``: one of them is none.
    """
    if on_idle not in {"stop", "pause"}:
        raise _wrong("on_idle", on_idle, 'use "stop" or "pause"')
    if processes is not None and processes < 1:
        raise _wrong("processes", processes, "allow at least one")
    for name, seconds in (("ttl", ttl), ("idle_timeout", idle_timeout)):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise _wrong(name, seconds, "use a number of seconds above 0")
    return Limits(
        disk=0 if disk is None else _size(disk),
        processes=processes or 0,
        ttl=ttl or 0.0,
        idle_timeout=idle_timeout or 0.0,
        on_idle="pause" if on_idle == "pause" else "stop",
    )


def _size(disk: str | int) -> int:
    try:
        size = disk if isinstance(disk, int) else parse_memory(disk)
    except ValueError as error:
        raise _wrong("disk", disk, str(error)) from error
    if size <= 0:
        raise _wrong("disk", disk, "allow at least 1M")
    return size


def _wrong(name: str, value: object, hint: str) -> UsageError:
    return UsageError(f"{name} = {value!r}: no limit", code="limit", hint=hint)


async def enforce(limits: Limits, agent: Agent, files: Files) -> None:
    """Have the guest's kernel see to what it can.

    Raises:
        GuestError: it cannot.
        ChannelError: the guest is gone.
    """
    if limits.disk:
        await agent.limit_data(limits.disk)
    if limits.processes:
        running = (await agent.stats()).processes
        await files.write(_THREADS_MAX, f"{running + limits.processes}\n", in_place=True, user="root")
