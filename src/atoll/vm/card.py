"""The network card of a VM that a supervisor looks after: plugged in, moved, and ports that lead to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.events import Emit, Warned
from atoll.guest.agent import Agent
from atoll.hypervisor.model import Port
from atoll.paths import NetworkPaths, VmPaths
from atoll.vm.bootplan import BootPlan
from atoll.vm.network.attachment import Attachment, elsewhere
from atoll.vm.network.cable import Cable
from atoll.vm.network.moving import move, tell
from atoll.vm.network.reaching import ensure
from atoll.vm.network.requests import Plugged
from atoll.vm.ports import VmPorts
from atoll.vm.state import StateError

__all__ = ["VmCard"]


class VmCard:
    """The card of one VM after the other, on the running event loop.

    Args:
        place: the machine's directory.
        read_plan: what is run, as it is on record now.
        agent: of its guest; None if there is none.
        free: has a VM that runs give up what was under way at its card; nothing for one that does not.
        emit: told of what becomes of it.

    Attributes:
        cable: keeps the card plugged in; None if there is none.
        ports: those that lead to the guest.
    """

    def __init__(
        self,
        place: VmPaths,
        read_plan: Callable[[], BootPlan],
        agent: Callable[[], Agent | None],
        free: Callable[[], Awaitable[None]],
        emit: Emit,
    ) -> None:
        self.cable: Cable | None = None
        self._place = place
        self._name = place.directory.name
        self._read_plan = read_plan
        self._agent = agent
        self._free = free
        self._emit = emit
        self.ports = VmPorts(self._name, read_plan, agent, emit)

    def lay(self) -> None:
        """Be ready to keep the card of a VM plugged in that is about to begin, or to be taken over."""
        try:
            plan = self._read_plan()
        except StoreError as error:  # a VM that was taken over goes on without
            self._emit(Warned(message=f"{self._name}: its network card stays unplugged: {error.message}"))
            return
        if plan.attachment is not None and plan.machine.card is not None:
            self._take(self._cable_to(plan.attachment, plan.machine.mac))

    def take_over(self) -> None:
        """``lay``, and keep the card plugged in of a VM that runs already."""
        self.lay()
        if self.cable is not None:
            self.cable.begin(fresh=False)

    async def leave(self) -> None:
        """The VM has ended, or is left to the next supervisor."""
        cable, self.cable = self.cable, None
        await self.ports.end()
        if cable is not None:
            await cable.close()

    async def follow(self, egress: tuple[str, ...]) -> None:
        """Hold the guest to a policy that the machine's plan has already. Raises as ``Cable.follow``."""
        if self.cable is not None:
            await self.cable.follow(egress)

    async def join(self, network: str, free: Callable[[], Awaitable[None]]) -> None:
        """Plug the card of a VM that runs into another network; its guest has another address then.

        Args:
            network: its name.
            free: of the VM, of which the caller sees that it goes on running.

        Raises:
            StateError: ``state.network``: it has no card for networks of Atoll.
            NetworkError: the network cannot be had: the VM is on its former one.
        """
        agent, former, plan = self._agent(), self.cable, self._read_plan()
        if plan.attachment is None or former is None or agent is None:
            hint = f"`atoll restart {self._name}`"
            raise StateError(f"{self._name} runs without such a card", code="network", hint=hint)
        attachment = elsewhere(plan.attachment, network)
        if attachment == plan.attachment:
            return
        await asyncio.to_thread(ensure, NetworkPaths(attachment.network))  # before anything is changed
        try:
            await former.close()
            cable = self._cable_to(attachment, plan.machine.mac)
            self._take(cable)
            cable.succeed(former)
            await move(former, cable, agent, plan.machine.mac, free)
            told = msgspec.structs.replace(attachment, renew=False)
            plan = msgspec.structs.replace(plan, attachment=told)
            store.write_record(self._place.boot, plan, parents=False)
        except BaseException:
            await self.leave()
            self.take_over()  # as of one whose supervisor was killed
            await self.ports.begin()
            raise

    def _take(self, cable: Cable) -> None:
        self.cable = self.ports.cable = cable

    def _cable_to(self, attachment: Attachment, mac: str) -> Cable:
        async def moved(plugged: Plugged) -> None:
            agent = self._agent()
            if agent is not None:
                await tell(agent, mac, plugged)

        return Cable(
            attachment,
            vm=self._name,
            mac=mac,
            socket=self._place.socket(Port.NETWORK),
            emit=self._emit,
            free=self._free,
            moved=moved,
            current=self._attachment,
        )

    def _attachment(self) -> Attachment:
        """Where the card is plugged in, as it is on record by now."""
        attachment = self._read_plan().attachment
        assert attachment is not None
        return attachment
