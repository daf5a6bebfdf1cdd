"""What several kinds of VM do with a guest that has come up."""

from __future__ import annotations

import asyncio
import contextlib
import os

from atoll.errors import GuestError
from atoll.guest.agent import Agent
from atoll.guest.messages import ExecStart
from atoll.hypervisor.port import Pluggable
from atoll.vm.bootplan import NetworkSetup

__all__ = ["join_network", "plug_memory", "renew_ipv6"]

#: Seconds between two looks at how much memory the guest has taken.
_LOOK = 0.005


async def join_network(agent: Agent, network: NetworkSetup) -> str:
    """Give the guest's network card its addresses; what the guest calls it. Raises ``GuestError``."""
    interface = await agent.configure_network(
        network.mac, network.address, gateway=network.gateway or None, resolvers=network.resolvers
    )
    if network.mtu:
        await _run(agent, f"echo {network.mtu} > /sys/class/net/{interface}/mtu")
    return interface


async def renew_ipv6(agent: Agent, interface: str) -> None:
    """Have the guest make itself new addresses of IPv6, where its card's address has changed meanwhile.

    Those that it made of the former one are another guest's. One without a shell or without IPv6 has none.
    """
    switch = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    await _run(agent, f"[ $(cat {switch}) = 1 ] || {{ echo 1 > {switch}; echo 0 > {switch}; }}")


async def _run(agent: Agent, script: str) -> None:
    """Run a script in the guest; one without a shell goes without it."""
    execution = agent.start(
        ExecStart(id=f"network-{os.urandom(4).hex()}", argv=("/bin/sh", "-c", script), user="root")
    )
    try:
        with contextlib.suppress(GuestError):
            await execution.started()
            await execution.wait()
    finally:
        execution.release()


async def plug_memory(plugging: Pluggable, size: int) -> None:
    """Have the guest have ``size`` bytes of memory. The caller bounds the time."""
    await plugging.plug_memory(size)
    while (await plugging.memory()).now != size:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(_LOOK)
