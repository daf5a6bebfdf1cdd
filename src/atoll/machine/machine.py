"""A named machine, as programs use it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from atoll import store
from atoll.config import Config, load, override
from atoll.errors import AtollError, ChannelError
from atoll.events import Emit, ignore
from atoll.guest.agent import Agent
from atoll.guest.commands import Commands
from atoll.guest.copying import Copied, receive_tree, send_tree
from atoll.image.catalog import ImageManifest
from atoll.machine import editing, live, registry
from atoll.machine.creation import Wishes, create, parse_disk
from atoll.machine.forking import Child, fork
from atoll.machine.launching import reach, summon
from atoll.machine.planning import make_plan
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec, Share, check_guest_path
from atoll.paths import Paths, VmPaths
from atoll.vm.chain import read_chain, require_files
from atoll.vm.client import Control
from atoll.vm.messages import Files, MemoryState, Stats, Status, Stopped
from atoll.vm.state import Phase, State, StateError

__all__ = ["Machine"]

#: Attempts to reach a supervisor: one that is found may be about to leave.
_ATTEMPTS = 20

#: Seconds that a supervisor has to record that its guest is gone.
_RECORD_GRACE = 2.0

_AT_REST = (Phase.STOPPED, Phase.FAILED, Phase.CREATED)


class Machine(Commands):
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

    @classmethod
    async def create(
        cls,
        name: str,
        *,
        distro: str = "debian",
        image: str | None = None,
        cpus: int | None = None,
        memory: str | int | None = None,
        disk: str | int = "16G",
        init: str = "systemd",
        user: str = "",
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        mounts: Sequence[str] = (),
        ports: Sequence[str] = (),
        network: bool = True,
        kernel: str | Path | None = None,
        accel: str | None = None,
        restart: str = "no",
        ready_probe: str | None = None,
        boot_timeout: float | None = None,
        config: Config | None = None,
        on_event: Emit = ignore,
    ) -> Self:
        """Make a machine; it is not started.

        Args:
            name: of the machine.
            distro: ``debian`` or ``debian:SUITE``: what its root is.
            image: an image by its name, in the place of ``distro``.
            cpus: vCPUs.
            memory: such as ``"512M"``, or bytes.
            disk: what it may write at most, such as ``"16G"``, or bytes.
            init: ``systemd`` or ``minimal``.
            user: the user whom commands are run as, made at the first start; root if empty.
            env: variables of every command.
            workdir: directory in which commands start.
            mounts: ``HOST:GUEST[:ro]`` each.
            ports: ``[ADDRESS:]HOST:GUEST[/udp]`` each.
            network: whether it has a network.
            kernel: a kernel to boot instead of Debian's cloud kernel.
            accel: ``auto``, ``kvm`` or ``tcg``.
            restart: ``no``, ``on-failure`` or ``always``: what follows when the guest ends by itself.
            ready_probe: a TCP port or a shell command that must work before it counts as running.
            boot_timeout: seconds in which it must be up.
            config: resolved settings; by default those of this user.
            on_event: told of everything that happens.

        Raises:
            StoreError: ``store.already_exists``.
            UsageError, ConfigError: a value is wrong.
            ImageError, PreflightError: its image cannot be had.
        """
        flags = {
            "cpus": cpus,
            "memory": _size(memory),
            "accel": accel,
            "boot_timeout": boot_timeout,
            "kernel": kernel,
        }
        settings = load(flags).config if config is None else override(config, flags)
        wishes = Wishes(
            distro=distro,
            image=image,
            disk=parse_disk(disk),
            init=init,
            user=user,
            env=dict(env or {}),
            workdir=workdir,
            mounts=tuple(mounts),
            ports=tuple(ports),
            network=network,
            restart=restart,
            ready_probe=ready_probe,
        )
        await asyncio.to_thread(create, settings, name, wishes, on_event)
        return cls(name, config=settings, on_event=on_event)

    async def start(self) -> Status:
        """Bring the machine up and wait until it is ready; returns at once if it is.

        Raises:
            StoreError: there is no such machine.
            BootError: it did not come up; it is as it was before.
        """
        while True:
            async with self._changing() as machine:
                self._adopt_defaults(machine.spec)
                if not machine.state.active:
                    await asyncio.to_thread(self._plan, machine)
                control = await self._connect(machine.place)
            started = await self._bring_up(control, may_leave=not machine.state.active)
            if started is not None:
                return started

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

    async def fork(self, *names: str) -> tuple[Self, ...]:
        """Copy the running machine, RAM, processes and disk, to others that go on from the same instant.

        It stands still for a moment and goes on. The others have names, addresses and ids of their own, and
        none of its ports.

        Args:
            names: of the new machines.

        Raises:
            StoreError: ``store.already_exists``: a name is taken.
            StateError: it has no VM; ``state.share_busy``: a share is in use in it.
            BootError: it cannot be written down, or a copy does not come up: none is left, and it goes on.
        """
        async with self._changing() as machine:
            control = await self._active("forked")
            await self._follow(control)
            others = {name: type(self)(name, config=self._config, on_event=self._emit) for name in names}
            children = {
                name: Child(other._go_on, partial(other.remove, force=True))  # noqa: SLF001 - of this class
                for name, other in others.items()
            }
            await fork(self._paths, machine, control, children)
        return tuple(others.values())

    def _plan(self, machine: Named) -> None:
        require_files(machine.place, read_chain(machine.place))
        plan = make_plan(self._config, machine.name, machine.place, machine.spec, self._emit)
        store.write_record(machine.place.boot, plan)

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

    async def pause(self) -> None:
        """Stop its vCPUs. Raises ``StateError`` if it is not running."""
        await (await self._active("paused")).pause()

    async def resume(self) -> None:
        """Let its vCPUs go on; the guest's clock is set. Raises ``StateError`` if it is not paused."""
        await (await self._active("resumed")).resume()

    async def remove(self, *, force: bool = False) -> None:
        """Remove it with its disk; with ``force`` also while it runs.

        Raises:
            StateError: it is not at rest.
        """
        if force:
            with contextlib.suppress(ChannelError):
                await self.stop(force=True)
            await self.close()
        async with self._changing() as machine:
            await asyncio.to_thread(registry.forget, self._paths, machine)

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

    async def status(self) -> Status:
        """What its supervisor says. Raises ``StateError`` if it has none."""
        return await (await self._active("asked")).status()

    async def stats(self) -> Stats:
        """What it uses. Raises ``StateError`` if it is not running."""
        return await (await self._active("measured")).stats()

    async def memory(self, target: str | int | None = None) -> MemoryState:
        """Its memory; with ``target``, such as ``"256M"`` or bytes, its balloon is set first.

        Raises:
            StateError: it is not running, or cannot be left so much or so little.
        """
        count = None if target is None else live.parse_target(target)
        return await (await self._active("asked for its memory")).memory(count)

    # What it shares, and how large it is: also while it runs.

    async def share(self, host: str | Path, guest: str, *, read_only: bool = False) -> Share:
        """Share a directory of the host, now if it runs and at each start from now on.

        Args:
            host: the directory.
            guest: its place in the machine, made where it is missing.
            read_only: the machine cannot write it.

        Raises:
            UsageError: there is no such directory, or its place is taken.
            PreflightError: virtiofsd is missing.
            StateError: it cannot be shared, or the machine is paused.
        """
        share = live.make_share(host, guest, read_only=read_only)
        async with self._changing() as machine:
            spec = live.with_share(machine.spec, share)
            if machine.state.active:
                await (await self._connect(machine.place)).add_share(share)
                live.replan(machine.place, spec)
            registry.save(machine, spec)
        return share

    async def unshare(self, guest: str) -> None:
        """Take the share at ``guest`` away. Raises as ``share``; ``state.share_busy``: it is in use."""
        async with self._changing() as machine:
            spec = live.without_share(machine.spec, guest)
            if machine.state.active:
                control = await self._connect(machine.place)
                place = check_guest_path(guest)
                if any(share.guest == place for share in await control.shares()):
                    await control.remove_share(place)
                live.replan(machine.place, spec)
            registry.save(machine, spec)

    async def resize(
        self,
        *,
        cpus: int | str | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
    ) -> dict[str, str]:
        """Change how large it is; for each of what was asked for ``"now"`` or ``"at the next start"``.

        Args:
            cpus: vCPUs.
            memory: such as ``"1G"``, or bytes.
            disk: likewise; it can only grow.

        Raises:
            UsageError, ConfigError: a value is wrong.
            StateError: the running machine refuses it; it is recorded all the same.
        """
        wanted = [
            what for what, size in (("cpus", cpus), ("memory", memory), ("disk", disk)) if size is not None
        ]
        async with self._changing() as machine:
            spec = live.sized(self._config, machine.spec, cpus=cpus, memory=_size(memory))
            if disk is not None:
                grown = await asyncio.to_thread(editing.grow_disk, machine, disk)
                spec = msgspec.structs.replace(spec, disk=grown.disk)
            registry.save(machine, spec)
            if machine.state.phase is not Phase.RUNNING:
                return dict.fromkeys(wanted, live.LATER)
            live.replan(machine.place, spec)
            now = await (await self._connect(machine.place)).resize(
                **{what: getattr(spec, what) for what in wanted}
            )
            return {what: live.NOW if now[what] else live.LATER for what in wanted}

    async def wait(self, *phases: Phase, timeout: float | None = None) -> State:  # noqa: ASYNC109
        """Wait until it is in one of ``phases``; at rest by default.

        Raises:
            TimeoutError: ``timeout`` seconds have passed.
        """
        wanted = phases or _AT_REST
        async with asyncio.timeout(timeout):
            while (state := self.state).phase not in wanted:
                try:
                    control = await self._active("waited for")
                    await control.wait_for(*wanted)
                except (ChannelError, StateError):
                    await self.close()
                    await asyncio.sleep(0.02)
            return state

    # Its files.

    async def copy_in(
        self, source: str | Path, target: str, *, archive: bool = False, user: str | None = None
    ) -> Copied:
        """Copy a file or directory of the host into the machine, named as ``cp -r`` names it.

        Args:
            source: on the host.
            target: in the machine; a relative path begins where commands do.
            archive: keep the owners' numbers.
            user: who shall own it; the machine's user by default.

        Raises:
            StateError: it is not running.
            StoreError: the source cannot be read.
            GuestError: it cannot be written.
        """
        await self.connect()
        owner = None if archive else user or self._user or "root"
        place = await self._absolute(target)
        return await send_tree(self._reached(), source, place, user=owner, emit=self._emit)

    async def copy_out(self, source: str, target: str | Path, *, archive: bool = False) -> Copied:
        """Copy a file or directory of the machine to the host; nothing is written but below ``target``.

        Args:
            source: in the machine; a relative path begins where commands do.
            target: on the host.
            archive: keep all modes and, as root, owners.

        Raises:
            StateError: it is not running.
            GuestError: the source cannot be read.
            StoreError: it cannot be written.
        """
        await self.connect()
        return await receive_tree(
            self._reached(), await self._absolute(source), target, archive=archive, emit=self._emit
        )

    async def _absolute(self, path: str) -> str:
        if path.startswith("/"):
            return path
        start = (await self.run(["pwd"], check=True)).stdout.removesuffix("\n").rstrip("/")
        return f"{start}/{path}" if path else f"{start}/."

    @property
    def shell(self) -> str:
        """The shell of its image. Raises as ``find``."""
        return store.read_record(self.find().place.image, ImageManifest).shell

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
        await self._active("used")
        if self.state.phase is Phase.PAUSED:
            message = f"{self.name} is paused: nothing in it goes on"
            raise StateError(message, code="paused", hint=f"`atoll resume {self.name}` lets it go on")

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
                await self._control.wait_for(Phase.STARTING, *_AT_REST)

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
        self._env = {**spec.env, **env}
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


def _size(size: str | int | None) -> str | None:
    return f"{size / (1 << 20):f}M" if isinstance(size, int) else size
