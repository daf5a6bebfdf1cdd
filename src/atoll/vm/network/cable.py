"""Keeping a VM's card plugged into its network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, ChannelError, NetworkError
from atoll.events import Emit, Warned
from atoll.guest.channel import Stream
from atoll.guest.messages import Request
from atoll.hypervisor.model import Forward
from atoll.paths import NetworkPaths
from atoll.vm.bootplan import NetworkSetup
from atoll.vm.network.attachment import MTU, Attachment, PortState
from atoll.vm.network.managing import pull_elsewhere
from atoll.vm.network.policing import policy_of, set_policy
from atoll.vm.network.porting import PortList, PortsRead, PortsSet, Wanted
from atoll.vm.network.reaching import ANSWER, ATTEMPTS, gone, reach, spawn, stuck
from atoll.vm.network.requests import NetworkControl, Plug, Plugged

__all__ = ["Cable", "setup_of"]

#: Seconds between attempts to plug a card in again: at first, and at most.
_SOON, _LATE = 0.05, 5.0

#: Seconds in which a network that was killed is there again, for who wants to change ports.
_PATIENCE = 10.0


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

    Attributes:
        place: the network.
        owner: as whose it is plugged in.
        socket: as it was given.
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
        self.place = NetworkPaths(attachment.network)
        self.socket = socket
        self._vm = vm
        self._emit = emit
        self._free = free
        self._moved = moved
        self.owner = attachment.owner or socket.name
        self._current = current or (lambda: attachment)
        self._order = Plug(
            socket=str(socket),
            owner=self.owner,
            mac=mac,
            hostname=attachment.hostname,
            keep=bool(attachment.owner),
            forwards=attachment.forwards,
            host_ports=attachment.host_ports,
            proxy_ports=attachment.proxy_ports,
            egress=attachment.egress,
            reverse=attachment.reverse,
            aliases=attachment.aliases,
            trusted=attachment.trusted,
        )
        self._control: NetworkControl | None = None
        self._connected = asyncio.Event()
        self._held_to = attachment.egress
        self._plugged: asyncio.Future[Plugged] = asyncio.get_running_loop().create_future()
        self._plugged.add_done_callback(_seen)
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, fresh: bool, freed: bool = False) -> None:
        """Plug it in, unless that has begun.

        Args:
            fresh: the VM has just been started. Else its card may be plugged in already.
            freed: it was, and was pulled out and readied for this network.
        """
        if self._task is not None:
            return
        self._task = asyncio.create_task(self._keep(fresh=fresh, may_fail=fresh or freed))

    def succeed(self, former: Cable) -> None:
        """Have the ports that were found for the guest where its card was plugged in before."""
        self._order = msgspec.structs.replace(self._order, found=former._order.found)

    async def plugged(self) -> Plugged:
        """Wait until it is plugged in for the first time. Raises ``NetworkError`` if it cannot be."""
        return await asyncio.shield(self._plugged)

    async def follow(self, egress: tuple[str, ...]) -> None:
        """Hold the guest to another policy, from now on and each time that its card is plugged in.

        While it is not plugged in nothing passes, and it has the policy before anything does.

        Raises:
            UsageError: ``usage.rule``: it is none.
            NetworkError: ``network.stuck``: the network does not answer.
        """
        policy_of(egress)
        self._order = msgspec.structs.replace(self._order, egress=egress)
        if self._control is not None:
            try:
                async with asyncio.timeout(ANSWER):
                    await set_policy(self._control, self._order.owner, egress)
            except TimeoutError:
                raise stuck(self.place) from None
            except (ChannelError, NetworkError):  # it is about to be plugged in again
                return

    async def ports(self) -> tuple[PortState, ...]:
        """Which ports lead to it. Raises ``NetworkError``, ``ChannelError``: its network is not there."""
        return await self._ask(PortsRead(self._order.owner))

    async def set_ports(
        self,
        asked: Wanted | None = None,
        found: tuple[Forward, ...] | None = None,
        *,
        strict: bool = False,
        close: bool = False,
        keep: bool = True,
    ) -> tuple[PortState, ...]:
        """Have other ports lead to it, now and, with ``keep``, whenever it is plugged in again.

        The rest is as in ``PortsSet``. Raises as ``ports``; ``network.port``: one cannot be had.
        """
        if keep:
            self._order = msgspec.structs.replace(
                self._order,
                forwards=self._order.forwards if asked is None else asked.forwards,
                reverse=self._order.reverse if asked is None else asked.reverse,
                found=self._order.found if found is None else found,
            )
        change = PortsSet(self._order.owner, asked, found, strict=strict, close=close)
        states = await self._ask(change)
        if found is not None:  # where another port had to be chosen it is the same the next time
            had = tuple(
                msgspec.structs.replace(one.forward, host_port=one.port) for one in states if one.found
            )
            self._order = msgspec.structs.replace(self._order, found=had)
        return states

    async def _ask(self, request: Request) -> tuple[PortState, ...]:
        """Ask the network's process for what may be asked twice: it may be killed before it answers."""
        try:
            return await self._ask_once(request)
        except ChannelError:
            await asyncio.sleep(_SOON)
            return await self._ask_once(request)

    async def _ask_once(self, request: Request) -> tuple[PortState, ...]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._connected.wait()
        if self._control is None:
            message = f"{self._vm}: its card is not plugged in now"
            raise NetworkError(message, code="card", hint="try again when it is up")
        try:
            async with asyncio.timeout(ANSWER):
                return (await self._control.call(request, PortList)).ports
        except TimeoutError:
            raise stuck(self.place) from None

    async def close(self) -> None:
        """Plug it in no more; it is pulled when the VM ends. Closing twice is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if not self._plugged.done():
            self._plugged.cancel()

    async def _keep(self, *, fresh: bool, may_fail: bool) -> None:
        try:
            order = msgspec.structs.replace(self._order, fresh=fresh, strict=fresh, there=not may_fail)
            plugged, control, stream = await self._plug(order)
            self._plugged.set_result(plugged)
        except AtollError as error:
            if may_fail:
                self._plugged.set_exception(error)
                return
            # Its network was killed, too, or it was on its way between this one and another.
            await pull_elsewhere(self.place, self.socket)
            plugged, control, stream = await self._plug_again()
            self._plugged.set_result(plugged)
            with contextlib.suppress(AtollError):
                await self._moved(plugged)
        while True:
            self._warn_of(plugged)
            self._control = control
            self._connected.set()
            try:
                await self._correct(control)
                with contextlib.suppress(AtollError):
                    await stream.read()
            finally:
                self._control = None
                self._connected.clear()
                control.close()
            former = plugged
            plugged, control, stream = await self._plug_again(wanted=former.address)
            self._warn("its network was started anew; open connections were reset")
            if plugged.address != former.address:
                with contextlib.suppress(AtollError):
                    await self._moved(plugged)

    async def _correct(self, control: NetworkControl) -> None:
        """The policy may have changed while the card was being plugged in."""
        if self._order.egress != self._held_to:
            with contextlib.suppress(ChannelError, NetworkError):
                await set_policy(control, self._order.owner, self._order.egress)

    async def _plug_again(self, wanted: str = "") -> tuple[Plugged, NetworkControl, Stream]:
        """Plug it in as soon as that can be done, by the orders of then."""
        pause, told = _SOON, ""
        while True:
            await asyncio.sleep(pause)
            try:
                await self._free()
                aliases = self._current().aliases
                order = msgspec.structs.replace(
                    self._order, fresh=False, strict=False, wanted=wanted, aliases=aliases
                )
                return await self._plug(order)
            except AtollError as error:
                pause = min(2 * pause, _LATE)
                if error.code not in {told, "network.card"}:  # a VM whose card is gone is about to end
                    self._warn(f"its network cannot be had: {error.message}", error.hint)
                    told = error.code

    async def _plug(self, order: Plug) -> tuple[Plugged, NetworkControl, Stream]:
        """Plug it in once. Raises ``NetworkError``, ``StoreError`` or ``ProcessError``."""
        for attempt in range(ATTEMPTS):
            self._held_to = self._order.egress
            order = msgspec.structs.replace(order, egress=self._held_to)
            found = reach(self.place)
            is_new = found is None
            sock = found if found is not None else await asyncio.to_thread(spawn, self.place)
            control = NetworkControl(sock)
            try:
                async with asyncio.timeout(ANSWER):
                    plugged, stream = await control.plug(order)
            except TimeoutError:
                control.close()
                raise stuck(self.place) from None
            except ChannelError:  # it was about to leave, or lost against another one
                control.close()
                if is_new and not store.is_held(self.place.lock):
                    break
                await asyncio.sleep(0.01 * (attempt + 1))
            except BaseException:
                control.close()
                raise
            else:
                return plugged, control, stream
        raise gone(self.place)

    def _warn_of(self, plugged: Plugged) -> None:
        for refused in plugged.refused:
            self._warn(refused)

    def _warn(self, what: str, hint: str = "") -> None:
        self._emit(Warned(message=f"{self._vm}: {what}", hint=hint))


def setup_of(mac: str, plugged: Plugged, *, renew: bool = False) -> NetworkSetup:
    """What the guest whose card has that address is told of its network.

    With ``renew`` it was on another one, where its packets may have been shorter.
    """
    mtu = plugged.mtu if renew or plugged.mtu != MTU else 0
    return NetworkSetup(mac, plugged.address, plugged.gateway, (plugged.resolver,), mtu)


def _seen(plugged: asyncio.Future[Plugged]) -> None:
    """Whoever waits for it is told of its failure; perhaps nobody does."""
    if not plugged.cancelled():
        plugged.exception()
