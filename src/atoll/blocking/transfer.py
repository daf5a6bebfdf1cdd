"""Snapshots in one file for programs without an event loop."""

from __future__ import annotations

from atoll import aio
from atoll.blocking.core import waiting

__all__ = ["export_snapshot", "import_snapshot"]

export_snapshot = waiting(aio.export_snapshot)
import_snapshot = waiting(aio.import_snapshot)
