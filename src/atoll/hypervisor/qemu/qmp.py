"""QEMU's monitor, through the QEMU project's own client. Connected when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from atoll.errors import BootError
from atoll.hypervisor.port import Position

__all__ = ["Monitor", "position_of"]

#: Seconds for QEMU to answer one command; its main loop answers within milliseconds unless it is stuck.
_PATIENCE = 5.0

#: The kernel's half of the address space: bit 63 set on x86-64 and on arm64.
_KERNEL_HALF = 1 << 63


#: Bytes looked at to find the end of a line.
_LINE = 65_536

#: Seconds for the last events to be read when QEMU has ended: they are in the socket by then.
_DRAIN = 1.0


class _Refusal(msgspec.Struct):
    desc: str


class _Answer(msgspec.Struct):
    """What may come before and between the answers to orders; a greeting and events have neither field."""

    result: Any = msgspec.field(default=msgspec.UNSET, name="return")
    error: _Refusal | None = None


class Monitor:
    """The monitor of one QEMU.

    Args:
        sock: the socket whose other end QEMU was given; owned from here on.
        orders: commands that were written to it already, the first of them ``qmp_capabilities``.

    Attributes:
        shutdown_cause: the reason in QEMU's SHUTDOWN event (QAPI ``ShutdownCause``); empty before it.
        failed: no session came about; another connection may fare better.
    """

    def __init__(self, sock: socket.socket, *, orders: int = 0) -> None:
        self._socket = sock
        self._orders = orders
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._lending = asyncio.Lock()
        self._listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self.shutdown_cause = ""
        self.failed = False

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

    async def lend(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor under a name for commands to take it by. Raises as ``execute``."""
        async with self._lending:  # QEMU holds one descriptor until it is told the name: a second replaces it
            try:
                (await self._connected()).send_fd_scm(fd)
            except OSError as error:
                raise BootError(f"QEMU's monitor: {error.strerror}", stage="spawn") from error
            await self.execute("getfd", {"fdname": name})

    async def position(self) -> Position:
        """Where the first vCPU executes."""
        text = await self.execute("human-monitor-command", {"command-line": "info registers"})
        return position_of(str(text))

    def listen(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Have ``listener`` told of each event: its name and data."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """No longer tell ``listener``."""
        self._listeners.remove(listener)

    async def drained(self) -> None:
        """Wait until all is read that a QEMU wrote which has ended."""
        if self._client is None:
            return
        from qemu.qmp import Runstate  # noqa: PLC0415

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                while self._client.runstate is Runstate.RUNNING:
                    await self._client.runstate_changed()

    async def close(self) -> None:
        """Leave the monitor, whether QEMU is there or gone."""
        if self._client is not None:
            from qemu.qmp import QMPError  # noqa: PLC0415

            client, self._client = self._client, None
            with contextlib.suppress(EOFError, OSError, QMPError):  # a QEMU that is gone cannot be left
                await client.disconnect()
        self._socket.close()

    async def _connected(self) -> Any:
        async with self._connecting:
            if self.failed:
                raise OSError(errno.ENOTCONN, "it did not answer")
            if self._client is None:
                from qemu.qmp import EventListener, QMPClient  # noqa: PLC0415

                client = QMPClient("atoll")
                client.register_listener(EventListener(event_filter=self._on_event))
                try:
                    if self._orders:
                        client.await_greeting = client.negotiate = False
                        await self._skip_answers()
                    await client.connect(self._socket)
                except BaseException:
                    self.failed = True
                    self._socket.close()
                    raise
                self._client = client
        return self._client

    async def _skip_answers(self) -> None:
        """Read what QEMU said to the orders, and not a byte of what follows.

        Raises:
            OSError: QEMU is gone, refused one, or said what is no answer.
        """
        self._socket.setblocking(False)
        while self._orders:
            line = await self._line()
            try:
                answer = msgspec.json.decode(line, type=_Answer)
            except msgspec.DecodeError as error:
                raise OSError(errno.EPROTO, str(error)) from error
            if answer.error is not None:
                raise OSError(errno.EIO, answer.error.desc)
            self._orders -= answer.result is not msgspec.UNSET

    async def _line(self) -> bytes:
        loop = asyncio.get_running_loop()
        line = b""
        while not line.endswith(b"\n"):
            await _readable(loop, self._socket)
            seen = self._socket.recv(_LINE, socket.MSG_PEEK)
            if not seen:
                raise OSError(errno.ECONNRESET, "it has ended")
            line += self._socket.recv(seen.find(b"\n") + 1 or len(seen))
        return line

    def _on_event(self, event: Mapping[str, Any]) -> bool:
        """Called for each event; False, since nobody takes them from the listener's queue."""
        name, data = str(event["event"]), event.get("data") or {}
        if name == "SHUTDOWN":
            self.shutdown_cause = str(data.get("reason", "")) or "unknown"
        for listener in tuple(self._listeners):
            listener(name, data)
        return False


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def position_of(registers: str) -> Position:
    """Tell firmware from kernel by the program counter in the answer to ``info registers``."""
    found = re.search(r"\b(?:RIP|PC|EIP)=([0-9a-fA-F]+)", registers)
    if found is None:
        return Position.UNKNOWN
    return Position.KERNEL if int(found[1], 16) & _KERNEL_HALF else Position.FIRMWARE
