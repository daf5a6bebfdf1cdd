"""How the program is started that is a guest's device."""

from __future__ import annotations

import sys
from collections.abc import Mapping

__all__ = ["arguments"]


def arguments(
    *,
    device: int,
    cid: int,
    ready: int,
    ports: Mapping[int, str],
    listener: int = -1,
    handed: int = -1,
) -> tuple[str, ...]:
    """What the program is started with.

    Args:
        device: descriptor of the connection to the hypervisor.
        cid: of the guest.
        ready: of a pipe, to which ``+`` is written when the hypervisor can use the device, and ``=`` when the
            guest's driver does.
        ports: ports of the host that the guest may connect to, and the unix socket that serves each.
        listener: of a listening socket for clients; -1 for none.
        handed: of a socket over which clients' sockets come (``SCM_RIGHTS``, unix(7)); -1 for none.
    """
    return (
        *(sys.executable, "-P", "-m", "atoll.vsock.serving"),
        *("--device", f"{device}", "--cid", f"{cid}", "--ready", f"{ready}"),
        *(("--listener", f"{listener}") if listener >= 0 else ()),
        *(("--handed", f"{handed}") if handed >= 0 else ()),
        *(word for port, path in ports.items() for word in ("--port", f"{port}:{path}")),
    )
