"""What several kinds of VM do with a guest that has come up."""

from __future__ import annotations

import asyncio

from atoll.guest.agent import Agent
from atoll.hypervisor.port import Pluggable
from atoll.vm.bootplan import NetworkSetup

__all__ = ["join_network", "plug_memory"]

#: Seconds between two looks at how much memory the guest has taken.
_LOOK = 0.005


async def join_network(agent: Agent, network: NetworkSetup) -> None:
    """Give the guest's network card its addresses. Raises ``GuestError``."""
    await agent.configure_network(
        network.mac, network.address, gateway=network.gateway, resolvers=network.resolvers
    )


async def plug_memory(plugging: Pluggable, size: int) -> None:
    """Have the guest have ``size`` bytes of memory. The caller bounds the time."""
    await plugging.plug_memory(size)
    while (await plugging.memory()).now != size:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(_LOOK)
