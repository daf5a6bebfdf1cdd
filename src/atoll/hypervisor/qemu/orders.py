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

__all__ = ["NETDEV", "Order", "going_on", "open_frozen", "orders"]

#: What QEMU calls the other end of a VM's network card.
NETDEV = "net0"

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


def going_on(
    state: int, *, ram_in_file: bool, devices: Iterable[dict[str, Any]] = (), card: bool = False
) -> tuple[Order, ...]:
    """What has QEMU go on from a state that it reads from a descriptor.

    Args:
        state: the descriptor's number.
        ram_in_file: the RAM is there already, in a file (QAPI ``MigrationCapability``, ``x-ignore-shared``).
        devices: plugged in before, each as ``device_add`` takes it.
        card: it has a network card that listens. Such a one is not told before it does listen, for which QEMU
            starts a thread, that nobody is connected: what the VM sends until then would crash QEMU
            (net/stream.c, 7.2). Whoever connects has it be told otherwise; the guest does not see that.
    """
    left_out = {"capability": "x-ignore-shared", "state": ram_in_file}
    return (
        *((("set_link", {"name": NETDEV, "up": False}),) if card else ()),
        *(("device_add", device) for device in devices),
        ("migrate-set-capabilities", {"capabilities": [left_out]}),
        ("migrate-incoming", {"uri": f"fd:{state}"}),
    )
