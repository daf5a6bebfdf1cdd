"""Networks, as programs use them."""

from __future__ import annotations

import asyncio
from typing import Self

from atoll.config import Config, load
from atoll.machine.machine import Machine
from atoll.machine.networks import users_of
from atoll.vm.network import catalog
from atoll.vm.network.attachment import MTU
from atoll.vm.network.catalog import NetworkInfo, Wish

__all__ = ["Network", "networks"]


class Network:
    """A network of this user, by its name. Nothing is done before a method is called.

    Machines and sandboxes on it see one another by address and by name, unless it is isolated.

    Args:
        name: of the network.
        config: resolved settings; by default those of this user.

    Attributes:
        name: as it was given.
    """

    def __init__(self, name: str, *, config: Config | None = None) -> None:
        self.name = name
        self._config = config or load().config

    @classmethod
    async def create(
        cls,
        name: str,
        *,
        subnet: str = "",
        subnet6: str = "",
        isolated: bool = False,
        internal: bool = False,
        mtu: int = MTU,
        config: Config | None = None,
    ) -> Self:
        """Make a network.

        Args:
            name: of the network: lower-case letters, digits and dashes.
            subnet: its addresses, such as ``"10.20.0.0/24"``; by default the first that are free.
            subnet6: its prefix of IPv6, 64 bits; by default a random one.
            isolated: its guests do not see one another.
            internal: it leads nowhere but to the ports of this host that were opened.
            mtu: bytes of the largest packet.
            config: resolved settings; by default those of this user.

        Raises:
            UsageError: a value is wrong.
            NetworkError: ``network.subnet``: these addresses are in use.
            StoreError: ``store.already_exists``.
        """
        network = cls(name, config=config)
        wish = Wish(subnet=subnet, subnet_6=subnet6, isolated=isolated, internal=internal, mtu=mtu)
        await asyncio.to_thread(catalog.create, network._config.paths, name, wish)
        return network

    async def info(self) -> NetworkInfo:
        """What it is now, with its cards. Raises ``NetworkError``: ``network.unknown``."""
        return await asyncio.to_thread(catalog.find, self._config.paths, self.name)

    async def connect(self, machine: str) -> str:
        """Have a machine be on it, and on its former network no more; ``"now"`` or ``"at the next start"``.

        Raises as ``Machine.join_network``.
        """
        async with Machine(machine, config=self._config) as moved:
            return await moved.join_network(self.name)

    async def remove(self) -> None:
        """Remove it, with its process.

        Raises:
            UsageError: ``usage.network``: it is none that can be removed.
            NetworkError: ``network.unknown``; ``network.in_use``; ``network.stuck``.
        """
        paths = self._config.paths
        await asyncio.to_thread(catalog.remove, paths, self.name, lambda: users_of(paths, self.name))


async def networks(*, config: Config | None = None) -> tuple[NetworkInfo, ...]:
    """All networks, as they are now: those that are made at their first use, and then the others by name."""
    return await asyncio.to_thread(catalog.listed, (config or load().config).paths)
