"""The process that looks after one machine: it starts the VM, owns its channel and logs, says what it does.

Everything that changes the machine goes through one lock and through ``_advance``, which writes the new state
to disk before anyone hears of it. What is asked for comes in by ``atoll.vm.service``. A start holds the lock
only while it begins, so that it can be joined and ended; as long as it goes on, it alone changes the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, BootError, StoreError
from atoll.events import (
    Emit,
    Event,
    StateChanged,
    VmExited,
    VmSpawned,
    Warned,
)
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel
from atoll.hypervisor.model import Port
from atoll.hypervisor.port import Frozen, Resident, ResidentHypervisor, sweep
from atoll.paths import VmPaths
from atoll.process import boot_id, identify
from atoll.vm import clock, restart
from atoll.vm.bootplan import Beginning, BootPlan
from atoll.vm.branching import Branch, finish_switch
from atoll.vm.bringup import BringUp, attached, hypervisor_said
from atoll.vm.capturing import Taken, branch, capture, thaw
from atoll.vm.card import VmCard
from atoll.vm.folding import compact
from atoll.vm.messages import Files, Stopped, StopStep
from atoll.vm.outputs import Outputs
from atoll.vm.reasons import ended, failure_of
from atoll.vm.shares import Shares
from atoll.vm.state import Cause, Failure, Phase, State, StateError, advance, truth
from atoll.vm.stopping import stop_guest
from atoll.vm.tidying import tidy
from atoll.vm.vsock import VsockDevice

__all__ = ["Supervisor"]

#: Causes that somebody wishes for: where the disk is full they are refused. All others have happened already.
_WISHES = {Cause.STARTED, Cause.RESTARTED}


class Supervisor:
    """Looks after the machine at ``place``. Belongs to one event loop; its caller holds the machine's lock.

    Args:
        place: the machine's directory.
        hypervisor: what runs it.
        read_plan: makes or reads what is to be run, anew at each start.
        emit: told of everything.

    Attributes:
        state: what the machine does; on disk already.
        vm: the running VM, or None.
        changed: set and replaced whenever ``state`` changes.
    """

    def __init__(
        self,
        place: VmPaths,
        hypervisor: ResidentHypervisor,
        read_plan: Callable[[], BootPlan],
        emit: Emit,
    ) -> None:
        self.name = place.directory.name
        self.place = place
        self.state = store.read_record(place.state, State)
        self.vm: Resident | None = None
        self.agent: Agent | None = None
        self.outputs = Outputs(place)
        self.shares = Shares(place, self.emit)
        self.vsock = VsockDevice(self.name, self.emit, place)
        self.card = VmCard(place, read_plan, lambda: self.agent, self._free_card, self.emit)
        self.changed = asyncio.Event()
        self.on_channel: Callable[[Channel | None], None] = lambda _: None
        self._hypervisor = hypervisor
        self._read_plan = read_plan
        self._emit_to = emit
        self._channel: Channel | None = None
        self._lock = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._restarting: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._held: Resident | None = None
        self._began = 0.0

    # What may be asked for.

    async def start(self, files: Files | None = None) -> None:
        """Bring the guest up; returns at once if it is.

        Args:
            files: what it goes on from, of a machine that is at rest.

        Raises:
            BootError: it did not come up; the machine is as it was before.
            StateError: it was stopped meanwhile; or it is not at rest and cannot go on from anything.
        """
        while True:
            async with self._lock:
                self._cancel_restart()
                if files is not None and self.state.active:
                    message = f"{self.name} is {self.state.phase}: it cannot go on from what it was"
                    raise StateError(message, code="active", hint=f"`atoll stop {self.name}` stops it")
                if self.state.phase in {Phase.RUNNING, Phase.PAUSED}:
                    return
                if files is None and self.state.phase is Phase.SUSPENDED:
                    message = f"{self.name} is suspended: it can only go on from what it was"
                    raise StateError(message, code="suspended", hint=f"`atoll start {self.name}` does that")
                changed = self.changed
                if self.state.phase is not Phase.STOPPING:
                    if self.state.phase is not Phase.STARTING:
                        self._advance(Cause.STARTED)
                        self._starting = self._spawn(self._boot(files))
                    starting = self._starting
                    break
            await changed.wait()  # a stop that an earlier supervisor began has not begun anew yet
        assert starting is not None
        await self._join(starting)

    async def stop(
        self,
        *,
        force: bool,
        timeout: float,  # noqa: ASYNC109 - the guest's part
        suspended: bool = False,
    ) -> Stopped:
        """End the guest, in order or by force; nothing happens if there is none.

        With ``suspended`` it is recorded that it goes on from what was written down.

        Raises:
            StateError: ``state.not_held``: it is not as it was written down any more.
        """
        cut = self._cut_short() if force and not suspended else None
        async with self._lock:
            self._cancel_restart()
            if self._starting is not None and not self._starting.done():
                self._starting.cancel()
                await asyncio.wait([self._starting])
            if suspended and not self.state.suspending:
                self._require_held()
            if not self.state.active:
                return Stopped(())
            if self.state.phase is not Phase.STOPPING:
                self._advance(Cause.SUSPEND_ASKED if suspended else Cause.STOP_ASKED)
            steps: tuple[StopStep, ...] = ()
            if self.vm is not None:
                steps = await stop_guest(
                    self.vm,
                    self.agent,
                    self.name,
                    self.emit,
                    force=force,
                    timeout=timeout,
                    farewell="" if force else self._farewell(),
                    killed=self.vm is cut,
                )
            await self._clean_up()
            self._advance(Cause.SUSPENDED if self.state.suspending else Cause.STOPPED)
            return Stopped(steps)

    def _require_held(self) -> None:
        """Who goes on from what was written down must have it as it was left."""
        if self._held is None or self._held is not self.vm:
            message = f"{self.name} is {self.state.phase}: it has not stood still since it was written down"
            raise StateError(message, code="not_held", hint="try it again")

    def _cut_short(self) -> Resident | None:
        """Kill the VM now, if something is under way with it: that fails, where it could go on for long."""
        if self.vm is None or self.state.phase is Phase.STARTING or not self._lock.locked():
            return None
        if self.state.phase is not Phase.STOPPING:
            self._advance(Cause.STOP_ASKED)  # before: else it would be taken for a crash
        self.vm.process.kill()
        return self.vm

    def _farewell(self) -> str:
        """What is said to the guest before it is ended: nothing where its plan cannot be read any more."""
        try:
            return self._read_plan().setup.farewell
        except StoreError:
            return ""

    async def pause(self) -> None:
        """Stop the vCPUs. Raises ``StateError`` if the machine is not running."""
        async with self._unheld():
            vm = self.require(Phase.RUNNING, "paused")
            await vm.pause()
            self.require(Phase.RUNNING, "paused")  # who ends it by force waits for nobody
            self._advance(Cause.PAUSED)

    async def resume(self) -> None:
        """Let the vCPUs go on and set the guest's clock. Raises ``StateError`` if it is not paused."""
        async with self._unheld():
            vm = self.require(Phase.PAUSED, "resumed")
            await vm.resume()
            self.require(Phase.PAUSED, "resumed")
            self._advance(Cause.RESUMED)
            self._spawn(self.vsock.restore())  # an earlier supervisor may have left it without
        await self._set_clock()

    async def capture(self, *, hold: bool = False, flush: bool = False, live: bool = False) -> Taken:
        """Write the VM down, which goes on; with ``hold`` it stands still, unshared, until ``release_soon``.

        With ``flush`` the guest's files are whole on the disk alone. With ``live`` it goes on while its RAM
        is written, if it can.

        Raises:
            StateError: the machine has no VM, or it cannot be written down.
            BootError: stage ``capture``.
        """
        async with self._unheld():
            if self.state.phase is Phase.PAUSED and (self.vsock.plugged or await self.shares.listed()):
                message = f"{self.name} is paused: its shares and its virtio socket cannot be set aside"
                raise StateError(message, code="paused", hint=f"`atoll resume {self.name}` lets it go on")
            vm = self._up("written down")
            agent = self.agent if flush else None
            async with self.vsock.aside(stays=hold):
                taken = await capture(
                    vm, self.place, self.shares, self.emit, flushed=agent, hold=hold, live=live
                )
            if hold:
                self._held = vm
                if self.state.phase is Phase.RUNNING:
                    self._advance(Cause.HELD)
            return taken

    def release_soon(self) -> None:
        """Let a VM be as it was before it was held, if it is there, with its shares."""
        self._spawn(self._release())

    async def _release(self) -> None:
        async with self._lock:
            vm = self._held
            try:
                if vm is not None and vm is self.vm and self.state.held:
                    await vm.resume()
                    if self.state.held:  # who ends it by force waits for nobody
                        self._advance(Cause.RESUMED)
                        await self._revive(vm)
            finally:
                self._held = None
                self._announce()

    @asynccontextmanager
    async def _unheld(self) -> AsyncIterator[None]:
        """The lock, as soon as nobody has the VM stand still for what it was written down as."""
        while True:
            async with self._lock:
                if self._held is None:
                    yield
                    return
                changed = self.changed
            await changed.wait()

    async def settled(self) -> None:
        """Wait until what an earlier supervisor began is put right, and nobody holds the VM."""
        if self._recovering is not None:
            await asyncio.wait([self._recovering])
        while self._held is not None:
            await self.changed.wait()

    async def branch(self) -> Branch:
        """Branch the disk; what it holds is whole. Raises as ``capture``."""
        async with self._unheld():
            agent = self.agent if self.state.phase is Phase.RUNNING else None
            return await branch(self._up("branched"), self.place, agent, self.emit)

    def _up(self, done: str) -> Resident:
        """The VM of a machine that is running or paused. Raises ``StateError`` if it is neither."""
        paused = self.state.phase is Phase.PAUSED
        return self.require(Phase.PAUSED if paused else Phase.RUNNING, done)

    async def adopt(self) -> None:
        """Take over the VM that a supervisor before this one left, or record that it is gone.

        A VM whose monitor or agent does not answer is taken over all the same: it can be ended by force.

        Raises:
            BootError: something that cannot be told holds the VM's lock.
        """
        async with self._lock:
            vm = self._hypervisor.adopt(self.place)
            if vm is None:
                found = truth(self.state, supervised=False, alive=False, boot=boot_id(), at=time.time())
                if found != self.state:
                    self._keep(found)
                sweep(self.place)
                return
            if not self.state.active:
                await vm.close()  # no record speaks of it: nobody could ever stop it
                return
            self.vm = vm
            self._began = time.monotonic()
            self._keep(msgspec.structs.replace(self.state, vm=identify(vm.process.pid) or self.state.vm))
            self._connect(vm)
            self.card.take_over()
            if self.state.phase is Phase.STARTING:
                self._starting = self._spawn(self._boot_on())
                return
            self._recovering = self._spawn(self._recover(vm))
            self._spawn(self._watch(vm))
            self._spawn(self._keep_time())
            if self.state.phase is Phase.STOPPING:
                self._spawn(self._finish_stop())

    async def _recover(self, vm: Resident) -> None:
        """Put right what an earlier supervisor began: nobody has what it was writing down any more.

        The vCPUs do what the record says, or it what they do: they may stand still although it says that they
        run. The disk is that of the record, and a guest that runs has its files and its shares.
        """
        async with self._lock:
            if self.vm is not vm or self.state.phase not in {Phase.RUNNING, Phase.PAUSED}:
                return
            try:
                await vm.recover(running=self.state.phase is Phase.RUNNING or self.state.held)
            except AtollError as error:
                self.emit(Warned(message=f"{self.name}: {error.message}", hint=error.hint))
            with contextlib.suppress(AtollError):
                await self._correct(vm)
            with contextlib.suppress(AtollError):
                if vm.plugging is not None:
                    await finish_switch(self.place, vm.plugging)
            await self._revive(vm)

    async def _revive(self, vm: Resident) -> None:
        """Give a guest the time, its files and its devices, after it stood still for somebody."""
        if self.agent is None:
            return
        with contextlib.suppress(StoreError):
            plan = self._read_plan()
            self.shares.connect(vm, self.agent, plan)
            self.vsock.connect(vm, self.agent, plan)
        running = self.state.phase is Phase.RUNNING
        if running:
            self._spawn(self._set_clock())
            await self.vsock.restore()
        await self.card.ports.begin()
        await self.shares.recover(again=running and await thaw(self.agent))

    @property
    def expects_change(self) -> bool:
        """Whether there is a VM, or one is to come: ``changed`` tells when that ends."""
        return self.state.active or self._restarting is not None

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing left to look after."""
        busy = self._lock.locked() or self._restarting is not None or self.vm is not None
        return not busy and not self.state.active

    async def close(self) -> None:
        """Let go of everything; a VM that runs is left as it is."""
        self._cancel_restart()
        tasks = tuple(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._channel is not None:
            self._channel.close()
        self.shares.leave()
        await self.vsock.forget()
        await self.card.leave()
        if self.vm is not None:
            await self.vm.leave()
        self.outputs.close()

    def emit(self, event: Event) -> None:
        """Tell of ``event``."""
        self._emit_to(event)

    @property
    def plan(self) -> BootPlan:
        """What is run. Raises ``StoreError`` if it cannot be read."""
        return self._read_plan()

    def require(self, wanted: Phase, done: str) -> Resident:
        """The VM of a machine in that phase. Raises ``StateError`` if it is in another."""
        if self.state.phase is not wanted or self.vm is None:
            message = f"{self.name} is {self.state.phase}: it cannot be {done}"
            raise StateError(message, code=f"not_{wanted}", hint="see `atoll ls`")
        return self.vm

    # From here on: how it is done.

    def _advance(self, cause: Cause, *, failure: Failure | None = None) -> None:
        self._keep(advance(self.state, cause, time.time(), failure=failure))

    def _keep(self, state: State) -> None:
        """On disk first, then told.

        What has happened is told also when it cannot be written, since else it could not be acted upon; what
        an older record then says is put right by ``truth`` when this process has ended.
        """
        try:
            store.write_record(self.place.state, state, parents=False)  # a machine that was removed stays so
        except StoreError as error:
            if state.cause in _WISHES and state.cause is not self.state.cause:
                raise
            traceback.print_exception(error)
        changed = state.phase is not self.state.phase
        self.state = state
        if changed:
            code = state.failure.code if state.failure else ""
            self.emit(StateChanged(vm=self.name, phase=state.phase, cause=state.cause, error=code))
        self._announce()

    def _announce(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def _join(self, task: asyncio.Task[None]) -> None:
        """Wait for a start that others may wait for too."""
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StateError(f"{self.name} was stopped while it started", code="stopped") from None
            raise

    async def _boot(self, files: Files | None = None) -> None:
        """From nothing to a machine that runs, or back to where it was."""
        try:
            await self._ready_disk()
            plan = self._read_plan()
            if files is not None:
                await self._settle(plan, _frozen(files)).proceed()
                await self._come_up(plan, self._bring_up(plan, beginning=plan.beginning))
                return
            frozen = plan.origin.frozen if plan.origin is not None else None
            if frozen is None or not await self._go_on(plan, frozen):
                self._settle(plan, None)
                await self._come_up(plan)
        except Exception as error:
            await self._give_up(error)
            raise

    async def _ready_disk(self) -> None:
        """See to what the disk needs before a VM has it. Raises as ``tidy``."""
        if tidy(self.place, self._read_plan().disk):
            try:
                await asyncio.to_thread(compact, self.place)
            except AtollError as error:  # it holds what it held, in many files
                self.emit(Warned(message=f"{self.name}: its disk stays in many files: {error.message}"))

    async def _go_on(self, plan: BootPlan, frozen: Frozen) -> bool:
        """Come up from a template; False if that is of no use, and there is no VM.

        Raises:
            BootError: as in a boot: the template was of use.
        """
        assert plan.origin is not None
        start: BringUp | None = None
        try:
            self._settle(plan, frozen)
            start = self._bring_up(plan, cloned=True)
            await self._come_up(plan, start)
        except BootError as error:
            if start is not None and start.introduced:
                raise
            self.emit(Warned(message=f"{self.name}: its template is discarded: {error.message}"))
            plan.origin.discard()
            await self._clean_up()
            return False
        return True

    def _settle(self, plan: BootPlan, frozen: Frozen | None) -> Resident:
        """Spawn the VM."""
        self._began = time.monotonic()
        self.outputs.forget()
        vm = self.vm = self._hypervisor.settle(plan.machine, self.place, frozen)
        self._keep(msgspec.structs.replace(self.state, vm=identify(vm.process.pid)))
        self.emit(VmSpawned(vm=self.name, pid=vm.process.pid))
        self._connect(vm)
        self.card.lay()
        return vm

    async def _boot_on(self) -> None:
        """``_boot`` for a VM that an earlier supervisor spawned; it may have been told who it is."""
        try:
            plan = self._read_plan()
            beginning = plan.beginning if self.state.cause is Cause.STARTED else Beginning.BOOT
            start = self._bring_up(plan, cloned=plan.origin is not None, beginning=beginning)
            await self._come_up(plan, start)
        except Exception as error:
            await self._give_up(error)
            raise

    async def _give_up(self, error: Exception) -> None:
        """A start failed: end what there is of it, and go back to where the machine was."""
        cause = self.state.cause
        await self._clean_up()
        self._advance(Cause.NOT_BOOTED, failure=failure_of(error))
        if cause is not Cause.STARTED:  # whoever asked for it is told
            self._consider_restart()

    def _connect(self, vm: Resident) -> None:
        self.outputs.connect(vm)
        sock = vm.connect(Port.CHANNEL)
        if sock is None:
            return
        self._channel = Channel(sock)
        self.agent = Agent(self._channel)
        self.on_channel(self._channel)

    def _bring_up(
        self, plan: BootPlan, *, cloned: bool = False, beginning: Beginning = Beginning.BOOT
    ) -> BringUp:
        assert self.vm is not None
        return BringUp(
            self.name,
            self.place,
            self.vm,
            self.agent,
            plan,
            self.outputs,
            self.shares,
            self.vsock,
            self.emit,
            cloned=cloned,
            beginning=beginning,
            cable=self.card.cable,
        )

    async def join(self, network: str) -> None:
        """Plug the network card of a VM that runs into another network; its guest has another address then.

        Args:
            network: its name.

        Raises:
            StateError: it does not run; ``state.network``: it has no card for networks of Atoll.
            NetworkError: the network cannot be had: the VM is on its former one.
        """
        async with self._unheld():
            await self.card.join(network, self.require(Phase.RUNNING, "moved").free_card)

    async def _free_card(self) -> None:
        async with self._lock:
            if self.vm is not None and self.state.phase is Phase.RUNNING:
                await self.vm.free_card()

    async def _come_up(self, plan: BootPlan, start: BringUp | None = None) -> None:
        """From the spawn to a machine that runs."""
        vm = self.vm
        assert vm is not None
        self._spawn(attached(vm))  # loads what the monitor needs while the guest boots
        start = start or self._bring_up(plan)
        await start.run(self._began)
        self._advance(Cause.BOOTED)
        start.reached("running")
        self._spawn(self.card.ports.begin())
        self._spawn(self._watch(vm))
        self._spawn(self._keep_time())

    async def _clean_up(self) -> None:
        """Kill the VM if it still runs, and let go of all that belonged to it."""
        vm, self.vm = self.vm, None
        channel, self._channel = self._channel, None
        self.agent = self._held = None
        self.on_channel(None)
        if channel is not None:
            channel.close()
        await self.card.leave()
        if vm is not None:
            await vm.close()
            self.emit(VmExited(vm=self.name, status=vm.process.poll() or 0))
        await self.vsock.forget()
        await self.shares.forget()
        self.outputs.disconnect()

    async def _watch(self, vm: Resident) -> None:
        """Until the guest ends by itself: name the reason, and start it again if that is wished."""
        await attached(vm)
        status = await vm.wait()
        async with self._lock:
            if self.vm is not vm or self.state.phase is Phase.STOPPING:
                return
            self.outputs.drain()
            console, said = self.outputs.boot_text(), hypervisor_said(self.place)
            cause, failure = ended(self.name, vm.departure, status, console=console, said=said)
            await self._clean_up()
            if cause is Cause.REBOOTED:
                self._advance(cause)
                self._starting = self._spawn(self._boot())
                return
            if restart.settled(self.state, time.time()):
                self.state = msgspec.structs.replace(self.state, restarts=0)
            self._advance(cause, failure=failure)
            self._consider_restart()

    def _consider_restart(self) -> None:
        with contextlib.suppress(StoreError):  # without a plan there is nothing to start again
            wait = restart.delay(self._read_plan().policy, self.state)
            if wait is not None and self._restarting is None:
                self._restarting = self._spawn(self._restart_after(wait))

    async def _restart_after(self, wait: float) -> None:
        await asyncio.sleep(wait)
        async with self._lock:
            self._restarting = None
            try:
                self._advance(Cause.RESTARTED)
                self._starting = self._spawn(self._boot())
            finally:
                self._announce()

    def _cancel_restart(self) -> None:
        task, self._restarting = self._restarting, None
        if task is not None:
            task.cancel()
            self._announce()

    async def _finish_stop(self) -> None:
        suspending = self.state.suspending
        await self.stop(force=suspending, timeout=30.0, suspended=suspending)

    async def _correct(self, vm: Resident) -> None:
        """Bring the record in line with what the hypervisor says."""
        paused = await vm.paused()
        if paused and self.state.phase is Phase.RUNNING:
            self._advance(Cause.PAUSED)
        elif not paused and self.state.phase is Phase.PAUSED:
            self._advance(Cause.RESUMED)

    async def _set_clock(self) -> None:
        if self.agent is not None:
            await clock.set_clock(self.agent)

    async def _keep_time(self) -> None:
        """As long as this VM runs, set the guest's clock when it is off, as after the host slept."""
        vm = self.vm
        while self.vm is vm:
            await asyncio.sleep(clock.PERIOD)
            if self.state.phase is Phase.RUNNING and self.agent is not None:
                await clock.correct(self.agent)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_seen)
        return task


def _frozen(files: Files) -> Frozen:
    """What another process holds open (proc(5), ``/proc/PID/fd``)."""
    opened = Path(f"/proc/{files.pid}/fd")
    return Frozen(
        ram=opened / str(files.ram),
        state=opened / str(files.state),
        more=opened / str(files.more) if files.more >= 0 else None,
        devices=files.devices,
        own=True,
    )


def _seen(task: asyncio.Task[None]) -> None:
    """Its failure is in the state; a failure that is no error of Atoll is a bug and goes to the log."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, AtollError):
        traceback.print_exception(error)
