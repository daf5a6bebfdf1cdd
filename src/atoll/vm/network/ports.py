"""Who has a port of this host, as its kernel tells (proc(5), ``/proc/net/tcp``)."""

from __future__ import annotations

import contextlib
import os
from ipaddress import ip_address
from pathlib import Path

__all__ = ["holder"]

#: A socket that listens, and a UDP socket without a peer (include/net/tcp_states.h).
_LISTENS, _UNCONNECTED = "0A", "07"


def holder(address: str, port: int, protocol: str) -> str:
    """The process that has a port, such as ``nginx (process 12)``; empty if it is not told.

    Args:
        address: of this host, to which the port could not be bound.
        port: which.
        protocol: ``tcp`` or ``udp``.
    """
    state = _LISTENS if protocol == "tcp" else _UNCONNECTED
    found = ip_address(address)
    sockets = {
        inode
        for name in (protocol, f"{protocol}6")
        for inode in _sockets(Path("/proc/net") / name, port, state, found.packed)
    }
    return _owner(sockets) if sockets else ""


def _sockets(table: Path, port: int, state: str, address: bytes) -> set[str]:
    """Inodes of the sockets in ``table`` that stand in the way of ``address``."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return set()
    inodes = set()
    for line in lines:
        words = line.split()
        if len(words) < 10 or words[3] != state:
            continue
        own, _, number = words[1].partition(":")
        # Words of 32 bits in the host's order.
        bound = b"".join(bytes.fromhex(own[at : at + 8])[::-1] for at in range(0, len(own), 8))
        clashes = not any(bound) or not any(address) or bound == address
        if int(number, 16) == port and clashes:
            inodes.add(words[9])
    return inodes


def _owner(inodes: set[str]) -> str:
    """The process that has one of the sockets open, of those that this user may look into."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in wanted:
                        name = Path(f"/proc/{pid}/comm").read_text().strip()
                        return f"{name} (process {pid})"
    return ""
