"""Commands for a monitor that nobody has spoken to yet (QEMU's docs/interop/qmp-spec.txt).

Apart from the monitor itself, so that a clone can be told what to do before an event loop is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from atoll.errors import BootError

__all__ = ["Order", "going_on", "open_frozen", "orders"]

#: A command's name and its arguments.
Order: TypeAlias = tuple[str, dict[str, Any]]


def orders(*commands: Order) -> bytes:
    """``commands``, to be written at once and without waiting, behind the one that opens a session."""
    every: tuple[Order, ...] = (("qmp_capabilities", {}), *commands)
    return b"".join(
        msgspec.json.encode({"execute": name, "arguments": arguments}) + b"\n" for name, arguments in every
    )


def open_frozen(files: ExitStack, vm: str, path: Path) -> int:
    """A descriptor, closed with ``files``, of what ``vm`` goes on from. Raises ``BootError``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BootError(f"{vm}: {path}: {error.strerror}", stage="spawn") from error
    files.callback(os.close, fd)
    return fd


def going_on(state: int, *, ram_in_file: bool, devices: Iterable[dict[str, Any]] = ()) -> tuple[Order, ...]:
    """What has QEMU go on from a state that it reads from a descriptor.

    Args:
        state: the descriptor's number.
        ram_in_file: the RAM is there already, in a file (QAPI ``MigrationCapability``, ``x-ignore-shared``).
        devices: plugged in before, each as ``device_add`` takes it.
    """
    left_out = {"capability": "x-ignore-shared", "state": ram_in_file}
    return (
        *(("device_add", device) for device in devices),
        ("migrate-set-capabilities", {"capabilities": [left_out]}),
        ("migrate-incoming", {"uri": f"fd:{state}"}),
    )
