"""Reaching a network: its process that is there, or a new one; and keeping a VM's card plugged into it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, ChannelError, NetworkError
from atoll.events import Emit, Warned
from atoll.guest import wire
from atoll.guest.channel import Stream
from atoll.guest.wire import FrameType, Hello
from atoll.hypervisor.port import connect
from atoll.paths import NetworkPaths
from atoll.vm.background import in_background
from atoll.vm.logs import tail
from atoll.vm.network.attachment import Attachment
from atoll.vm.network.requests import NetworkControl, Plug, Plugged

__all__ = ["Cable", "ensure", "reach", "spawn"]

#: Attempts to reach a network's process: one that is found may be about to leave.
_ATTEMPTS = 20

#: Seconds in which a process that runs answers.
_ANSWER = 15.0

#: Seconds between attempts to plug a card in again: at first, and at most.
_SOON, _LATE = 0.05, 5.0


def reach(place: NetworkPaths) -> socket.socket | None:
    """A connection to the network's process; None if there is none."""
    try:
        return connect(place.control)
    except OSError:
        return None


def spawn(place: NetworkPaths) -> socket.socket:
    """A connection to a new process, which lives on in the background, without a terminal.

    If another one is there already, or it cannot serve, the connection ends, and its log says why.

    Raises:
        StoreError: its log cannot be written.
        ProcessError: it could not be started.
    """
    with store.refusing(place.directory):
        place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    data, name = place.directory.parent.parent, place.directory.name
    program = (sys.executable, "-P", "-m", "atoll.vm.network.serving", str(data), name)
    try:
        return in_background(program, cwd=place.directory, output=log)
    finally:
        os.close(log)


def ensure(place: NetworkPaths) -> None:
    """See to it that the network's process runs and answers; for some seconds it stays for who comes next.

    Raises:
        NetworkError: ``network.gone``: it does not; the message has the reason.
        StoreError, ProcessError: as ``spawn``.
    """
    for attempt in range(_ATTEMPTS):
        found = reach(place)
        is_new = found is None
        with found or spawn(place) as sock:
            if _answers(sock):
                return
        if is_new and not store.is_held(place.lock):
            break
        time.sleep(0.01 * (attempt + 1))
    raise _gone(place)


def _answers(sock: socket.socket) -> bool:
    """Whether the other end greets (docs/reference/agent-protocol.md, section 3)."""
    sock.settimeout(_ANSWER)
    hello = Hello(wire.VERSION, wire.VERSION, os.urandom(16)).encode()
    try:
        sock.sendall(wire.encode(FrameType.HELLO, 0, hello))
        return bool(sock.recv(1))
    except OSError:
        return False


def _gone(place: NetworkPaths) -> NetworkError:
    said = tail(place.log, 4096).decode(errors="replace").strip().splitlines()
    reason = said[-1].partition(" ")[2] if said else "it says nothing"
    message = f"the network {place.directory.name} cannot be reached: {reason}"
    return NetworkError(message, code="gone", hint=f"see {place.log}")


class Cable:
    """Keeps the card of one VM plugged in, on the running event loop, also when the network is killed.

    Args:
        attachment: where.
        vm: its name, for messages.
        mac: the card's address.
        socket: at which its hypervisor listens.
        emit: told when the network was gone.
        moved: awaited when the VM has another address than it had before.
    """

    def __init__(
        self,
        attachment: Attachment,
        *,
        vm: str,
        mac: str,
        socket: Path,
        emit: Emit,
        moved: Callable[[Plugged], Awaitable[None]],
    ) -> None:
        self._place = NetworkPaths(attachment.network)
        self._vm = vm
        self._emit = emit
        self._moved = moved
        self._order = Plug(
            socket=str(socket),
            owner=attachment.owner or socket.name,
            mac=mac,
            hostname=attachment.hostname,
            keep=bool(attachment.owner),
            forwards=attachment.forwards,
            host_ports=attachment.host_ports,
        )
        self._plugged: asyncio.Future[Plugged] = asyncio.get_running_loop().create_future()
        self._plugged.add_done_callback(_seen)
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, fresh: bool) -> None:
        """Plug it in; ``fresh`` if the VM has just been started."""
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
            plugged, control, stream = await self._plug(order)
        except AtollError as error:
            if not order.fresh:
                self._warn(f"its network is gone: {error.message}", error.hint)
                plugged, control, stream = await self._plug_again(order)
            else:
                self._plugged.set_exception(error)
                return
        self._plugged.set_result(plugged)
        while True:
            self._warn_of(plugged)
            try:
                with contextlib.suppress(AtollError):
                    await stream.read()
            finally:
                control.close()
            former = plugged
            again = msgspec.structs.replace(order, fresh=False, strict=False, wanted=former.address)
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
                return await self._plug(order)
            except AtollError as error:
                pause = min(2 * pause, _LATE)
                if error.code not in {told, "network.card"}:  # a VM whose card is gone is about to end
                    self._warn(f"its network cannot be had: {error.message}", error.hint)
                    told = error.code

    async def _plug(self, order: Plug) -> tuple[Plugged, NetworkControl, Stream]:
        """Plug it in once. Raises ``NetworkError``, ``StoreError`` or ``ProcessError``."""
        for attempt in range(_ATTEMPTS):
            found = reach(self._place)
            is_new = found is None
            sock = found if found is not None else await asyncio.to_thread(spawn, self._place)
            control = NetworkControl(sock)
            try:
                async with asyncio.timeout(_ANSWER):
                    plugged, stream = await control.plug(order)
            except (ChannelError, TimeoutError):  # it was about to leave, or lost against another one
                control.close()
                if is_new and not store.is_held(self._place.lock):
                    break
                await asyncio.sleep(0.01 * (attempt + 1))
            except BaseException:
                control.close()
                raise
            else:
                return plugged, control, stream
        raise _gone(self._place)

    def _warn_of(self, plugged: Plugged) -> None:
        for refused in plugged.refused:
            self._warn(refused)

    def _warn(self, what: str, hint: str = "") -> None:
        self._emit(Warned(message=f"{self._vm}: {what}", hint=hint))


def _seen(plugged: asyncio.Future[Plugged]) -> None:
    """Whoever waits for it is told of its failure; perhaps nobody does."""
    if not plugged.cancelled():
        plugged.exception()
