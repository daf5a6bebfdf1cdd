"""One VM from its spawn to its close."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, cast

from atoll.errors import AtollError, BootError, ChannelError, GuestError, ProtocolError
from atoll.events import Emit, GuestBooted, StageReached, VmExited
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel, Stream
from atoll.guest.messages import CloneBegin, Empty
from atoll.guest.opening import Closing
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import FreezableVm, Position, VirtualMachine
from atoll.vm.bootplan import user_network
from atoll.vm.cloning import new_identity, renewed_identity
from atoll.vm.diagnosis import Evidence, diagnose
from atoll.vm.spawning import Clone, Spawned
from atoll.vm.steps import join_network, plug_memory, renew_ipv6

if TYPE_CHECKING:
    from atoll.paths import NetworkPaths
    from atoll.vm.network.cable import Cable
    from atoll.vm.network.requests import Plugged

__all__ = ["Vm"]

#: Seconds to wait for the process's end after its channel closed: the kernel closes descriptors first.
_EXIT_GRACE = 2.0


class Vm(Closing):
    """A VM that this process owns and that ends with it. Belongs to one event loop.

    Args:
        spawned: the VM, as ``spawn`` made it.
        emit: told of its stages.

    Attributes:
        name: of the VM.
        machine: as its hypervisor was asked for it.
        hypervisor: what runs it.
        booted: its root is mounted.
        attachment: where its network card is plugged in; None if nowhere.
        address: of that card, once it is booted; empty if it has none.
    """

    def __init__(self, spawned: Spawned, emit: Emit) -> None:
        self.name = spawned.name
        self._emit = emit
        self._began = spawned.began
        self._vm = spawned.vm
        self.machine = spawned.machine
        self.hypervisor = spawned.hypervisor
        self._clone = spawned.clone
        self._modules = spawned.modules
        self.attachment = spawned.attachment
        self._mac = spawned.machine.mac
        self._cable: Cable | None = None
        self._release = spawned.release
        self._beginning: Stream | None = None
        self._channel: Channel | None = None
        self._agent: Agent | None = None
        self._answered = False
        self.booted = False
        self.address = ""
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    @property
    def pid(self) -> int:
        """The hypervisor's process id."""
        return self._vm.process.pid

    @property
    def clone(self) -> Clone | None:
        """What it went on from; None if it was booted."""
        return self._clone

    @property
    def hypervised(self) -> VirtualMachine:
        """The VM as its hypervisor has it."""
        return self._vm

    @property
    def freezable(self) -> FreezableVm:
        """The same, of a backend whose VMs can be frozen."""
        return cast(FreezableVm, self._vm)

    @property
    def cable(self) -> Cable | None:
        """What keeps its network card plugged in; None if it has none."""
        return self._cable

    @property
    def card_place(self) -> tuple[NetworkPaths, str]:
        """The network that its card is plugged into, and as whose. Raises ``NetworkError``: there is none."""
        if self._cable is None:
            from atoll.vm.network.lines import not_plugged  # noqa: PLC0415 - only where there is a network

            raise not_plugged(self.name)
        return self._cable.place, self._cable.owner

    @property
    def idle(self) -> float:
        """Seconds for which nothing was asked of the guest; 0 while something is under way."""
        return self._channel.idle if self._channel is not None else 0.0

    @property
    def console(self) -> str:
        """The last part of what the guest wrote to its console."""
        return self._vm.console.text()

    @property
    def agent(self) -> Agent:
        """The agent, once ``attach`` or ``boot`` was called."""
        assert self._agent is not None, "attach first"
        return self._agent

    def attach(self) -> Agent:
        """Connect the channel. Requests may be sent at once; the guest answers them when it is up."""
        if self._agent is None:
            self._vm.console.watch()
            self._vm.diagnostics.watch()
            self._channel = Channel(self._vm.take_channel())
            self._agent = Agent(self._channel)
            if self._clone is not None:
                identity = _identity(self._clone, self.machine)
                self._mac = identity.mac or self._mac
                self._beginning = self._agent.begin(identity)
            self._plug()
        return self._agent

    async def boot(self, timeout: float) -> None:  # noqa: ASYNC109 - the limit of a stage, not of a call
        """Wait until the guest is up: its agent answers and its root is mounted.

        Raises:
            BootError: it did not come up within ``timeout`` seconds; the stage says how far it got.
        """
        agent = self.attach()
        try:
            async with asyncio.timeout(timeout):
                await agent.ready()
                self._answered = True
                if self._cable is not None:
                    self._cable.begin(fresh=True)
                self._reached("agent")
                if self._clone is not None:
                    await self._begin(self._clone)
                booted, _ = await asyncio.gather(agent.booted(), self._correct_clock(agent))
                if self._modules:
                    await agent.load_modules(self._modules)
                await self._join(agent)
        except GuestError as error:
            raise self._root_error(error) from error
        except ProtocolError as error:
            tail = self._vm.console.tail()
            raise BootError(error.message, stage="agent", hint=error.hint, detail=tail) from error
        except (ChannelError, TimeoutError) as error:
            raise await self.explain(error) from error
        self.booted = True
        self._reached("root")
        self._emit(GuestBooted(vm=self.name, timeline=booted.timeline))

    def _plug(self) -> None:
        """Be ready to have its network card plugged in."""
        if self.attachment is None or self._vm.card is None:
            return
        from atoll.vm.network.cable import Cable, setup_of  # noqa: PLC0415 - only where there is a network

        async def moved(plugged: Plugged) -> None:
            await join_network(self.agent, setup_of(self._mac, plugged))

        self._cable = Cable(
            self.attachment,
            vm=self.name,
            mac=self._mac,
            socket=self._vm.card,
            emit=self._emit,
            free=self._vm.free_card,
            moved=moved,
        )

    async def follow(self, egress: tuple[str, ...]) -> None:
        """Hold the guest, and copies of it, to another policy. Raises as ``held_to`` and ``Cable.follow``."""
        from atoll.vm.network.egress import held_to  # noqa: PLC0415

        self.attachment = held_to(self.attachment, egress)
        if self._cable is not None:
            await self._cable.follow(egress)

    async def _join(self, agent: Agent) -> None:
        """Give its network card the addresses that are its own. Raises ``NetworkError`` or ``GuestError``."""
        if self._cable is not None:
            from atoll.vm.network.cable import setup_of  # noqa: PLC0415

            plugged = await self._cable.plugged()
            self.address = plugged.address.partition("/")[0]
            interface = await join_network(agent, setup_of(self._mac, plugged))
            if self._clone is not None and not self._clone.template:  # its original was on a network, too
                await renew_ipv6(agent, interface)
        elif self.machine.network is not None:
            network = user_network(self.machine.network.mac)
            self.address = network.address.partition("/")[0]
            if self._clone is None:
                await join_network(agent, network)

    async def _begin(self, clone: Clone) -> None:
        """Wait until a clone is itself, and has the memory that it shall have."""
        assert self._beginning is not None
        await _answer(self._beginning)
        if clone.memory > self.machine.memory:
            await plug_memory(self.freezable.plugging, clone.memory)

    async def _correct_clock(self, agent: Agent) -> None:
        """What a clone was told of the time is as old as its hypervisor took to start."""
        if self._clone is not None:
            await agent.step_clock(time.time_ns())

    async def renew(self) -> None:
        """Let the vCPUs go on after the guest stood ready for a time; its clock and its seed are new."""
        beginning = self.agent.begin(renewed_identity())
        await self.freezable.resume()
        await _answer(beginning)

    async def explain(self, error: ChannelError | TimeoutError) -> AtollError:
        """What is behind a channel that broke or a guest that does not answer."""
        if isinstance(error, ProtocolError) or (isinstance(error, ChannelError) and self._closed):
            return error
        position = Position.UNKNOWN
        status = self._vm.process.poll()
        if status is None and isinstance(error, ChannelError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_GRACE):
                    status = await self._vm.wait()
        if status is None:
            position = await self._vm.position()
        evidence = Evidence(
            vm=self.name,
            status=status,
            position=position,
            console=self._vm.console.text(),
            diagnostics=self._vm.diagnostics.text(),
            answered=self._answered,
            booted=self.booted,
            waited=time.monotonic() - self._began,
        )
        return diagnose(evidence)

    async def wait(self) -> int:
        """Wait for the VM's end; the exit status of its process."""
        return await self._vm.wait()

    async def close(self) -> None:
        """Remove the VM, whatever it is doing. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._cable is not None:
            await self._cable.close()
        if self._channel is not None:
            self._channel.close()
        try:
            await self._vm.close()
        finally:
            self._release()
            self._emit(VmExited(vm=self.name, status=self._vm.process.poll() or 0))

    def _reached(self, stage: str) -> None:
        self._emit(StageReached(vm=self.name, stage=stage, elapsed=time.monotonic() - self._began))

    def _root_error(self, error: GuestError) -> BootError:
        hint = "rebuild the image with `atoll image build --force IMAGE`" if error.stage == "root" else ""
        stage = error.stage or "root"
        return BootError(
            f"{self.name}: {error.message}", stage=stage, hint=hint, detail=self._vm.console.tail()
        )


def _identity(clone: Clone, machine: Machine) -> CloneBegin:
    """Who a clone is to be."""
    if clone.same:
        return renewed_identity()
    return new_identity(machine, growth=clone.memory - machine.memory)


async def _answer(call: Stream) -> None:
    """Wait for the answer to a request that was sent before."""
    try:
        await call.reply(Empty)
    finally:
        call.cancel()
