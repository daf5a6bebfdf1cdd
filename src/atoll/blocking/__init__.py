"""The SDK for programs without an event loop, derived from ``atoll.aio``.

One thread of the program runs an event loop; each blocking method hands the coroutine of its namesake to it
and waits. Signatures, types and docstrings are those of the original.
"""

from __future__ import annotations

from atoll.blocking.capture import Capture
from atoll.blocking.files import Files, Watch
from atoll.blocking.machine import Machine
from atoll.blocking.networking import Network, networks
from atoll.blocking.processes import Exposed, Process, Reader
from atoll.blocking.sandbox import Pool, Sandbox
from atoll.blocking.snapshots import compare_snapshots
from atoll.blocking.transfer import export_snapshot, import_snapshot

__all__ = [
    "Capture",
    "Exposed",
    "Files",
    "Machine",
    "Network",
    "Pool",
    "Process",
    "Reader",
    "Sandbox",
    "Watch",
    "compare_snapshots",
    "export_snapshot",
    "import_snapshot",
    "networks",
]
