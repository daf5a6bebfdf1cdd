"""Ports of this host that follow what programs of a guest listen on.

The agent tells of them as they come and go. Where all may reach a port it is the network's process that leads
to it; what listens on an address of the guest's own alone, as 127.0.0.1, is reached by its agent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from ipaddress import ip_address

from atoll.errors import AtollError, GuestError, UsageError
from atoll.events import AutoPortClosed, AutoPortOpened, Emit, Warned
from atoll.guest import exposure
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.guest.exposure import Exposed
from atoll.guest.file_messages import Records
from atoll.guest.messages import Empty, Listening
from atoll.hypervisor.model import Forward
from atoll.vm.bootplan import AutoPorts
from atoll.vm.network.attachment import PortState
from atoll.vm.network.cable import Cable

__all__ = ["Following"]

_HOST = "127.0.0.1"

#: Ports that follow a guest at most: it could listen on each there is.
_MOST = 256

#: Bytes of an address.
_SIZES = {4, 16}

#: Seconds for what comes at once to be done at once.
_SETTLE = 0.05

#: Seconds until a guest that could not be asked is asked again.
_BREATH = 0.5


class Following:
    """Has this host have the ports that programs of one guest listen on, on the running event loop.

    Args:
        name: of the VM.
        agent: of its guest; None while it cannot be asked.
        cable: keeps its card plugged in; None if it has none.
        emit: told of ports that come and go.
    """

    def __init__(
        self, name: str, agent: Callable[[], Agent | None], cable: Callable[[], Cable | None], emit: Emit
    ) -> None:
        self._name = name
        self._agent = agent
        self._cable = cable
        self._emit = emit
        self._rule: AutoPorts | None = None
        self._taken: AbstractSet[int] = frozenset()
        self._listening: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        self._carried: dict[int, tuple[bytes, Exposed]] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._warned = False

    @property
    def carried(self) -> tuple[PortState, ...]:
        """Those that lead to the guest by its agent."""
        return tuple(
            PortState(Forward(one.port, port), one.port, found=True)
            for port, (_, one) in sorted(self._carried.items())
        )

    async def follow(self, rule: AutoPorts | None, taken: AbstractSet[int]) -> None:
        """Follow the guest as a rule says, from now on; without one, no more.

        Args:
            rule: which ports.
            taken: of the guest, to which others lead already.
        """
        if rule is None:
            await self.close()
            return
        if (rule, taken) != (self._rule, self._taken):
            self._rule, self._taken = rule, taken
            self._changed.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Follow it no more. Closing twice is fine."""
        task, self._task, self._rule = self._task, None, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._listening = {}
        with contextlib.suppress(AtollError):
            await self._apply(None)

    async def _run(self) -> None:
        while True:
            agent = self._agent()
            try:
                if agent is not None:
                    await self._follow(agent)
            except GuestError as error:
                if error.reason == "unknown_method":
                    hint = "it tells when it is booted the next time"
                    message = f"{self._name}: what runs in it since before does not tell of its ports"
                    self._emit(Warned(message=message, hint=hint))
                    return
            except AtollError:  # it is about to end, or its link was brought in step again
                pass
            await asyncio.sleep(_BREATH)

    async def _follow(self, agent: Agent) -> None:
        """Do as the guest tells until it tells no more. Raises ``AtollError``."""
        self._listening = {}
        stream = agent.listening()
        reading = asyncio.create_task(self._read(stream))
        try:
            await stream.reply(Empty)  # what there is already comes right behind it
            while not reading.done():
                await asyncio.sleep(_SETTLE)
                self._changed.clear()
                await self._apply(agent)
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            stream.cancel()

    async def _read(self, stream: Stream) -> None:
        records = Records(Listening)
        while data := await stream.read():
            records.feed(data)
            for one in records:
                if len(one.address) in _SIZES:
                    self._listening[one.port] = one.address
                else:
                    self._listening.pop(one.port, None)
            self._changed.set()

    async def _apply(self, agent: Agent | None) -> None:
        """Have the ports that the guest has."""
        wanted = self._wanted()
        direct = await self._direct(wanted)
        await self._carry(agent, {port: at for port, at in wanted.items() if port not in direct})
        opened = await self._led_to(direct)
        opened |= {port: one.port for port, (_, one) in self._carried.items()}
        former, self._open = self._open, opened
        for port, host in sorted(former.items()):
            if opened.get(port) != host:
                self._emit(AutoPortClosed(vm=self._name, port=port, host=f"{_HOST}:{host}"))
        for port, host in sorted(opened.items()):
            if former.get(port) != host:
                self._emit(AutoPortOpened(vm=self._name, port=port, host=f"{_HOST}:{host}"))

    def _wanted(self) -> dict[int, bytes]:
        rule = self._rule
        if rule is None:
            return {}
        ports = [port for port in sorted(self._listening) if rule.permits(port) and port not in self._taken]
        if len(ports) > _MOST and not self._warned:
            self._warned = True
            message = f"{self._name}: it listens on {len(ports)} ports, of which {_MOST} are forwarded"
            self._emit(Warned(message=message, hint="allow fewer, or name them"))
        return {port: self._listening[port] for port in ports[:_MOST]}

    async def _direct(self, wanted: dict[int, bytes]) -> AbstractSet[int]:
        """Those that can be reached over the network."""
        cable = self._cable()
        if cable is None or not wanted:
            return frozenset()
        plugged = await cable.plugged()
        own = {ip_address(text.partition("/")[0]).packed for text in (plugged.address, plugged.address6)}
        return {port for port, address in wanted.items() if not any(address) or address in own}

    async def _led_to(self, direct: AbstractSet[int]) -> dict[int, int]:
        """Have the network's process lead to these; the port of this host of each."""
        cable = self._cable()
        if cable is None:
            return {}
        # Where its own was taken, the same other one as before.
        found = tuple(Forward(self._open.get(port, port), port) for port in sorted(direct))
        states = await cable.set_ports(found=found)
        return {state.forward.guest_port: state.port for state in states if state.found}

    async def _carry(self, agent: Agent | None, wanted: dict[int, bytes]) -> None:
        """Have the agent lead to these."""
        for port, (address, one) in tuple(self._carried.items()):
            if wanted.get(port) != address:
                del self._carried[port]
                await one.close()
        for port, address in wanted.items():
            if port not in self._carried and agent is not None:
                self._carried[port] = address, await _exposed(agent, port, _inside(address), self._open)


def _inside(address: bytes) -> str:
    """Where the guest itself reaches what listens on an address."""
    if any(address):
        return str(ip_address(address))
    return _HOST if len(address) == 4 else "::1"


async def _exposed(agent: Agent, port: int, inside: str, former: dict[int, int]) -> Exposed:
    try:
        return await exposure.listen(agent, port, inside=inside, host=_HOST, port=former.get(port, port))
    except UsageError:
        return await exposure.listen(agent, port, inside=inside, host=_HOST, port=0)
