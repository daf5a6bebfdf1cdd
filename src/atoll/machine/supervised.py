"""A machine behind its supervisor: found, reached, brought up and ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager

from atoll import store
from atoll.config import Config, load
from atoll.errors import AtollError, ChannelError
from atoll.events import Emit, ignore
from atoll.guest.agent import Agent
from atoll.guest.commands import Commands
from atoll.machine import registry, suspending, undoing
from atoll.machine.inherited import defaults, inherited
from atoll.machine.launching import reach, summon
from atoll.machine.planning import make_plan
from atoll.machine.registry import Named
from atoll.machine.restoring import require_fit, resumed, thawed
from atoll.machine.spec import MachineSpec
from atoll.paths import Paths, VmPaths
from atoll.vm.bootplan import BootPlan
from atoll.vm.chain import read_chain, require_files
from atoll.vm.client import Control
from atoll.vm.messages import Files, Status, Stopped
from atoll.vm.network import catalog
from atoll.vm.state import Phase, State, StateError

__all__ = ["AT_REST", "Supervised", "plan_start", "woken"]

#: Attempts to reach a supervisor: one that is found may be about to leave.
_ATTEMPTS = 20

#: Seconds that a supervisor has to record that its guest is gone.
_RECORD_GRACE = 2.0

#: Seconds for a machine to be written down, before it is said to stand still.
_HELD = 60.0

#: In which there is no VM.
AT_REST = (Phase.STOPPED, Phase.FAILED, Phase.CREATED, Phase.SUSPENDED)


def plan_start(config: Config, machine: Named, emit: Emit) -> None:
    """Say what a machine at rest is to run, and bring to an end what was cut off.

    Raises:
        StoreError: it has lost its disk; or it cannot be written.
        AtollError: as ``make_plan``.
    """
    suspending.discard(machine)
    undoing.settle(machine, emit)
    require_files(machine.place, read_chain(machine.place))
    plan = make_plan(config, machine.name, machine.place, machine.spec, emit)
    store.write_record(machine.place.boot, plan)


@contextmanager
def woken(config: Config, machine: Named, emit: Emit = ignore) -> Iterator[Files]:
    """What a suspended machine goes on from, held open by this process; it is planned to.

    Raises:
        StoreError: ``store.corrupt``: it cannot be read.
        StateError: as ``require_fit``.
    """
    undoing.settle(machine, emit)
    kept = suspending.read(machine.place)
    require_fit(kept, config)
    with thawed(kept) as files:
        plan = store.read_record(kept.place.plan, BootPlan)
        store.write_record(machine.place.boot, resumed(machine, plan))
        yield files


class Supervised(Commands):
    """A machine of this user, by its name. Nothing is done before a method is called.

    Args:
        name: of the machine.
        config: resolved settings; by default those of this user.
        on_event: told of everything that happens, see ``atoll.events``.
    """

    def __init__(self, name: str, *, config: Config | None = None, on_event: Emit = ignore) -> None:
        super().__init__(on_event)
        self.name = name
        self._config = config or load().config
        self._control: Control | None = None
        self._following: asyncio.Task[None] | None = None
        self._preferred: tuple[dict[str, str], str | None, str | None] = ({}, None, None)

    @property
    def _paths(self) -> Paths:
        return self._config.paths

    # Its life.

    async def start(self, *, discard: bool = False) -> Status:
        """Bring the machine up and wait until it is ready; returns at once if it is.

        One that is suspended goes on where it was.

        Args:
            discard: boot a machine that is suspended from its disk, as after a power cut.

        Raises:
            StoreError: there is no such machine; ``store.corrupt``: what it was cannot be read.
            BootError: it did not come up; it is as it was before.
        """
        while True:
            async with self._changing() as machine:
                self._adopt_defaults(machine.spec)
                if machine.state.phase is Phase.SUSPENDED and not discard:
                    return await self._wake(machine)
                if not machine.state.active:
                    await asyncio.to_thread(plan_start, self._config, machine, self._emit)
                    self._adopt_defaults(machine.spec)  # what it takes over of this host is known now
                control = await self._connect(machine.place)
            started = await self._bring_up(control, may_leave=not machine.state.active)
            if started is not None:
                return started

    async def _wake(self, machine: Named) -> Status:
        """Have a suspended machine go on; it stays suspended if it does not."""
        with ExitStack() as stack:
            files = await asyncio.to_thread(stack.enter_context, woken(self._config, machine, self._emit))
            self._adopt_defaults(machine.spec)
            status = await self._go_on(files)
        await asyncio.to_thread(suspending.sweep, machine.place)
        return status

    async def _bring_up(
        self, control: Control, files: Files | None = None, *, may_leave: bool
    ) -> Status | None:
        """Have the supervisor start; None if it was about to leave, which it may: there will be another."""
        await self._follow(control)
        try:
            return await control.start(files)
        except ChannelError:
            if not may_leave or not control.broken:
                raise
            await self.close()
            return None

    async def _go_on(self, files: Files) -> Status:
        """Bring a machine at rest up where it was written down; its plan says what it is then.

        Args:
            files: held open by this process; the RAM is the machine's own afterwards.

        Raises:
            StateError: it is not at rest.
            BootError: it does not go on; it is as it was before.
        """
        while True:
            control = await self._connect(self.find().place)
            started = await self._bring_up(control, files, may_leave=True)
            if started is not None:
                return started

    async def stop(self, *, force: bool = False, timeout: float = 30.0) -> Stopped:  # noqa: ASYNC109
        """End the guest in order within ``timeout`` seconds, else or with ``force`` by force."""
        machine = registry.find(self._paths, self.name)
        active = machine.state.active
        control = await (self._connect if active else self._present)(machine.place)
        if control is None:
            return Stopped(())
        await self._follow(control)
        return await control.stop(force=force, timeout=timeout)

    async def restart(self, *, force: bool = False, timeout: float = 30.0) -> Status:  # noqa: ASYNC109
        """Stop and start it, with what ``edit`` changed meanwhile."""
        await self.stop(force=force, timeout=timeout)
        await self.close()
        return await self.start()

    async def remove(self, *, force: bool = False) -> None:
        """Remove it with its disk; with ``force`` also while it runs.

        Raises:
            UsageError: ``usage.reserved``: it is a machine of Atoll's own.
            StateError: it is not at rest.
        """
        registry.require_users(self.find(), "removed")
        await self._discard(force=force)

    async def _discard(self, *, force: bool) -> None:
        """``remove``, whoever's it is."""
        if force:
            with contextlib.suppress(ChannelError):
                await self.stop(force=True)
            await self.close()
        async with self._changing() as machine:
            await asyncio.to_thread(registry.forget, self._paths, machine)
        await asyncio.to_thread(catalog.forget_machine, self._paths, machine.spec.id)

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Named]:
        """The machine, which nobody else changes meanwhile; the wait for it does not hold the event loop."""
        change = registry.change(self._paths, self.name)
        entering = asyncio.ensure_future(asyncio.to_thread(change.__enter__))
        try:
            machine = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The thread waits on all the same: what it gets is given back at once.
            entering.add_done_callback(lambda done: done.exception() or change.__exit__(None, None, None))
            raise
        try:
            yield machine
        finally:
            change.__exit__(None, None, None)

    # What it is.

    def find(self) -> Named:
        """What was asked for, and what is. Raises ``StoreError``: there is no such machine."""
        return registry.find(self._paths, self.name)

    @property
    def state(self) -> State:
        """What it does now. Raises as ``find``."""
        return self.find().state

    @property
    def spec(self) -> MachineSpec:
        """What was asked for. Raises as ``find``."""
        return self.find().spec

    # Its connection.

    def prefer(
        self, *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str | None = None
    ) -> None:
        """Say what commands get that say nothing themselves, in the place of what the machine's spec says."""
        self._preferred = (dict(env or {}), workdir, user)

    async def connect(self) -> None:
        """Connect to the running machine.

        Raises:
            StateError: it is not running, or is paused: nothing in it would answer.
        """
        await self._settled()
        await self._active("used")
        if self.state.phase is Phase.PAUSED:
            message = f"{self.name} is paused: nothing in it goes on"
            raise StateError(message, code="paused", hint=f"`atoll resume {self.name}` lets it go on")

    async def _settled(self) -> None:
        """Wait, for a limited time, until nobody has the machine stand still who writes it down.

        What of that was cut off is put right then. Raises ``StateError`` if the machine has no VM.
        """
        control = await self._active("used")
        with contextlib.suppress(ChannelError, TimeoutError):  # it leaves when the machine was suspended
            async with asyncio.timeout(_HELD):
                await control.wait_for(*Phase)

    async def close(self) -> None:
        """Let go of the connection; the machine goes on. Closing twice is fine."""
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        control, self._control = self._control, None
        if control is not None:
            control.close()

    @property
    def control(self) -> Control:
        """The connection to its supervisor, once ``connect`` or ``start`` was called."""
        assert self._control is not None, "connect first"
        return self._control

    async def _reach(self) -> None:
        if self._control is None or self._control.broken:
            await self.connect()

    def _reached(self) -> Agent:
        return self.control.agent

    async def _explain(self, error: ChannelError) -> AtollError:
        """What is behind a channel that broke: the machine's own record says it best.

        The connection to the supervisor is kept if it is whole: others may wait for answers on it.
        """
        supervised = self._control is not None and not self._control.broken
        if not supervised:
            await self.close()
        with contextlib.suppress(AtollError, TimeoutError):
            await self._recorded()
        with contextlib.suppress(AtollError):
            state = self.state
            if not state.active or state.phase is Phase.STARTING:
                failure = state.failure
                hint = failure.hint if failure else f"`atoll start {self.name}` starts it"
                message = failure.message if failure else f"{self.name} is {state.phase}: {state.cause}"
                return StateError(message, code="gone", hint=hint)
            if supervised and error.code == "channel.gone":
                message = f"{self.name} has rebooted meanwhile: {state.cause}"
                return StateError(message, code="gone", hint="what ran in it is gone; run it again")
        return error

    async def _recorded(self) -> None:
        """Wait until the end of the guest is on record, which its clients are told of before."""
        async with asyncio.timeout(_RECORD_GRACE):
            if self._control is not None:
                await self._control.wait_for(Phase.STARTING, *AT_REST)

    async def _active(self, done: str) -> Control:
        """A connection to the supervisor of a machine that has a VM."""
        machine = registry.find(self._paths, self.name)
        if not machine.state.active:
            message = f"{self.name} is {machine.state.phase}: it cannot be {done}"
            raise StateError(message, code="not_running", hint=f"`atoll start {self.name}` starts it")
        self._adopt_defaults(machine.spec)
        return await self._connect(machine.place)

    def _adopt_defaults(self, spec: MachineSpec) -> None:
        env, workdir, user = self._preferred
        place = self._paths.machine(self.name)
        self._defaults = defaults(place)
        self._env = {**inherited(place).environment, **spec.env, **env}
        self._workdir = workdir or (spec.workdir or None)
        self._user = user or (spec.user or None)

    async def _present(self, place: VmPaths) -> Control | None:
        """The supervisor of a machine at rest, which may be about to start it again; a new one is of no use.

        Its lock tells nothing here: another command may hold it to keep the machine at rest.
        """
        if self._control is not None and not self._control.broken:
            return self._control
        await self.close()
        sock = reach(place)
        if sock is None:
            return None
        control = Control(sock)
        try:
            await control.status()
        except ChannelError:
            control.close()
            return None
        self._control = control
        return control

    async def _connect(self, place: VmPaths) -> Control:
        """The supervisor that is there, or a new one."""
        if self._control is not None and not self._control.broken:
            return self._control
        await self.close()
        for attempt in range(_ATTEMPTS):
            sock = reach(place) or summon(place)
            control = Control(sock)
            try:
                await control.status()
            except ChannelError:
                control.close()  # it was about to leave, or lost against another one that is about to listen
                await asyncio.sleep(0.01 * (attempt + 1))
                continue
            self._control = control
            return control
        hint = f"see {place.log('supervisor')}"
        raise StateError(f"{self.name}: its supervisor cannot be reached", code="supervisor", hint=hint)

    async def _follow(self, control: Control) -> None:
        """Pass the supervisor's events on to this machine's listener."""
        if self._emit is ignore or self._following is not None:
            return
        begun = asyncio.Event()

        async def follow() -> None:
            with contextlib.suppress(AtollError):
                async for event in control.events(begun):
                    self._emit(event)

        self._following = asyncio.create_task(follow())
        await asyncio.wait(
            [asyncio.ensure_future(begun.wait()), self._following], return_when=asyncio.FIRST_COMPLETED
        )
