"""The program that is one guest's device: ``python -m atoll.vsock.serving --device FD --cid N ...``.

It ends when the hypervisor closes its connection, and is killed when whoever started it ends. What it has to
say of a guest that breaks the rules goes to its standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from atoll.vsock.device import Device
from atoll.vsock.flows import MOST
from atoll.vsock.hello import LONGEST, MOST_PORT, parse_hello

__all__ = ["Reception", "dialler", "main"]

#: Descriptors that all connections at a time and all who wait take, with some to spare.
_FILES = MOST + 256

#: Lines that are told of a guest that breaks the rules.
_LINES = 100

#: Clients that have not said yet what they want, and seconds for that.
_WAITING = 64
_PATIENCE = 10.0

#: Clients that are accepted before others get a turn.
_AT_ONCE = 64

#: Seconds without accepting where this process has no descriptor left for another client.
_BREATH = 0.1


def dialler(ports: Mapping[int, str]) -> Callable[[int], socket.socket | None]:
    """Connects to what serves a port; gives None for one that is not open, or where nobody listens."""

    def dial(port: int) -> socket.socket | None:
        path = ports.get(port)
        if path is None:
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)  # at once, or not at all where its queue is full (unix(7))
        except OSError:
            sock.close()
            return None
        return sock

    return dial


class Reception:
    """Takes clients in and asks what they want, on the running event loop.

    Args:
        connect: called with each client's socket, which does not block, and the port that it wants.
    """

    def __init__(self, connect: Callable[[socket.socket, int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._connect = connect
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._said: dict[socket.socket, bytes] = {}

    def listen(self, listener: socket.socket) -> None:
        """Accept those who connect to a listening socket."""
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def take(self, door: socket.socket) -> None:
        """Take those in whose sockets come over ``door``, as long as that is open."""
        door.setblocking(False)
        self._loop.add_reader(door.fileno(), self._take, door)

    def admit(self, client: socket.socket) -> None:
        """Ask a client what it wants; it is hung up on if it does not say so, or others wait already."""
        client.setblocking(False)
        if len(self._waiting) >= _WAITING:
            client.close()
            return
        self._waiting[client] = self._loop.call_later(_PATIENCE, self._turn_away, client)
        self._loop.add_reader(client.fileno(), self._hear, client)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor or no memory is left: clients wait in the queue (accept(2))
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_BREATH, self.listen, listener)
                return
            self.admit(client)

    def _take(self, door: socket.socket) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(door, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        for fd in fds:
            self.admit(socket.socket(fileno=fd))
        if not data:
            self._loop.remove_reader(door.fileno())

    def _hear(self, client: socket.socket) -> None:
        """Read the line and nothing behind it, which is the guest's."""
        before = self._said.get(client, b"")
        try:
            data = client.recv(LONGEST, socket.MSG_PEEK)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "it has hung up")
            said = parse_hello(before + data)
            if said is None:
                self._said[client] = before + client.recv(len(data))
                return
            port, length = said
            client.recv(length - len(before))
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._turn_away(client)
            return
        self._leave(client)
        self._connect(client, port)

    def _turn_away(self, client: socket.socket) -> None:
        self._leave(client)
        client.close()

    def _leave(self, client: socket.socket) -> None:
        self._waiting.pop(client).cancel()
        self._said.pop(client, None)
        self._loop.remove_reader(client.fileno())


async def _serve(options: argparse.Namespace) -> None:
    ports = dict(options.port)
    hypervisor = socket.socket(fileno=options.device)
    device = Device(hypervisor, options.cid, dialler(ports), _Log().tell)
    reception = Reception(device.connect)
    if options.listener is not None:
        reception.listen(socket.socket(fileno=options.listener))
    if options.handed is not None:
        reception.take(socket.socket(fileno=options.handed))
    _say(options.ready, b"+")
    gone, used = asyncio.create_task(device.gone.wait()), asyncio.create_task(device.used.wait())
    await asyncio.wait({gone, used}, return_when=asyncio.FIRST_COMPLETED)
    if used.done():
        _say(options.ready, b"=")
    used.cancel()
    os.close(options.ready)
    await gone


def _say(fd: int, what: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, what)


class _Log:
    """Standard error, for so many lines: a guest can break its rings as often as it likes."""

    def __init__(self) -> None:
        self._left = _LINES

    def tell(self, what: str) -> None:
        """Write a line."""
        if self._left:
            self._left -= 1
            sys.stderr.write(f"{what}\n" if self._left else f"{what}; no more is told\n")
            sys.stderr.flush()


def _port(text: str) -> tuple[int, str]:
    number, _, path = text.partition(":")
    if not path or not 0 <= int(number) <= MOST_PORT:
        raise argparse.ArgumentTypeError(text)
    return int(number), path


def main(argv: Sequence[str] | None = None) -> int:
    """Be the device until the hypervisor closes its connection; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m atoll.vsock.serving", allow_abbrev=False)
    parser.add_argument("--device", type=int, required=True)
    parser.add_argument("--cid", type=int, required=True)
    parser.add_argument("--ready", type=int, required=True)
    parser.add_argument("--listener", type=int)
    parser.add_argument("--handed", type=int)
    parser.add_argument("--port", type=_port, action="append", default=[])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, _FILES), most))
    asyncio.run(_serve(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
