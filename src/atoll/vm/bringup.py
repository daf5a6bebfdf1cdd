"""One start of a guest: from the spawn of its VM until it is ready, or the reason why it is not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from msgspec.structs import replace

from atoll.errors import AtollError, BootError, ChannelError, GuestError
from atoll.events import Emit, Event, GuestBooted, StageReached, WaitingFor
from atoll.guest.agent import Agent
from atoll.guest.messages import CloneBegin
from atoll.hypervisor.port import Position, Resident
from atoll.paths import VmPaths
from atoll.vm.bootplan import Beginning, BootPlan, Setup
from atoll.vm.clock import set_clock
from atoll.vm.cloning import copied_identity, identity_of, renewed_identity
from atoll.vm.diagnosis import Evidence, diagnose
from atoll.vm.logs import tail
from atoll.vm.network.cable import Cable, setup_of
from atoll.vm.outputs import Outputs
from atoll.vm.reasons import unready
from atoll.vm.setup import set_up
from atoll.vm.shares import Shares
from atoll.vm.vsock import VsockDevice

__all__ = ["BringUp", "attached", "hypervisor_said", "left_to_do"]

#: Seconds for a channel's end to become the process's end.
_EXIT_GRACE = 2.0

#: Bytes of the hypervisor's log that are looked at for the reason of its end.
_SAID = 4096


@dataclass(slots=True)
class BringUp:
    """A guest on its way up.

    Attributes:
        name: of the machine; its files are at ``place``.
        vm: spawned already.
        agent: behind the guest's channel; None if that could not be connected.
        plan: what was spawned, and what is to be done in it.
        outputs: read along already.
        shares: plugged in once the guest's root is mounted.
        vsock: likewise.
        emit: told of the stages.
        cloned: it goes on from a template, and is to be told who it is.
        beginning: how it comes up if it goes on from what it was.
        cable: keeps its network card plugged in; None if it has none.
        introduced: it was told.
    """

    name: str
    place: VmPaths
    vm: Resident
    agent: Agent | None
    plan: BootPlan
    outputs: Outputs
    shares: Shares
    vsock: VsockDevice
    emit: Emit
    cloned: bool = False
    beginning: Beginning = Beginning.BOOT
    cable: Cable | None = None
    introduced: bool = field(default=False, init=False)
    _began: float = field(default=0.0, init=False)
    _answered: bool = field(default=False, init=False)
    _booted: bool = field(default=False, init=False)
    _waits_for: str = field(default="", init=False)

    async def run(self, began: float) -> None:
        """Wait until the guest is ready; ``began`` is when it was spawned, by the monotonic clock.

        Raises:
            BootError: it is not; the stage says how far it came.
        """
        self._began = began
        try:
            async with asyncio.timeout(self.plan.boot_timeout):
                await self._boot()
        except GuestError as error:
            hint = "rebuild the image with `atoll image build --force IMAGE`" if error.stage == "root" else ""
            message = f"{self.name}: {error.message}"
            raise BootError(message, stage=error.stage or "root", hint=hint) from error
        except (ChannelError, TimeoutError) as error:
            if self._waits_for and isinstance(error, TimeoutError):
                raise unready(self.name, self.plan.boot_timeout, self._waits_for) from error
            raise await self._explain(error) from error

    def reached(self, stage: str) -> None:
        """Tell how far the guest is."""
        self.emit(StageReached(vm=self.name, stage=stage, elapsed=time.monotonic() - self._began))

    async def _boot(self) -> None:
        agent = self.agent
        if agent is None:
            raise ChannelError("nobody listens at the guest's channel", code="gone")
        await agent.ready()
        self._answered = True
        self.reached("agent")
        plugged = None
        if self.cable is not None:
            self.cable.begin(fresh=True)
            plugged = await self.cable.plugged()
        if (identity := self._identity()) is not None:
            await agent.introduce(identity)
            self.introduced = True
        timeline = (await agent.booted()).timeline
        self._booted = True
        self.reached("root")
        self.emit(GuestBooted(vm=self.name, timeline=timeline))
        self.shares.connect(self.vm, agent, self.plan)
        self.vsock.connect(self.vm, agent, self.plan)
        await self.vsock.plug()
        setup = left_to_do(self.plan.setup, self.beginning)
        moved = self.plan.attachment is not None and self.plan.attachment.renew
        if plugged is not None and (self.beginning is not Beginning.RESUME or moved or not plugged.known):
            setup = replace(setup, network=setup_of(self.plan.machine.mac, plugged, renew=moved))
        renew = self.beginning is Beginning.FORK or moved
        await set_up(agent, setup, self.name, self._tell, mount=self.shares.mount_all, renew_network=renew)
        await set_clock(agent)

    def _identity(self) -> CloneBegin | None:
        """What the guest is to be told of itself; None if it knows."""
        match self.beginning:
            case Beginning.RESUME:
                return renewed_identity()
            case Beginning.FORK:
                return copied_identity(self.plan.machine)
            case Beginning.BOOT:
                return identity_of(self.plan.machine) if self.cloned else None

    def _tell(self, event: Event) -> None:
        if isinstance(event, WaitingFor):
            self._waits_for = event.what
        self.emit(event)

    async def _explain(self, error: ChannelError | TimeoutError) -> BootError:
        position, status = Position.UNKNOWN, self.vm.process.poll()
        if status is None and isinstance(error, ChannelError):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_GRACE):
                    status = await self.vm.wait()
        if status is None:
            position = await self.vm.position()
        await asyncio.sleep(0)  # what the guest wrote last is read
        evidence = Evidence(
            vm=self.name,
            status=status,
            position=position,
            console=self.outputs.boot_text(),
            diagnostics=hypervisor_said(self.place),
            answered=self._answered,
            booted=self._booted,
            waited=time.monotonic() - self._began,
        )
        return diagnose(evidence)


def left_to_do(setup: Setup, beginning: Beginning) -> Setup:
    """What of ``setup`` was not done in the guest before it stood still."""
    if beginning is Beginning.BOOT:
        return setup
    script = setup.script if beginning is Beginning.FORK else ""
    return replace(setup, modules=(), network=None, script=script, probe=None, inherited=None)


def hypervisor_said(place: VmPaths) -> str:
    """What the hypervisor of the machine at ``place`` wrote last."""
    return tail(place.log("hypervisor"), _SAID).decode(errors="replace")


async def attached(vm: Resident) -> None:
    """Follow what the hypervisor says; one that does not answer is known by its end all the same."""
    with contextlib.suppress(AtollError):
        await vm.attach()
