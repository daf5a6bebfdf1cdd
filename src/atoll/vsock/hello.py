r"""What a client of the host says first, and is told: Firecracker's convention for virtio sockets.

``CONNECT PORT\n`` asks for a connection to a port of the guest; ``OK PORT\n`` tells that it is there and
which port of the host it comes from. From then on the socket is the connection. Whoever is not served is
hung up on.
"""

from __future__ import annotations

import re

__all__ = ["LONGEST", "MOST_PORT", "build_hello", "is_accepted", "parse_hello"]

#: Most bytes of a line, with its end.
LONGEST = 32

#: The largest port; the one above it, ``VMADDR_PORT_ANY``, is none (vsock(7)).
MOST_PORT = 0xFFFFFFFE

_HELLO = re.compile(rb"CONNECT ([0-9]{1,10})\r?\n", re.IGNORECASE)
_ACCEPTED = re.compile(rb"OK [0-9]{1,10}\n")


def build_hello(port: int) -> bytes:
    """The line that asks for a connection to ``port``."""
    return b"CONNECT %d\n" % port


def parse_hello(data: bytes) -> tuple[int, int] | None:
    """The port that is asked for, and the length of the line; None if it is not whole yet.

    Raises:
        ValueError: it is no such line.
    """
    end = data.find(b"\n", 0, LONGEST) + 1
    if not end and len(data) < LONGEST:
        return None
    found = _HELLO.fullmatch(data[:end])
    if found is None or int(found[1]) > MOST_PORT:
        raise ValueError(f"no request for a connection: {data[:LONGEST]!r}")
    return int(found[1]), end


def is_accepted(line: bytes) -> bool:
    """Whether ``line`` tells that the connection is there."""
    return _ACCEPTED.fullmatch(line) is not None
