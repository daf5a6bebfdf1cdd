"""How much room a host has: pure functions over what its kernel says (proc(5); the kernel's PSI document)."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

__all__ = ["Room", "look", "room_for", "stall_of"]

_MIB = 1 << 20

#: What is left to everybody else: this much, or this part of the host's memory, whichever is more.
_LEFT_FREE = 512 * _MIB
_LEFT_PART = 16

#: Percent of the last ten seconds in which some process waited for memory, above which no VM is added.
_STALLED = 10.0


class Room(msgspec.Struct, frozen=True):
    """A host's memory in bytes, and the percentage of time in which somebody waits for it."""

    total: int
    available: int
    stalled: float


def look() -> Room:
    """The room of this host now; where it does not tell there is enough."""
    memory = _read("/proc/meminfo")
    return Room(
        total=_kib(memory, "MemTotal"),
        available=_kib(memory, "MemAvailable"),
        stalled=stall_of(_read("/proc/pressure/memory")),
    )


def room_for(room: Room, size: int) -> bool:
    """Whether a VM that may come to use ``size`` bytes can be added."""
    if not room.total:
        return True
    left = max(_LEFT_FREE, room.total // _LEFT_PART)
    return room.available - size >= left and room.stalled < _STALLED


def stall_of(text: str) -> float:
    """Percent of the last ten seconds, out of ``/proc/pressure/memory``; 0 if it is not told."""
    found = re.search(r"^some avg10=(\d+(?:\.\d+)?)", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
