"""Keeping a VM's card plugged into its network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, ChannelError
from atoll.events import Emit, Warned
from atoll.guest.channel import Stream
from atoll.paths import NetworkPaths
from atoll.vm.bootplan import NetworkSetup
from atoll.vm.network.attachment import Attachment
from atoll.vm.network.reaching import ANSWER, ATTEMPTS, gone, reach, spawn, stuck
from atoll.vm.network.requests import NetworkControl, Plug, Plugged

__all__ = ["Cable", "setup_of"]

#: Seconds between attempts to plug a card in again: at first, and at most.
_SOON, _LATE = 0.05, 5.0


class Cable:
    """Keeps the card of one VM plugged in, on the running event loop, also when the network is killed.

    Args:
        attachment: where.
        vm: its name, for messages.
        mac: the card's address.
        socket: at which its hypervisor listens.
        emit: told when the network was gone.
        free: readies the card for another network; awaited when the one before is gone.
        moved: awaited when the VM has another address than it had before.
        current: what belongs to the card by now, asked when it is plugged in again.
    """

    def __init__(
        self,
        attachment: Attachment,
        *,
        vm: str,
        mac: str,
        socket: Path,
        emit: Emit,
        free: Callable[[], Awaitable[None]],
        moved: Callable[[Plugged], Awaitable[None]],
        current: Callable[[], Attachment] | None = None,
    ) -> None:
        self._place = NetworkPaths(attachment.network)
        self._vm = vm
        self._emit = emit
        self._free = free
        self._moved = moved
        self._current = current or (lambda: attachment)
        self._order = Plug(
            socket=str(socket),
            owner=attachment.owner or socket.name,
            mac=mac,
            hostname=attachment.hostname,
            keep=bool(attachment.owner),
            forwards=attachment.forwards,
            host_ports=attachment.host_ports,
            aliases=attachment.aliases,
            trusted=attachment.trusted,
        )
        self._plugged: asyncio.Future[Plugged] = asyncio.get_running_loop().create_future()
        self._plugged.add_done_callback(_seen)
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, fresh: bool) -> None:
        """Plug it in, unless that has begun; ``fresh`` if the VM has just been started."""
        if self._task is not None:
            return
        order = msgspec.structs.replace(self._order, fresh=fresh, strict=fresh)
        self._task = asyncio.create_task(self._keep(order))

    async def plugged(self) -> Plugged:
        """Wait until it is plugged in for the first time. Raises ``NetworkError`` if it cannot be."""
        return await asyncio.shield(self._plugged)

    async def close(self) -> None:
        """Plug it in no more; it is pulled when the VM ends. Closing twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not self._plugged.done():
            self._plugged.cancel()

    async def _keep(self, order: Plug) -> None:
        try:
            plugged, control, stream = await self._plug(msgspec.structs.replace(order, there=not order.fresh))
        except AtollError as error:
            if order.fresh:
                self._plugged.set_exception(error)
                return
            plugged, control, stream = await self._plug_again(order)  # its network was killed, too
        self._plugged.set_result(plugged)
        while True:
            self._warn_of(plugged)
            try:
                with contextlib.suppress(AtollError):
                    await stream.read()
            finally:
                control.close()
            former = plugged
            again = msgspec.structs.replace(
                order,
                fresh=False,
                strict=False,
                wanted=former.address,
                aliases=self._current().aliases,
            )
            plugged, control, stream = await self._plug_again(again)
            self._warn("its network was started anew; open connections were reset")
            if plugged.address != former.address:
                with contextlib.suppress(AtollError):
                    await self._moved(plugged)

    async def _plug_again(self, order: Plug) -> tuple[Plugged, NetworkControl, Stream]:
        """Plug it in as soon as that can be done."""
        pause, told = _SOON, ""
        while True:
            await asyncio.sleep(pause)
            try:
                await self._free()
                return await self._plug(order)
            except AtollError as error:
                pause = min(2 * pause, _LATE)
                if error.code not in {told, "network.card"}:  # a VM whose card is gone is about to end
                    self._warn(f"its network cannot be had: {error.message}", error.hint)
                    told = error.code

    async def _plug(self, order: Plug) -> tuple[Plugged, NetworkControl, Stream]:
        """Plug it in once. Raises ``NetworkError``, ``StoreError`` or ``ProcessError``."""
        for attempt in range(ATTEMPTS):
            found = reach(self._place)
            is_new = found is None
            sock = found if found is not None else await asyncio.to_thread(spawn, self._place)
            control = NetworkControl(sock)
            try:
                async with asyncio.timeout(ANSWER):
                    plugged, stream = await control.plug(order)
            except TimeoutError:
                control.close()
                raise stuck(self._place) from None
            except ChannelError:  # it was about to leave, or lost against another one
                control.close()
                if is_new and not store.is_held(self._place.lock):
                    break
                await asyncio.sleep(0.01 * (attempt + 1))
            except BaseException:
                control.close()
                raise
            else:
                return plugged, control, stream
        raise gone(self._place)

    def _warn_of(self, plugged: Plugged) -> None:
        for refused in plugged.refused:
            self._warn(refused)

    def _warn(self, what: str, hint: str = "") -> None:
        self._emit(Warned(message=f"{self._vm}: {what}", hint=hint))


def setup_of(mac: str, plugged: Plugged) -> NetworkSetup:
    """What the guest whose card has that address is told of its network."""
    return NetworkSetup(mac, plugged.address, plugged.gateway, (plugged.resolver,))


def _seen(plugged: asyncio.Future[Plugged]) -> None:
    """Whoever waits for it is told of its failure; perhaps nobody does."""
    if not plugged.cancelled():
        plugged.exception()
