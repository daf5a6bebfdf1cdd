"""The vCPUs that a QEMU has, and those that can be plugged in."""

from __future__ import annotations

from typing import Any

from atoll.hypervisor.qemu.qmp import Monitor

__all__ = ["vcpus_of"]

#: Architectures of whose boards QEMU tells what can be plugged in; others refuse to be asked.
_PLUGGABLE = {"x86_64"}


async def vcpus_of(monitor: Monitor) -> list[dict[str, Any]]:
    """All vCPUs, the last one first; those that are there have a ``qom-path``. Raises ``BootError``."""
    target = await monitor.execute("query-target")
    if target["arch"] in _PLUGGABLE:
        found: list[dict[str, Any]] = await monitor.execute("query-hotpluggable-cpus")
        return found
    present: list[dict[str, Any]] = await monitor.execute("query-cpus-fast")
    return present[::-1]
