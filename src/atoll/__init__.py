"""Atoll: real Linux virtual machines from one small tool.

::

    import atoll

    with atoll.Sandbox("debian") as box:
        print(box.run(["uname", "-a"]).stdout)

``atoll.aio`` has the same for programs on an event loop. Names are loaded when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module typing would be half of what `atoll ls` loads
if TYPE_CHECKING:
    from typing import Any

    from atoll import aio
    from atoll.blocking import (
        Capture,
        Exposed,
        Machine,
        Network,
        Pool,
        Process,
        Reader,
        Sandbox,
        compare_snapshots,
        export_snapshot,
        import_snapshot,
        networks,
    )
    from atoll.errors import (
        AtollError,
        BootError,
        ChannelError,
        CommandError,
        CommandTimeoutError,
        ConfigError,
        FileError,
        FileMissingError,
        GuestError,
        ImageError,
        PreflightError,
        RegistryError,
        StoreError,
        UsageError,
    )
    from atoll.guest.file_messages import FileChange, FileInfo
    from atoll.guest.handle import Detached
    from atoll.guest.messages import ExecutionState, Exit, TerminalSize
    from atoll.guest.result import CommandFailedError, Result
    from atoll.sandbox.limits import CODE_EXECUTION
    from atoll.snapshot.differences import Change, Difference, FileState
    from atoll.transfer import Exported
    from atoll.vm.network.catalog import NetworkInfo
    from atoll.vm.state import StateError

__all__ = [
    "CODE_EXECUTION",
    "AtollError",
    "BootError",
    "Capture",
    "Change",
    "ChannelError",
    "CommandError",
    "CommandFailedError",
    "CommandTimeoutError",
    "ConfigError",
    "Detached",
    "Difference",
    "ExecutionState",
    "Exit",
    "Exported",
    "Exposed",
    "FileChange",
    "FileError",
    "FileInfo",
    "FileMissingError",
    "FileState",
    "GuestError",
    "ImageError",
    "Machine",
    "Network",
    "NetworkInfo",
    "Pool",
    "PreflightError",
    "Process",
    "Reader",
    "RegistryError",
    "Result",
    "Sandbox",
    "StateError",
    "StoreError",
    "TerminalSize",
    "UsageError",
    "aio",
    "compare_snapshots",
    "export_snapshot",
    "import_snapshot",
    "networks",
]

_ELSEWHERE = {
    "CODE_EXECUTION": "atoll.sandbox.limits",
    "Capture": "atoll.blocking",
    "Change": "atoll.snapshot.differences",
    "CommandFailedError": "atoll.guest.result",
    "FileChange": "atoll.guest.file_messages",
    "FileInfo": "atoll.guest.file_messages",
    "Pool": "atoll.blocking",
    "Detached": "atoll.guest.handle",
    "ExecutionState": "atoll.guest.messages",
    "Exit": "atoll.guest.messages",
    "Exported": "atoll.transfer",
    "Difference": "atoll.snapshot.differences",
    "Exposed": "atoll.blocking",
    "FileState": "atoll.snapshot.differences",
    "Machine": "atoll.blocking",
    "Network": "atoll.blocking",
    "NetworkInfo": "atoll.vm.network.catalog",
    "networks": "atoll.blocking",
    "Process": "atoll.blocking",
    "Reader": "atoll.blocking",
    "Result": "atoll.guest.result",
    "Sandbox": "atoll.blocking",
    "StateError": "atoll.vm.state",
    "TerminalSize": "atoll.guest.messages",
    "export_snapshot": "atoll.blocking",
    "import_snapshot": "atoll.blocking",
    "compare_snapshots": "atoll.blocking",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - likewise

    if name == "aio":
        return importlib.import_module("atoll.aio")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "atoll.errors")), name)


def __dir__() -> list[str]:
    return __all__
