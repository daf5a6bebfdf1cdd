"""The SDK for programs on an event loop.

::

async with atoll.aio.Sandbox("debian") as box:
    result = await box.run(["uname", "-a"])
"""

from __future__ import annotations

from atoll.comparing import compare_snapshots
from atoll.guest.exposure import Exposed
from atoll.guest.handle import Detached, Process, Reader
from atoll.guest.messages import ExecutionState, Exit, TerminalSize
from atoll.guest.result import CommandFailedError, Result
from atoll.machine.machine import Machine
from atoll.networking import Network, networks
from atoll.sandbox.pool import Pool
from atoll.sandbox.sandbox import Sandbox
from atoll.snapshot.differences import Change, Difference, FileState
from atoll.transfer import Exported, export_snapshot, import_snapshot
from atoll.vm.network.catalog import NetworkInfo
from atoll.vm.network.saving import Capture

__all__ = [
    "Capture",
    "Change",
    "CommandFailedError",
    "Detached",
    "Difference",
    "ExecutionState",
    "Exit",
    "Exported",
    "Exposed",
    "FileState",
    "Machine",
    "Network",
    "NetworkInfo",
    "Pool",
    "Process",
    "Reader",
    "Result",
    "Sandbox",
    "TerminalSize",
    "compare_snapshots",
    "export_snapshot",
    "import_snapshot",
    "networks",
]
