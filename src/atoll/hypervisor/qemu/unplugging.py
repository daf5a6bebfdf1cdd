"""What QEMU needs before another network may connect to a VM's card.

Where the one before was killed while QEMU had sent it but a part of a frame, QEMU (net/stream.c, 7.2) keeps
the rest in its queue, which it looks at no more, and the guest can send nothing. It does look at it when the
vCPUs are stopped. A peer that reads nothing is connected meanwhile: so the frame is given up as a whole.
Without a peer QEMU would drop the frame but still know how much of it was sent, and leave that out of the
next.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.hypervisor.port import connect

if TYPE_CHECKING:
    from atoll.hypervisor.qemu.qmp import Monitor

__all__ = ["give_up_frames"]


async def give_up_frames(monitor: Monitor, card: Path) -> None:
    """Have QEMU forget what it could not send. The vCPUs stand still for an instant.

    Args:
        monitor: of QEMU, which does nothing else meanwhile that concerns the vCPUs.
        card: its socket, to which nobody is connected.

    Raises:
        BootError: QEMU does not answer.
    """
    with contextlib.suppress(OSError), connect(card) as sock:
        sock.shutdown(socket.SHUT_RD)
        await monitor.execute("query-status")  # once it is answered, the connection is accepted
        status = await monitor.execute("query-status")
        if status["running"]:
            await monitor.execute("stop")
            await monitor.execute("cont")
