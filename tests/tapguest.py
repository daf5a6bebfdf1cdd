"""A network namespace in the place of a guest: its kernel's own stack behind a tap device.

``tapguest.py FD MTU MAC COMMANDS`` runs as root of new user and network namespaces. Frames pass between the
device and the socket at descriptor ``FD`` as they do at QEMU's: each after its length. It prints its process
id when it is ready, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_TUNSETIFF = 0x400454CA
_TAP = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
_LENGTH = struct.Struct(">I")


class TapGuest:
    """The namespace, from the outside.

    Attributes:
        sock: the other end of its card, for the network, which owns it; closed if it was given.
    """

    def __init__(
        self, commands: Sequence[str], *, mac: str, mtu: int, sock: socket.socket | None = None
    ) -> None:
        self.sock, theirs = socket.socketpair() if sock is None else (sock, sock)
        theirs.setblocking(True)
        words = (str(theirs.fileno()), str(mtu), mac, "\n".join(commands))
        self._process = subprocess.Popen(
            ["unshare", "--map-root-user", "--net", sys.executable, __file__, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs ``argv`` in it."""
        enter = ["nsenter", f"--user=/proc/{self.pid}/ns/user", f"--net=/proc/{self.pid}/ns/net"]
        return [*enter, "--preserve-credentials", *argv]

    def start(self, source: str, *words: object) -> subprocess.Popen[bytes]:
        """Run a program of Python's in it."""
        argv = self.command([sys.executable, "-c", source, *map(str, words)])
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@contextlib.contextmanager
def tap_guest(
    commands: Sequence[str], *, mac: str, mtu: int, sock: socket.socket | None = None
) -> Iterator[TapGuest]:
    guest = TapGuest(commands, mac=mac, mtu=mtu, sock=sock)
    try:
        yield guest
    finally:
        guest.close()


def main(fd: str, mtu: str, mac: str, commands: str) -> None:
    card = socket.socket(fileno=int(fd))
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _TAP))
    made = [
        "ip link set lo up",
        f"ip link set eth0 address {mac} mtu {mtu} txqueuelen 10000 up",
        *filter(None, commands.split("\n")),
    ]
    for command in made:
        subprocess.run(command, shell=True, check=True, executable="/bin/sh")
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    threading.Thread(target=_inward, args=(card, tap), daemon=True).start()
    threading.Thread(target=_outward, args=(tap, card), daemon=True).start()
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        selector.select()
    os._exit(0)


def _outward(tap: int, card: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            frame = os.read(tap, 1 << 17)
            card.sendall(_LENGTH.pack(len(frame)) + frame)


def _inward(card: socket.socket, tap: int) -> None:
    came = bytearray()
    while data := card.recv(1 << 20):
        came += data
        at = 0
        while len(came) - at >= 4:
            end = at + 4 + int.from_bytes(came[at : at + 4])
            if end > len(came):
                break
            with contextlib.suppress(OSError):
                os.write(tap, came[at + 4 : end])
            at = end
        del came[:at]


if __name__ == "__main__":
    assert Path("/dev/net/tun").exists()
    main(*sys.argv[1:])
