"""Connections of the host to the virtio socket of a machine."""

from __future__ import annotations

import asyncio
import socket

from atoll.errors import ChannelError, UsageError
from atoll.machine.registry import Named
from atoll.machine.spec import cid_of
from atoll.vm.state import StateError
from atoll.vm.vsock import reach
from atoll.vsock.hello import MOST_PORT

__all__ = ["check_port", "reach_vsock"]

#: Seconds for a guest to answer.
_PATIENCE = 10.0


def check_port(port: int) -> int:
    """A port of AF_VSOCK (vsock(7)). Raises ``UsageError``: ``usage.vsock``."""
    if not 0 <= port <= MOST_PORT:
        raise UsageError(f"{port} is no port", code="vsock", hint=f"ports are 0 to {MOST_PORT}")
    return port


async def reach_vsock(machine: Named, port: int) -> socket.socket:
    """A connection to a port of a machine; the socket does not block. Raises as ``Machine.connect_vsock``."""
    check_port(port)
    wanted = machine.spec.vsock
    if wanted is None:
        name = machine.place.directory.name
        hint = "make it with --vsock"
        raise StateError(f"{name} has no virtio socket", code="vsock", hint=hint)
    if not wanted.kernel:
        return await reach(machine.place, port)
    return await _through_kernel(cid_of(machine.spec.id), port)


async def _through_kernel(cid: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(_PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, (cid, port))
    except (OSError, TimeoutError) as error:
        sock.close()
        message = f"nobody listens at port {port} of the guest"
        raise ChannelError(message, code="refused", hint="start what is to listen there first") from error
    except BaseException:
        sock.close()
        raise
    return sock
