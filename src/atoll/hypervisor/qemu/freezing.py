"""Writing down the devices of a running QEMU (migration to a file, QEMU's docs/devel/migration.rst)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from atoll.errors import BootError
from atoll.hypervisor.qemu.qmp import Monitor

__all__ = ["freeze"]

#: Bytes a second: QEMU's own limit is meant for networks.
_BANDWIDTH = 1 << 40

#: Seconds for the devices' state, some hundred KiB.
_PATIENCE = 30.0

_NAME = "state"


async def freeze(monitor: Monitor, state: Path) -> None:
    """Have QEMU stop and write its devices' state to ``state``, a new file. RAM in a shared file is left out.

    Raises:
        BootError: stage ``freeze``.
    """
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_event(name: str, data: dict[str, Any]) -> None:
        if name == "MIGRATION" and data.get("status") in {"completed", "failed"} and not ended.done():
            ended.set_result(str(data["status"]))

    monitor.listen(on_event)
    try:
        fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootError(f"{state}: {error.strerror}", stage="freeze") from error
    try:
        capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
        await monitor.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
        await monitor.lend(_NAME, fd)
        await monitor.execute("migrate", {"uri": f"fd:{_NAME}"})
        async with asyncio.timeout(_PATIENCE):
            if await ended != "completed":
                answer = await monitor.execute("query-migrate")
                raise BootError(f"QEMU: {answer.get('error-desc', 'it failed')}", stage="freeze")
    except TimeoutError:
        raise BootError("QEMU does not come to an end", stage="freeze") from None
    finally:
        os.close(fd)
