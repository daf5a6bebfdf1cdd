"""What several kinds of VM do with a guest that has come up."""

from __future__ import annotations

import asyncio
import contextlib

from atoll.errors import GuestError
from atoll.guest.agent import Agent
from atoll.guest.files import as_root
from atoll.hypervisor.port import Pluggable
from atoll.vm.bootplan import NetworkSetup

__all__ = ["join_network", "plug_memory", "renew_ipv6"]

#: Bytes of a kernel's setting.
_SHORT = 4096

#: Seconds between two looks at how much memory the guest has taken.
_LOOK = 0.005


async def join_network(agent: Agent, network: NetworkSetup) -> str:
    """Give the guest's network card its addresses; what the guest calls it. Raises ``GuestError``."""
    interface = await agent.configure_network(
        network.mac, network.address, gateway=network.gateway or None, resolvers=network.resolvers
    )
    if network.mtu:
        await _set(agent, f"/sys/class/net/{interface}/mtu", f"{network.mtu}")
    return interface


async def renew_ipv6(agent: Agent, interface: str) -> None:
    """Have the guest make itself new addresses of IPv6, where its card's address has changed meanwhile.

    Those that it made of the former one are another guest's. One without IPv6 has none.
    """
    switch = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    with contextlib.suppress(GuestError):
        if (await as_root(agent).read(switch, limit=_SHORT)).strip() != b"1":
            await _set(agent, switch, "1")
            await _set(agent, switch, "0")


async def _set(agent: Agent, path: str, value: str) -> None:
    """Write to a file of the guest's kernel, if there is one."""
    with contextlib.suppress(GuestError):
        await as_root(agent).write(path, f"{value}\n", in_place=True)


async def plug_memory(plugging: Pluggable, size: int) -> None:
    """Have the guest have ``size`` bytes of memory. The caller bounds the time."""
    await plugging.plug_memory(size)
    while (await plugging.memory()).now != size:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(_LOOK)
