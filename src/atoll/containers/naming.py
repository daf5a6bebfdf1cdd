"""Names of containers on the network of machines, for as long as the engine has them."""

from __future__ import annotations

import asyncio

from atoll.containers.hosting import NAME
from atoll.errors import AtollError
from atoll.guest.channel import Stream
from atoll.machine import registry
from atoll.paths import Paths
from atoll.vm.network.naming import Service, provide
from atoll.vm.network.reaching import reach
from atoll.vm.network.requests import NetworkControl

__all__ = ["Naming"]

#: Seconds until a network that was killed, or that the engine is not on, is tried again.
_AGAIN = 2.0


class Naming:
    """Tells the network of the engine's machine what its containers are called, on the running event loop.

    Args:
        paths: where machines and networks are.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._wanted: tuple[Service, ...] = ()
        self._changed = asyncio.Event()
        self._telling = asyncio.create_task(self._run())

    def tell(self, services: tuple[Service, ...]) -> None:
        """These are the names from now on."""
        if services != self._wanted:
            self._wanted = services
            self._changed.set()

    async def close(self) -> None:
        """Take all names back. Closing twice is fine."""
        self._telling.cancel()
        await asyncio.gather(self._telling, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                if self._wanted:
                    await self._provide(self._wanted)
            except AtollError:
                await self._until_changed(_AGAIN)
            else:
                await self._until_changed(None if not self._wanted else 0)

    async def _until_changed(self, limit: float | None) -> None:
        try:
            async with asyncio.timeout(limit):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _provide(self, services: tuple[Service, ...]) -> None:
        """Have the names stand until others are wanted. Raises ``AtollError``: they cannot."""
        spec = await asyncio.to_thread(lambda: registry.find(self._paths, NAME).spec)
        sock = await asyncio.to_thread(reach, self._paths.network(spec.on)) if spec.on else None
        if sock is None:
            await self._until_changed(_AGAIN)
            return
        control = NetworkControl(sock)
        try:
            stream = await provide(control, spec.id, services)
            await self._hold(stream)
        finally:
            control.close()

    async def _hold(self, stream: Stream) -> None:
        ended = asyncio.ensure_future(stream.read())
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({ended, changed}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await self._until_changed(_AGAIN)  # its card was pulled, or the network was killed
        finally:
            for task in (ended, changed):
                task.cancel()
            await asyncio.gather(ended, changed, return_exceptions=True)
            stream.cancel()
