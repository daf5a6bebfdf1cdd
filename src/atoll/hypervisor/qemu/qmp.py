"""QEMU's monitor, through the QEMU project's own client. Connected when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import Any

from atoll.errors import BootError
from atoll.hypervisor.port import Position

__all__ = ["Monitor", "position_of"]

#: Seconds for QEMU to answer one command; its main loop answers within milliseconds unless it is stuck.
_PATIENCE = 5.0

#: The kernel's half of the address space: bit 63 set on x86-64 and on arm64.
_KERNEL_HALF = 1 << 63


class Monitor:
    """The monitor of one QEMU.

    Args:
        sock: the socket whose other end QEMU was given; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._client: Any = None

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a QMP command and return its answer.

        Raises:
            BootError: stage ``spawn``: QEMU refused it or does not answer.
        """
        from qemu.qmp import QMPError  # noqa: PLC0415 - 60 ms, and rarely needed

        try:
            async with asyncio.timeout(_PATIENCE):
                client = await self._connected()
                return await client.execute(command, arguments)
        except (QMPError, OSError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise BootError(f"QEMU's monitor: {command}: {reason}", stage="spawn") from error

    async def position(self) -> Position:
        """Where the first vCPU executes."""
        text = await self.execute("human-monitor-command", {"command-line": "info registers"})
        return position_of(str(text))

    async def close(self) -> None:
        """Leave the monitor, whether QEMU is there or gone."""
        if self._client is not None:
            from qemu.qmp import QMPError  # noqa: PLC0415

            client, self._client = self._client, None
            with contextlib.suppress(EOFError, OSError, QMPError):  # a QEMU that is gone cannot be left
                await client.disconnect()
        self._socket.close()

    async def _connected(self) -> Any:
        if self._client is None:
            from qemu.qmp import QMPClient  # noqa: PLC0415

            client = QMPClient("atoll")
            await client.connect(self._socket)
            self._client = client
        return self._client


def position_of(registers: str) -> Position:
    """Tell firmware from kernel by the program counter in the answer to ``info registers``."""
    found = re.search(r"\b(?:RIP|PC|EIP)=([0-9a-fA-F]+)", registers)
    if found is None:
        return Position.UNKNOWN
    return Position.KERNEL if int(found[1], 16) & _KERNEL_HALF else Position.FIRMWARE
