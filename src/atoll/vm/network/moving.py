"""Moving a VM that runs from one network to another: its card is pulled out here and plugged in there.

It is on the one or on the other at any time. What counts, whoever is killed, is the plan of the VM, which
names the network that it goes back to: the new one from when its guest has been told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from atoll.errors import NetworkError
from atoll.guest.agent import Agent
from atoll.vm.network.cable import Cable, setup_of
from atoll.vm.network.managing import pull
from atoll.vm.network.requests import Plugged
from atoll.vm.steps import join_network, renew_ipv6

__all__ = ["move", "tell"]

#: Seconds in which a guest takes another address.
_PATIENCE = 30.0


async def move(
    former: Cable, cable: Cable, agent: Agent, mac: str, free: Callable[[], Awaitable[None]]
) -> None:
    """Move a card. Where this fails, the VM may be on neither network, or its guest not know where it is.

    Args:
        former: of the network where it is; closed.
        cable: of the network where it shall be; not begun.
        agent: in its guest.
        mac: the card's address.
        free: readies it for another network.

    Raises:
        NetworkError: one of them does not answer, or has no address left; ``network.guest``: the guest
            does not take its new address.
        GuestError: likewise.
    """
    await pull(former.place, former.socket)
    await free()
    cable.begin(fresh=False, freed=True)
    plugged = await cable.plugged()
    try:
        async with asyncio.timeout(_PATIENCE):
            await tell(agent, mac, plugged)
    except TimeoutError:
        message = "the guest does not take its new address"
        raise NetworkError(message, code="guest", hint="see what its processes do, or restart it") from None


async def tell(agent: Agent, mac: str, plugged: Plugged) -> None:
    """Tell a guest that runs of the network that its card is plugged into now. Raises ``GuestError``."""
    interface = await join_network(agent, setup_of(mac, plugged, renew=True))
    await renew_ipv6(agent, interface)
