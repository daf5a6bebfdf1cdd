"""Snapshots for programs without an event loop."""

from __future__ import annotations

import functools

from atoll import aio
from atoll.blocking.core import wait_for
from atoll.config import Config
from atoll.events import Emit, ignore
from atoll.snapshot.differences import Difference

__all__ = ["compare_snapshots"]


@functools.wraps(aio.compare_snapshots)
def compare_snapshots(
    snapshot: str, other: str | None = None, *, config: Config | None = None, on_event: Emit = ignore
) -> tuple[Difference, ...]:
    """Which files changed from one snapshot to another."""
    return wait_for(aio.compare_snapshots(snapshot, other, config=config, on_event=on_event))
