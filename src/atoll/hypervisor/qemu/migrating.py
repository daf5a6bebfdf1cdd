"""One migration of a QEMU to a file (QEMU's docs/devel/migration.rst)."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Self

from atoll.errors import BootError
from atoll.hypervisor.qemu.qmp import Monitor

__all__ = ["Watch", "begin", "set_capabilities", "wait_for_former", "why", "write"]

#: Bytes a second: QEMU's own limit is meant for networks.
_BANDWIDTH = 1 << 40

#: Seconds for all of it while the guest stands still, and for one that somebody else began.
_PATIENCE = 60.0

#: Seconds between two looks at whether QEMU still answers while nothing is heard of it.
_LOOK = 1.0

_NAME = "state"

#: QAPI ``MigrationStatus``: what is not over yet.
_UNDER_WAY = {"setup", "active", "device", "cancelling"}


class Watch:
    """Follows one migration by QEMU's events. A context.

    Args:
        monitor: of the QEMU.

    Attributes:
        stopped: when QEMU stopped the guest, by the monotonic clock; None if it did not.
        resumed: when the guest went on, likewise.
        outcome: ``completed``, or how it failed; empty if it is not over.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._heard = asyncio.Event()
        self.stopped: float | None = None
        self.resumed: float | None = None
        self.outcome = ""

    def __enter__(self) -> Self:
        self._monitor.listen(self._on_event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.unlisten(self._on_event)

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "STOP" and self.stopped is None:
            self.stopped = time.monotonic()
        if name == "RESUME" and self.resumed is None:
            self.resumed = time.monotonic()
        if name == "MIGRATION" and data.get("status") in {"completed", "failed", "cancelling", "cancelled"}:
            self.outcome = self.outcome or str(data["status"])
        self._heard.set()

    async def end(self) -> None:
        """Wait for its outcome, however long QEMU takes. Raises ``BootError``: QEMU does not answer."""
        while not self.outcome:
            await self._hear()

    async def resume_or_fail(self) -> None:
        """Wait until the guest goes on or it has failed. Raises as ``end``.

        It may be complete before the guest goes on: QEMU says so in one thread, and has the guest go on in
        another.
        """
        while self.outcome in {"", "completed"} and self.resumed is None:
            await self._hear()

    async def _hear(self) -> None:
        self._heard.clear()
        try:
            async with asyncio.timeout(_LOOK):
                await self._heard.wait()
        except TimeoutError:
            await self._monitor.execute("query-status")


async def set_capabilities(
    monitor: Monitor, *, leave_out_shared: bool = False, background: bool = False
) -> None:
    """Say how the next migration is done: what was said for another one would hold on.

    Args:
        monitor: of the QEMU.
        leave_out_shared: without RAM that is in a shared file.
        background: of a guest that runs on, by write protection of its RAM.

    Raises:
        BootError: it cannot be done so.
    """
    wanted = {"events": True, "x-ignore-shared": leave_out_shared, "background-snapshot": background}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def begin(monitor: Monitor, fd: int) -> None:
    """Have QEMU begin to write to a file. Raises ``BootError``."""
    await monitor.lend(_NAME, fd)
    await monitor.execute("migrate", {"uri": f"fd:{_NAME}"})


async def write(monitor: Monitor, fd: int, stage: str, *, leave_out_shared: bool) -> None:
    """Write a guest that stands still to a file.

    Raises:
        BootError: stage ``stage``: it failed; stage ``spawn``: QEMU does not answer.
    """
    with Watch(monitor) as watch:
        try:
            await set_capabilities(monitor, leave_out_shared=leave_out_shared)
            await monitor.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
            await begin(monitor, fd)
            async with asyncio.timeout(_PATIENCE):
                await watch.end()
        except TimeoutError:
            raise BootError("QEMU does not come to an end", stage=stage) from None
        if watch.outcome != "completed":
            raise BootError(f"QEMU: {await why(monitor)}", stage=stage)


async def why(monitor: Monitor) -> str:
    """What QEMU says of a migration that failed. Raises ``BootError``."""
    answer = await monitor.execute("query-migrate")
    return str(answer.get("error-desc", "it failed"))


async def wait_for_former(monitor: Monitor) -> None:
    """Wait for the end of a migration that a process which is gone had begun. Raises ``BootError``."""
    deadline = time.monotonic() + _PATIENCE
    while (await monitor.execute("query-migrate")).get("status") in _UNDER_WAY:
        if time.monotonic() > deadline:
            raise BootError("QEMU still writes the guest down", stage="capture", hint="try it again later")
        await asyncio.sleep(0.05)
