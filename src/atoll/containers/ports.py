"""Ports of this host that lead to containers, kept as the engine says, by its own events.

Whoever asks the engine for its containers sees their mounts, too: what is not this host's is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable
from urllib.parse import quote

import msgspec

from atoll.containers import api
from atoll.containers.mounts import Unshared, unshared
from atoll.containers.publishing import Publication, decode, names, publications, services
from atoll.errors import AtollError, EngineError
from atoll.events import Emit, PortClosed, PortOpened, PortRefused, Warned, ignore
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.guest.datagrams import Forwarded, forward
from atoll.guest.exposure import Exposed, listen
from atoll.vm.network.naming import Service

__all__ = ["Port", "Ports", "Reached"]

#: Seconds until a port that was taken is tried again.
_AGAIN = 2.0

#: Seconds until an engine that runs, but could not be followed, is tried again.
_BREATH = 0.5

#: Seconds until that is tried again at most, after errors that nobody expected one after the other.
_LONGEST = 60.0

#: What changes ports, addresses or names.
_EVENTS = {
    "type": ["container", "network"],
    "event": ["start", "die", "rename", "connect", "disconnect"],
}
_PATH = f"/events?filters={quote(msgspec.json.encode(_EVENTS).decode())}"


@runtime_checkable
class Reached(Protocol):
    """What is needed of the engine."""

    async def connected(self) -> Stream:
        """A new connection to its socket. Raises ``AtollError``: it cannot be had now."""

    async def agent(self) -> Agent:
        """The agent of its guest. Raises ``AtollError`` likewise."""

    def active(self) -> bool:
        """Whether its machine runs."""

    def shared(self) -> tuple[str, ...]:
        """Paths in its machine that are directories of this host."""


class Port(msgspec.Struct, frozen=True):
    """A port that a container publishes; ``refused`` says why it is not this host's, empty if it is."""

    publication: Publication
    refused: str = ""


class Ports:
    """Follows the engine on the running event loop until it is closed.

    Args:
        engine: whose containers publish.
        name: of its machine, for events.
        lan: ports for which no address was named are for other hosts, too.
        emit: told of ports that come, go, or cannot be had.
        named: told of the names of containers whenever they may have changed.

    Attributes:
        names: of containers and services, and their addresses in the guest.
        unshared: what containers have from the machine where this host may have been meant.
        trouble: what keeps the engine from being followed that nobody expected; empty if nothing does.
    """

    def __init__(
        self,
        engine: Reached,
        name: str,
        *,
        lan: bool,
        emit: Emit = ignore,
        named: Callable[[tuple[Service, ...]], None] = lambda _: None,
    ) -> None:
        self._engine = engine
        self._name = name
        self._lan = lan
        self._emit = emit
        self._named = named
        self._open: dict[Publication, Exposed | Forwarded] = {}
        self._refused: dict[Publication, str] = {}
        self._changed = asyncio.Event()
        self._roused = asyncio.Event()
        self.names: Mapping[str, tuple[str, ...]] = {}
        self.unshared: tuple[Unshared, ...] = ()
        self.trouble = ""
        self._following = asyncio.create_task(self._run())

    def rouse(self) -> None:
        """The engine has been brought up."""
        self._roused.set()

    @property
    def listed(self) -> tuple[Port, ...]:
        """What is published now."""
        found = [*map(Port, self._open), *(Port(one, why) for one, why in self._refused.items())]
        return tuple(sorted(found, key=lambda port: port.publication))

    async def close(self) -> None:
        """Give all ports back. Closing twice is fine."""
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def _run(self) -> None:
        """Follow the engine; what nobody expected is told, and tried again after a while."""
        pause = _BREATH
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._follow_while_it_runs()
                except Exception as error:  # noqa: BLE001 - else no port would ever come or go again
                    pause = min(2 * pause, _LONGEST) if time.monotonic() - began < _LONGEST else _BREATH
                    self._fail(error)
                    await self._drop()
                    await asyncio.sleep(pause)
        finally:
            await self._drop()

    async def _follow_while_it_runs(self) -> None:
        self._roused.clear()
        while self._engine.active():
            with contextlib.suppress(AtollError):
                await self._follow()
            await self._drop()
            await asyncio.sleep(_BREATH)
        await self._roused.wait()

    def _fail(self, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        asyncio.get_running_loop().call_exception_handler(
            {"message": "the engine could not be followed", "exception": error}
        )
        if self.trouble != told:
            self.trouble = told
            message = f"ports and names of containers could not be followed: {told}"
            self._emit(Warned(message=message, hint="this is tried again; see `atoll docker status`"))

    async def _drop(self) -> None:
        """Nothing is known of an engine that is not followed."""
        self.names, self.unshared = {}, ()
        self._named(())
        while self._open or self._refused:
            try:
                await self._apply(())
            except Exception as error:  # noqa: BLE001 - it is forgotten already; the others go, too
                self._fail(error)

    async def _follow(self) -> None:
        """Do as the engine says until it says no more. Raises ``AtollError``: it cannot be reached."""
        stream = await self._engine.connected()
        listening = asyncio.create_task(self._listen(stream))
        try:
            while not listening.done():
                self._changed.clear()
                await self._refresh()
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait(
                    {listening, changed},
                    timeout=_AGAIN if self._refused else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                changed.cancel()
            await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            stream.cancel()

    async def _listen(self, stream: Stream) -> None:
        """Tell of events, none of which needs to be read: what is now is asked for anew."""
        await stream.write(api.request("GET", _PATH))
        while await stream.read():
            self._changed.set()
        raise EngineError("dockerd tells no more", code="answer")

    async def _refresh(self) -> None:
        containers = decode(await api.get(await self._engine.connected(), "/containers/json"))
        self.names = names(containers)
        self._named(services(containers, machine=self._name, lan=self._lan))
        self._tell(unshared(containers, self._engine.shared()))
        await self._apply(publications(containers, lan=self._lan))
        self.trouble = ""

    def _tell(self, found: tuple[Unshared, ...]) -> None:
        before, self.unshared = self.unshared, found
        for one in found:
            if one not in before:
                hint = "add it to docker_shares, then `atoll docker restart`; Docker made what was not there"
                self._emit(Warned(message=str(one), hint=hint))

    async def _apply(self, wanted: tuple[Publication, ...]) -> None:
        for one in set(self._open) - set(wanted):
            await self._open.pop(one).close()
            self._emit(PortClosed(vm=self._name, port=str(one), container=one.container))
        for one in set(self._refused) - set(wanted):
            del self._refused[one]
        if wanted:
            agent = await self._engine.agent()
            for one in wanted:
                if one not in self._open:
                    await self._try(agent, one)

    async def _try(self, agent: Agent, one: Publication) -> None:
        try:
            self._open[one] = await _opened(agent, one)
        except AtollError as error:
            if self._refused.get(one) != error.message:
                self._refused[one] = error.message
                refused = PortRefused(
                    vm=self._name, port=str(one), container=one.container, reason=error.message
                )
                self._emit(refused)
            return
        self._refused.pop(one, None)
        self._emit(PortOpened(vm=self._name, port=str(one), container=one.container))


async def _opened(agent: Agent, one: Publication) -> Exposed | Forwarded:
    if one.protocol == "udp":
        return await forward(agent, (one.address, one.private), host=one.host, port=one.port)
    return await listen(agent, one.private, inside=one.address, host=one.host, port=one.port)
