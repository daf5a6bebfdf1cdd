"""What a running QEMU can be given and relieved of: shares, a virtio socket, memory, vCPUs, a larger disk.

Everything is found again by its name, so that whoever takes over a VM needs to know no more than the slot of
a share: all methods look at what is there first and may be called again after they were cut short.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path
from typing import Any

from atoll.errors import BootError
from atoll.hypervisor.port import Balloon, MemorySize
from atoll.hypervisor.qemu.argv import file_node, overlay_node
from atoll.hypervisor.qemu.qmp import Monitor
from atoll.hypervisor.qemu.vcpus import vcpus_of

__all__ = ["Plugging"]

_DEVICES = "/machine/peripheral"
_BALLOON = f"{_DEVICES}/balloon"
_MEMORY = f"{_DEVICES}/memory"

#: What QEMU calls the virtio socket device, of which there is one.
_VSOCK = "vsock"

#: Requests that the guest and virtiofsd may have in flight for each share.
_QUEUE = 1024

#: Seconds between two looks at what a guest is doing with a device; an event may tell sooner.
_LOOK = 0.02

#: Seconds after which a guest that has not let go of a device is asked again.
_AGAIN = 1.5

#: Seconds for the guest's balloon to tell of its memory: it is asked at once when that is switched on.
_STATISTICS = 1.0

#: Seconds between two of the guest's reports while they are on, which is for one only.
_POLLING = 5


class Plugging:
    """Changes to the QEMU behind ``monitor``. All methods raise ``BootError`` as ``Monitor.execute``."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    async def plug_share(self, slot: int, tag: str, sock: socket.socket) -> None:
        """Put a share into a slot; ``sock`` is connected to its daemon, and the caller's still."""
        wanted = {"driver": "vhost-user-fs-pci", "tag": tag, "queue-size": _QUEUE}
        await self._plug(_share(slot), slot, sock, wanted)

    async def unplug_share(self, slot: int) -> None:
        """Have the guest let go of the share in a slot, and close the connection to its daemon."""
        await self._unplug(_share(slot))

    async def plug_vsock(self, slot: int, sock: socket.socket) -> None:
        """Put a virtio socket device into a slot."""
        await self._plug(_VSOCK, slot, sock, {"driver": "vhost-user-vsock-pci"})

    async def unplug_vsock(self) -> None:
        """Have the guest let go of its virtio socket device."""
        await self._unplug(_VSOCK)

    async def _plug(self, name: str, slot: int, sock: socket.socket, device: dict[str, Any]) -> None:
        """Put a device into a slot whose back-end is behind ``sock`` (QEMU's interop/vhost-user.rst)."""
        await self._monitor.lend(name, sock.fileno())
        address = {"type": "fd", "data": {"str": name}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        await self._monitor.execute("chardev-add", {"id": name, "backend": backend})
        await self._monitor.execute(
            "device_add", {**device, "id": name, "chardev": name, "bus": f"slot{slot}"}
        )

    async def _unplug(self, name: str) -> None:
        asked = 0.0
        while name in await self._devices():
            if time.monotonic() - asked > _AGAIN:
                asked = time.monotonic()
                with contextlib.suppress(BootError):  # it is on its way out already, or just gone
                    await self._monitor.execute("device_del", {"id": name})
            await asyncio.sleep(_LOOK)
        while any(one["label"] == name for one in await self._monitor.execute("query-chardev")):
            try:
                await self._monitor.execute("chardev-remove", {"id": name})
            except BootError:  # the device is out of sight, but not all of it is gone yet
                await asyncio.sleep(_LOOK)
        with contextlib.suppress(BootError):  # it was lent, perhaps, and never used
            await self._monitor.execute("closefd", {"fdname": name})

    async def has_share(self, slot: int) -> bool:
        """Whether there is a share in a slot."""
        return _share(slot) in await self._devices()

    async def balloon(self) -> Balloon:
        """What the balloon leaves the guest, and what the guest says of its memory."""
        asked = int(time.time())
        await self._monitor.execute("qom-set", _polling(_POLLING))
        try:
            deadline = time.monotonic() + _STATISTICS
            while True:
                told = await self._monitor.execute("qom-get", {"path": _BALLOON, "property": "guest-stats"})
                if told["last-update"] >= asked or time.monotonic() > deadline:
                    break
                await asyncio.sleep(_LOOK)
        finally:
            await self._monitor.execute("qom-set", _polling(0))
        fresh = told["stats"] if told["last-update"] >= asked else {}
        free, available = (_told(fresh.get(f"stat-{kind}-memory")) for kind in ("free", "available"))
        return Balloon(await self.left_by_balloon(), free, available)

    async def left_by_balloon(self) -> int:
        """What the balloon leaves the guest; QEMU itself counts no memory that virtio-mem has plugged in."""
        size = await self.memory()
        return int((await self._monitor.execute("query-balloon"))["actual"]) + size.now - size.started

    async def inflate(self, target: int) -> None:
        """Have the balloon leave the guest ``target`` bytes; it takes its time, see ``left_by_balloon``."""
        size = await self.memory()
        await self._monitor.execute("balloon", {"value": target - (size.now - size.started)})

    async def grow_disk(self, serial: str, size: int) -> None:
        """Tell the guest that a disk has ``size`` bytes now."""
        await self._monitor.execute("block_resize", {"node-name": await self._top(serial), "size": size})

    async def disk_file(self, serial: str) -> Path:
        """The file that a disk's writes go to now."""
        files = await self._nodes()
        return Path(files[file_node(await self._top(serial))])

    async def branch_disk(self, serial: str, overlay: Path) -> None:
        """Have a disk's writes go to ``overlay`` from now on (QAPI ``blockdev-snapshot``)."""
        top, node = await self._top(serial), overlay_node(overlay)
        if top == node:
            return
        present = await self._nodes()
        if file_node(node) not in present:
            file = {"driver": "file", "node-name": file_node(node), "filename": str(overlay)}
            await self._monitor.execute("blockdev-add", {**file, "discard": "unmap"})
        if node not in present:
            layout = {"driver": "qcow2", "node-name": node, "file": file_node(node), "backing": None}
            trim = {"discard": "unmap", "detect-zeroes": "unmap"}
            await self._monitor.execute("blockdev-add", {**layout, **trim})
        await self._monitor.execute("blockdev-snapshot", {"node": top, "overlay": node})

    async def _top(self, serial: str) -> str:
        """The node that a disk's device writes to (QAPI ``BlockInfo``); its first one bears the serial."""
        for drive in await self._monitor.execute("query-block"):
            if "inserted" in drive and "qdev" in drive:
                asked = {"path": drive["qdev"], "property": "serial"}
                if await self._monitor.execute("qom-get", asked) == serial:
                    return str(drive["inserted"]["node-name"])
        raise BootError(f"there is no disk {serial}", stage="spawn")

    async def _nodes(self) -> dict[str, str]:
        """All nodes, each with its file."""
        listed = await self._monitor.execute("query-named-block-nodes", {"flat": True})
        return {node["node-name"]: node["file"] for node in listed}

    async def memory(self) -> MemorySize:
        """How much memory there is."""
        started = int((await self._monitor.execute("query-memory-size-summary"))["base-memory"])
        for device in await self._monitor.execute("query-memory-devices"):
            if device["type"] == "virtio-mem":
                found = device["data"]
                return MemorySize(started, started + found["size"], started + found["max-size"])
        return MemorySize(started, started, started)

    async def plug_memory(self, size: int) -> None:
        """Ask the guest to have ``size`` bytes of memory; it takes its time."""
        more = size - (await self.memory()).started
        request = {"path": _MEMORY, "property": "requested-size", "value": more}
        await self._monitor.execute("qom-set", request)

    async def plug_vcpus(self, count: int) -> int:
        """Plug vCPUs in until there are ``count`` or no more can be; how many there are."""
        every = await vcpus_of(self._monitor)
        present = sum("qom-path" in one for one in every)
        for one in reversed(every):  # QEMU lists the last one first
            if present < count and "qom-path" not in one:
                where = one["props"]
                name = f"cpu{where['socket-id']}-{where.get('core-id', 0)}-{where.get('thread-id', 0)}"
                await self._monitor.execute("device_add", {"driver": one["type"], "id": name, **where})
                present += 1
        return present

    async def _devices(self) -> set[str]:
        listed: list[dict[str, Any]] = await self._monitor.execute("qom-list", {"path": _DEVICES})
        return {one["name"] for one in listed}


def _share(slot: int) -> str:
    return f"share{slot}"


def _polling(seconds: int) -> dict[str, Any]:
    return {"path": _BALLOON, "property": "guest-stats-polling-interval", "value": seconds}


def _told(value: int | None) -> int:
    """A statistic; what the guest does not tell QEMU shows as 2**64 - 1 or as -1."""
    return value if value is not None and 0 <= value < 1 << 62 else -1
