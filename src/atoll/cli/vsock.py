"""``atoll vsock``: stdin and stdout, connected to AF_VSOCK in a machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import threading

from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import UsageError

__all__ = ["configure", "relay", "run"]

#: Bytes that are passed on at once.
_PIECE = 1 << 18


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("port", metavar="PORT", help="where a program of the machine listens")


def run(arguments: argparse.Namespace) -> int:
    """Connect, and pass on what comes from either side until the machine's side has ended."""
    from atoll.machine import registry
    from atoll.machine.vsock import reach_vsock

    if not (arguments.port.isascii() and arguments.port.isdigit()):
        raise UsageError(f"{arguments.port!r} is no port", code="vsock", hint="write a number, such as 5000")
    machine = registry.find(load().config.paths, arguments.machine)
    with running(reach_vsock(machine, int(arguments.port))) as sock:
        sock.setblocking(True)
        relay(sock, 0, 1)
    return 0


def relay(sock: socket.socket, source: int, target: int) -> None:
    """Pass on what comes from ``source``, and to ``target`` what comes back, until no more comes back."""
    threading.Thread(target=_send, args=(sock, source), daemon=True).start()
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(_PIECE):
            while data:
                data = data[os.write(target, data) :]


def _send(sock: socket.socket, source: int) -> None:
    with contextlib.suppress(OSError):  # the other side has ended, which tells by its end
        while data := os.read(source, _PIECE):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
