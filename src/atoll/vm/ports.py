"""The ports of a machine's VM, which its supervisor keeps as the machine's record says.

Whoever changes them has the supervisor bind them first, writes the record, and says so. Whichever of them is
killed in between, the supervisor then does what the record says by that time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec

from atoll.errors import AtollError
from atoll.events import Emit
from atoll.guest.agent import Agent
from atoll.vm.bootplan import BootPlan
from atoll.vm.client import Control
from atoll.vm.control import Method
from atoll.vm.following import Following
from atoll.vm.messages import Ports, PortsChange
from atoll.vm.network.attachment import PortState
from atoll.vm.network.cable import Cable
from atoll.vm.network.porting import Wanted
from atoll.vm.state import StateError
from atoll.vm.streams import LocalStream

__all__ = ["VmPorts", "port_methods", "ports_changed"]


class VmPorts:
    """The ports of one VM after the other, on the running event loop.

    Args:
        name: of the machine.
        read_plan: what is run, with the ports that the record of the machine names now.
        agent: of its guest; None if there is none.
        emit: told of ports that come and go with what the guest does.

    Attributes:
        cable: keeps the VM's card plugged in; None if it has none.
    """

    def __init__(
        self,
        name: str,
        read_plan: Callable[[], BootPlan],
        agent: Callable[[], Agent | None],
        emit: Emit,
    ) -> None:
        self.cable: Cable | None = None
        self._name = name
        self._read_plan = read_plan
        self._changing = asyncio.Lock()
        self._following = Following(name, agent, lambda: self.cable, emit)

    async def listed(self) -> Ports:
        """All there are: those of the record, which may have been changed without a word.

        Raises ``NetworkError``, ``StoreError``.
        """
        if not self._changing.locked():
            async with self._changing:
                await self._do_as_recorded()
        plan = self._read_plan()
        carried = self._following.carried
        if self.cable is not None and plan.attachment is not None:
            return Ports((*await self.cable.ports(), *carried), plan.attachment.reverse)
        network = plan.machine.network
        forwards = network.forwards if network is not None else ()
        return Ports((*(PortState(forward, forward.host_port) for forward in forwards), *carried), ())

    async def begin(self) -> None:
        """The guest is up, or was taken over: follow what it listens on, if that is wished."""
        with contextlib.suppress(AtollError):
            await self._follow(self._read_plan())

    async def end(self) -> None:
        """The guest is gone, or is left to the next supervisor."""
        self.cable = None
        await self._following.close()

    async def change(self, request: PortsChange, told: Callable[[Ports], None], until: asyncio.Event) -> None:
        """Have other ports, and ``until`` is set, those of the record.

        Args:
            request: what is wanted.
            told: called when it is done.
            until: set when the record has been written, or its writer is gone.

        Raises:
            StateError: ``state.network``: the VM has no card of Atoll's own network.
            NetworkError: ``network.port``: one cannot be had; nothing has changed.
        """
        async with self._changing:
            cable = self._require()
            wanted = Wanted(request.forwards, request.reverse)
            try:
                states = await cable.set_ports(wanted, strict=True, close=request.close, keep=False)
                told(Ports(states, request.reverse))
                await until.wait()
            finally:
                with contextlib.suppress(AtollError):  # it is done when the card is plugged in again
                    await self._do_as_recorded()

    def _require(self) -> Cable:
        if self.cable is None:
            message = f"{self._name}: only the ports of Atoll's own network change while a machine runs"
            hint = f"`atoll edit {self._name} ports=...` changes them for the next start"
            raise StateError(message, code="network", hint=hint)
        return self.cable

    async def _do_as_recorded(self) -> None:
        plan = self._read_plan()
        if self.cable is not None and plan.attachment is not None:
            await self.cable.set_ports(Wanted(plan.attachment.forwards, plan.attachment.reverse))
        await self._follow(plan)

    async def _follow(self, plan: BootPlan) -> None:
        network = plan.attachment or plan.machine.network
        forwards = network.forwards if network is not None else ()
        taken = frozenset(one.guest_port for one in forwards if one.protocol == "tcp")
        await self._following.follow(plan.auto_ports, taken)


def port_methods(ports: VmPorts) -> Mapping[str, Method]:
    """What answers these requests at a supervisor's control socket."""
    tasks: set[asyncio.Task[None]] = set()

    async def read(_: bytes, stream: LocalStream) -> None:
        stream.reply(await ports.listed())

    async def change(payload: bytes, stream: LocalStream) -> None:
        request = msgspec.msgpack.decode(payload, type=PortsChange)
        over = asyncio.Event()
        task = asyncio.create_task(ports.change(request, lambda done: stream.reply(done, end=False), over))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        reading = asyncio.create_task(stream.read())
        try:
            await asyncio.wait({task, reading}, return_when=asyncio.FIRST_COMPLETED)
            over.set()
            await asyncio.shield(task)
            await stream.write(b"", end=True)
        finally:
            over.set()  # the client is gone: what the record says is done all the same
            reading.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    return {"vm.ports": read, "vm.ports.change": change}


@asynccontextmanager
async def ports_changed(control: Control, request: PortsChange) -> AsyncIterator[Ports]:
    """The ports that a VM has for the time of this block, in which the machine's record is to be written.

    Raises as ``VmPorts.change``.
    """
    stream = control.agent.open(request)
    try:
        yield await stream.reply(Ports)
        with contextlib.suppress(AtollError):  # a supervisor that was killed meanwhile leaves it to the next
            await stream.write(b"", end=True)
            await stream.read()
    finally:
        stream.cancel()
