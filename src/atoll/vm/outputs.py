"""What a VM writes to its serial port, its console and its agent's log: read, logged, kept for a while."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from atoll.hypervisor.model import Port
from atoll.hypervisor.port import Resident
from atoll.paths import VmPaths
from atoll.vm.logs import RotatedLog, Tap

__all__ = ["Outputs"]

_PORTS = (Port.SERIAL, Port.CONSOLE, Port.AGENT_LOG)
_READ_SIZE = 65_536

#: Reads for one wake-up: a guest that writes without end shall not hold the event loop.
_READS = 4


class Outputs:
    """The outputs of the VM at ``place``."""

    def __init__(self, place: VmPaths) -> None:
        place.logs.mkdir(mode=0o700, exist_ok=True)
        self.taps = {port: Tap(RotatedLog(place.log(port))) for port in _PORTS}
        self._sockets: dict[Port, socket.socket] = {}

    def connect(self, vm: Resident) -> None:
        """Read along on the running event loop."""
        loop = asyncio.get_running_loop()
        for port in _PORTS:
            sock = vm.connect(port)
            if sock is not None:
                sock.setblocking(False)
                self._sockets[port] = sock
                loop.add_reader(sock.fileno(), self._read, port)

    def type(self, data: bytes) -> None:
        """Type ``data`` at the console; what the guest does not take at once is lost."""
        sock = self._sockets.get(Port.CONSOLE)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.send(data)

    def boot_text(self) -> str:
        """What this guest's kernel and agent wrote to the serial port."""
        self.drain()
        return self.taps[Port.SERIAL].text()

    def drain(self) -> None:
        """Read what is there."""
        for port in tuple(self._sockets):
            self._read(port)

    def forget(self) -> None:
        """A new guest begins: keep nothing of the one before in memory."""
        for tap in self.taps.values():
            tap.forget()

    def disconnect(self) -> None:
        """Read the rest and let go of the VM."""
        self.drain()
        for port in tuple(self._sockets):
            self._drop(port)

    def close(self) -> None:
        """``disconnect``, and close the logs."""
        self.disconnect()
        for tap in self.taps.values():
            tap.close()

    def _read(self, port: Port) -> None:
        for _ in range(_READS):
            sock = self._sockets.get(port)
            if sock is None:
                return
            try:
                data = sock.recv(_READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop(port)
                return
            self.taps[port].feed(data)

    def _drop(self, port: Port) -> None:
        sock = self._sockets.pop(port)
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.close()
