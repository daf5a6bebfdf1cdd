"""Which snapshots are to go. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from atoll.errors import UsageError
from atoll.snapshot.catalog import Snapshot

__all__ = ["parse_age", "plan"]

_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def parse_age(text: str) -> float:
    """Seconds of an age such as ``12h``. Raises ``UsageError``: ``usage.age``."""
    match = _AGE.fullmatch(text)
    if match is None:
        hint = "write a number with s, m, h, d or w, such as 7d"
        raise UsageError(f"{text!r} is no age", code="age", hint=hint)
    return float(match[1]) * _SECONDS[match[2]]


def plan(
    snapshots: Iterable[Snapshot], *, keep: int | None, older_than: float | None, now: float
) -> list[Snapshot]:
    """Those to remove: of each machine all but the newest, and of these what is old enough.

    What cannot be read is left: somebody may want to look at it.

    Args:
        snapshots: that there are.
        keep: how many of each machine stay whatever their age; 0 if None.
        older_than: seconds of age that a snapshot has at least to go; none if None.
        now: seconds since the epoch.
    """
    machines: dict[str, list[Snapshot]] = {}
    for one in snapshots:
        if one.manifest is not None:
            machines.setdefault(one.manifest.machine_id, []).append(one)
    doomed = [one for every in machines.values() for one in _all_but(every, keep or 0)]
    return [one for one in doomed if older_than is None or now - _created(one) > older_than]


def _all_but(snapshots: Sequence[Snapshot], keep: int) -> list[Snapshot]:
    return sorted(snapshots, key=_created)[: max(len(snapshots) - keep, 0)]


def _created(one: Snapshot) -> float:
    return one.manifest.created if one.manifest is not None else 0.0
