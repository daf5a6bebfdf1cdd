"""A disposable VM: made at entry, gone at exit, whatever happens in between."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from atoll import runtime
from atoll.config import Config, NetworkKind, load, override
from atoll.errors import AtollError, ChannelError, UsageError, innermost
from atoll.events import Emit, ignore
from atoll.guest.agent import Agent
from atoll.hypervisor.model import Forward
from atoll.paths import NetworkPaths
from atoll.sandbox import limits, warm
from atoll.sandbox.imaged import Imaged
from atoll.sandbox.keeping import Keeper
from atoll.sandbox.limits import OnIdle
from atoll.template import falling_back
from atoll.vm.autoports import parse_auto_ports
from atoll.vm.forking import fork
from atoll.vm.life import Vm
from atoll.vm.network.attachment import SANDBOXES
from atoll.vm.network.egress import parse_egress, require_own
from atoll.vm.network.linked import Linked
from atoll.vm.spawning import Spawned
from atoll.vm.state import StateError

if TYPE_CHECKING:
    from atoll.sandbox.publishing import Published
    from atoll.sandbox.volumes import Mounted, Wanted
    from atoll.snapshot.catalog import Snapshot
    from atoll.vm.bootplan import AutoPorts
    from atoll.vm.following import Following
    from atoll.vm.network.attachment import PortState
    from atoll.vm.vsock import VsockDevice

__all__ = ["Sandbox"]


class Sandbox(Linked, Imaged):
    """A fresh Linux VM with a root of its own, removed when it is closed or when this process ends.

    Where its image says how it wants to be run, commands get the image's variables, start in its directory
    and are its user's, unless something else is said; ``run_image`` runs what it is made to run.

    Args:
        image: what its root is; built on first use.
        cpus: vCPUs.
        memory: such as ``"512M"``, or bytes.
        accel: ``auto``, ``kvm`` or ``tcg``.
        kernel: a kernel to boot instead of Debian's cloud kernel.
        env: variables of every command.
        workdir: directory in which commands start; their user's home by default.
        cold: boot the VM instead of starting it from a template.
        platform: of the image, such as ``"linux/arm64"``; the host's by default. Programs of another one are
            emulated in it.
        full: for another platform run a whole VM of it instead, which is emulated with its kernel.
        user: who runs commands: ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``; root by default.
        volumes: ``HOST:GUEST`` or ``HOST:GUEST:ro`` is a directory of this host; it is booted then, and
            cannot be copied. ``GUEST`` alone is one of its own, made where it is missing.
        ports: of this host that lead to it, ``[ADDRESS:]HOST[:GUEST][/udp]`` each, where HOST may be 0 for
            any that is free; or ``unix:PATH:GUEST``. Without a network of Atoll's they are of TCP alone.
            Copies of it have none.
        publish_all: likewise any free port for each that its image exposes.
        template: one that ``atoll template build`` made: the sandbox goes on where that was frozen, with its
            image, its processes and, unless ``memory`` says more, its size.
        snapshot: name or id of one that ``snapshot`` made: the sandbox goes on where that was, with all that
            was in it.
        network: ``own``, ``slirp``, ``none``, or the name of a network (``atoll.Network``); True for what the
            settings say, or else ``own``.
        egress: what it may reach, lines each of which is a rule or the name of a preset, such as
            ``["registries", "allow tcp *.example.org:443"]``; anything by default. It needs a network of
            Atoll.
        disk: how much can be written to its root, such as ``"256M"``, or bytes; half its memory by default.
        processes: how many processes and threads it may have, beside those of the kernel.
        command_timeout: seconds after which ``run`` ends a command, where it is not told another limit.
        ttl: seconds after which it is closed.
        idle_timeout: seconds without a request, and without a command that runs, until ``on_idle`` is done.
        on_idle: ``stop`` closes it; ``pause`` has it stand still until the next request.
        labels: whatever the program wants to keep with it.
        vsock: give it a virtio socket; a path is a unix socket where programs of the host connect. It is
            booted then, and cannot be copied.
        vsock_ports: ports of the host that the guest may connect to over it, and the unix socket that serves
            each.
        auto_ports: have the host's 127.0.0.1 have each port, too, that a program of it listens on, or another
            one where that is taken: ``AutoPortOpened`` tells. Or ranges of those that it is to have, such as
            ``"3000-3999,8080"``, by default from 1024 on.
        auto_ports_deny: ranges of those that it is not to have.
        ca: with a network, it takes over this host's added certificates and its proxies; None for what the
            settings say.
        config: resolved settings; by default those of this user. The arguments above win over them.
        on_event: told of everything that happens, see ``atoll.events``.
        spawned: a VM of ``image`` that runs already; it is taken over.

    Attributes:
        keeper: keeps its time, once it is open.

    Raises:
        ConfigError: a value is wrong.
        UsageError: ``usage.limit``: a limit is none; ``usage.template``, ``usage.snapshot``: the template or
            snapshot says that already; ``usage.rule``, ``usage.egress``: that is no rule, or none can be
            enforced; ``usage.vsock``: a port or path is none, or a template is named, too;
            ``usage.network``: that is no name; ``usage.port``: that are no ports; ``usage.mount``: that is no
            volume.
        NetworkError: ``network.unknown``: there is no network of that name.
    """

    def __init__(
        self,
        image: str = "debian",
        *,
        cpus: int | None = None,
        memory: str | int | None = None,
        accel: str | None = None,
        kernel: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        cold: bool | None = None,
        platform: str | None = None,
        full: bool | None = None,
        template: str | None = None,
        snapshot: str | None = None,
        network: bool | str = False,
        egress: str | Sequence[str] | None = None,
        disk: str | int | None = None,
        processes: int | None = None,
        command_timeout: float | None = None,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        on_idle: OnIdle = "stop",
        labels: Mapping[str, str] | None = None,
        vsock: bool | str | Path = False,
        vsock_ports: Mapping[int, str | Path] | None = None,
        auto_ports: bool | str = False,
        auto_ports_deny: str = "",
        ca: bool | None = None,
        volumes: Sequence[str] = (),
        ports: Sequence[str] = (),
        publish_all: bool = False,
        config: Config | None = None,
        on_event: Emit = ignore,
        spawned: Spawned | None = None,
    ) -> None:
        wish = network if network and network != NetworkKind.NONE else None
        if template is not None or snapshot is not None:  # which of Atoll's networks it is on can be chosen
            wish = wish if not isinstance(wish, str) or wish in set(NetworkKind) else None
        fixed: dict[str, object] = {
            "cpus": cpus,
            "accel": accel,
            "kernel": kernel,
            "cold": cold,
            "platform": platform,
            "full": full,
            "network": wish,
        }
        self._volumes: Wanted | None = None
        self._mounted: Mounted | None = None
        if volumes:
            from atoll.sandbox.volumes import parse as parse_volumes  # noqa: PLC0415 - rarely wanted

            self._volumes = parse_volumes(volumes)
            fixed["volumes"] = volumes if self._volumes.shares else None
        if snapshot is not None:
            warm.refuse_beside_snapshot({**fixed, "memory": memory, "template": template})
        elif template is not None:
            warm.refuse_what_it_fixes(fixed)
        self._vsock = None
        self._device: VsockDevice | None = None
        self._auto_ports = (auto_ports, auto_ports_deny)
        self._rule = parse_auto_ports(auto_ports, auto_ports_deny)
        self._following: Following | None = None
        self._ports = (tuple(ports), publish_all)
        self._published: Published | None = None
        self._forwards: tuple[Forward, ...] = ()
        if ports:
            from atoll.sandbox import publishing  # noqa: PLC0415 - rarely wanted

            self._forwards = publishing.parse(ports)
        if vsock or vsock_ports:
            from atoll.sandbox.vsock import parse  # noqa: PLC0415 - rarely wanted

            self._vsock = parse(vsock, vsock_ports, template=template, snapshot=snapshot)
        size = f"{memory / (1 << 20):f}M" if isinstance(memory, int) else memory
        flags: dict[str, Any] = {
            "cpus": cpus,
            "memory": size,
            "accel": accel,
            "kernel": kernel,
            "cold": cold,
            "platform": platform,
            "full": full,
            "ca": ca,
        }
        self._config = load(flags).config if config is None else override(config, flags)
        super().__init__(on_event, env=env, workdir=workdir, user=user, timeout=command_timeout)
        self._vm = Vm(spawned, on_event) if spawned else None
        self._template = template
        self._snapshot = snapshot
        self._id = ""
        self._copying = asyncio.Lock()
        self._memory = self._config.memory if memory is not None else None
        found, self._lan = runtime.named_network(self._config, network)
        self._network = runtime.choose_network(self._config, wish=found)
        self._egress = None if egress is None else parse_egress(egress)
        if snapshot is None and template is None and spawned is None:
            require_own(self._egress or (), self._network)
        self._limits = limits.parse(
            disk=disk, processes=processes, ttl=ttl, idle_timeout=idle_timeout, on_idle=on_idle
        )
        self.keeper: Keeper | None = None
        self.labels = dict(labels or {})
        self.image = image
        self.name = spawned.name if spawned else runtime.new_name()
        if spawned:
            self._know(spawned)

    start = Imaged.start_process

    @property
    def vm(self) -> Vm:
        """The VM below; for what this class does not offer."""
        if self._vm is None:
            raise UsageError("the sandbox is not open", code="state", hint="use it in a with statement")
        return self._vm

    @property
    def published(self) -> tuple[PortState, ...]:
        """The ports of this host that were asked for and lead to it, once it is open."""
        return self._published.states if self._published is not None else ()

    async def open(self) -> None:
        """Spawn the VM and wait until it is up. Nothing happens if it is.

        Raises:
            AtollError: as ``runtime.launch``; ``BootError`` names the stage that failed. Nothing is left.
        """
        if self.keeper is not None:
            return
        if self._vm is None:
            await self._launch()
        try:
            await self._inherit_at_boot()
            await self._furnish(self.vm.agent, self.vm.address)
            if self._vsock is not None:
                self._device = await self._vsock.plug_into(self.vm, self._emit)
            if self._volumes is not None:
                await self._mount(self._volumes)
            await limits.enforce(self._limits, self.vm.agent, self.files)
            if self._forwards or self._ports[1]:
                await self._publish()
            if self._rule is not None:
                await self._follow(self._rule)
        except BaseException:
            await self.close()
            raise
        self.keeper = Keeper(self._limits, self.vm, self.close)

    async def _inherit_at_boot(self) -> None:
        """Boot it, and have it take over what it is to have of this host, which is looked for meanwhile."""
        if runtime.network_of(self.vm.machine) is NetworkKind.NONE or not self._config.ca:
            await self._boot()
            return
        found, _ = await asyncio.gather(
            asyncio.to_thread(
                runtime.inherited, self._config, self.vm.machine, self.vm.attachment, emit=self._emit
            ),
            self._boot(),
        )
        if found:
            from atoll.vm.inheriting.giving import give  # noqa: PLC0415 - for those who have something to give

            self._env = {**found.environment, **self._env}
            await give(self.vm.agent, found, self.name, self._emit, throw_away=True)

    async def _boot(self) -> None:
        async def again() -> Vm:
            self._config = override(self._config, {"cold": True})
            await self._launch()
            return self.vm

        patience, paths = self._config.boot_timeout, self._config.paths
        await falling_back.boot(self.vm, again, patience=patience, paths=paths, emit=self._emit)

    def _shaping(self) -> dict[str, Any]:
        if self._vsock is None and self._volumes is None:
            return {}
        from atoll.sandbox.volumes import shaping  # noqa: PLC0415 - rarely wanted

        return shaping(self._vsock, self._volumes)

    async def _mount(self, wanted: Wanted) -> None:
        from atoll.sandbox.volumes import Mounted  # noqa: PLC0415 - rarely wanted

        self._mounted = Mounted(wanted, self.vm)
        await self._mounted.mount()

    async def _publish(self) -> None:
        from atoll.sandbox.publishing import Published, with_exposed  # noqa: PLC0415 - rarely wanted

        wanted = with_exposed(self._forwards, self._run) if self._ports[1] else self._forwards
        self._published = Published(self.vm, self._emit)
        await self._published.publish(wanted)

    async def _follow(self, rule: AutoPorts) -> None:
        from atoll.vm.following import Following  # noqa: PLC0415 - rarely wanted

        vm = self.vm
        self._following = Following(self.name, lambda: vm.agent, lambda: vm.cable, self._emit)
        await self._following.follow(rule, frozenset())

    async def _launch(self) -> None:
        """Launch beside the event loop: builds take long. A cancelled caller does not wait for them."""
        launch = _Launch(self._spawn)
        try:
            spawned = await launch.spawned()
        except asyncio.CancelledError:
            launch.abandon()
            raise
        self._vm = Vm(spawned, self._emit)
        self._know(spawned)

    def _spawn(self) -> Spawned:
        if self._snapshot is not None:
            from atoll.sandbox import reviving  # noqa: PLC0415 - not for those who start from none

            revived = reviving.launch(
                self._config, self.name, self._snapshot, lan=self._lan, egress=self._egress, emit=self._emit
            )
            self.image = revived.image
            return revived.spawned
        if self._template is None:
            return runtime.launch(
                self._config,
                self.name,
                self.image,
                network=self._network,
                lan=self._lan,
                egress=self._egress or (),
                **self._shaping(),
                emit=self._emit,
            )
        egress = self._egress or ()
        return warm.launch(
            self._config,
            self.name,
            self._template,
            self._memory,
            lan=self._lan,
            egress=egress,
            emit=self._emit,
        )

    async def close(self) -> None:
        """Remove the VM. Closing twice is fine."""
        if self.keeper is not None:
            self.keeper.stop()
        if self._device is not None:
            await self._device.forget()
        if self._following is not None:
            await self._following.close()
        if self._published is not None:
            await self._published.close()
        if self._vm is not None:
            await self._vm.close()
        if self._mounted is not None:
            await self._mounted.close()

    async def pause(self) -> None:
        """Stop the vCPUs: the guest stands still until ``resume``, and so do its clocks.

        Raises:
            BootError: the VM died.
        """
        await self._reach()
        await self.vm.freezable.pause()

    async def resume(self) -> None:
        """Let the vCPUs go on, and set the guest's clock. Raises as ``pause``."""
        await self._reach()
        await self.vm.freezable.resume()
        await self.vm.agent.step_clock(time.time_ns())

    async def set_egress(self, egress: str | Sequence[str]) -> None:
        """Change what it may reach, at once: connections that it has and may not have any more are reset.

        Args:
            egress: as for ``Sandbox``; with no line it may reach anything. Copies that are made from now on
                have it, too.

        Raises:
            UsageError: ``usage.rule``: a line is none; ``usage.egress``: its network cannot enforce it.
            NetworkError: its network does not answer.
        """
        lines = parse_egress(egress)
        await self.vm.follow(lines)
        self._egress = lines

    async def connect_vsock(self, port: int) -> socket.socket:
        """A connection to what listens at a port of AF_VSOCK in it; the socket does not block.

        Raises:
            StateError: ``state.vsock``: it has no virtio socket.
            ChannelError: ``channel.refused``: nobody listens there.
        """
        await self._reach()
        if self._device is None:
            hint = "ask for one: Sandbox(vsock=True)"
            raise StateError(f"{self.name} has no virtio socket", code="vsock", hint=hint)
        return await self._device.reach(port)

    async def _link(self) -> tuple[NetworkPaths, str]:
        """See ``Linked``."""
        await self._reach()
        return self.vm.card_place

    def _require_copyable(self) -> None:
        if self._vsock is not None:
            message = "a sandbox with a virtio socket cannot be copied"
            raise UsageError(message, code="vsock", hint="use a machine: `atoll create --vsock NAME`")
        if self._volumes is not None and self._volumes.shares:
            message = "a sandbox with a directory of the host cannot be copied"
            raise UsageError(message, code="mount", hint="copy what it needs into it: `files.write`")

    async def fork(self, count: int = 1) -> list[Self]:
        """Copy this sandbox as it runs: memory, processes and files. It goes on, and so do the copies.

        What runs in it runs in each copy, too; only this one's is attended by ``run``. A copy has a name,
        machine id and random numbers of its own, and is to be closed like any sandbox.

        Args:
            count: how many copies.

        Raises:
            UsageError: ``usage.fork``: there are to be none; ``usage.vsock``: it has a virtio socket;
                ``usage.mount``: it has a directory of the host.
            BootError: it cannot be copied, or a copy does not come up: then there is none of them.
        """
        if count < 1:
            raise UsageError(f"{count} copies of a sandbox", code="fork", hint="ask for one or more")
        self._require_copyable()
        await self._reach()
        async with self._copying:
            forked = await fork(self.vm, [runtime.new_name() for _ in range(count)], self._emit)
        copies = [self._like(child) for child in forked.children]
        try:
            async with asyncio.TaskGroup() as tasks:
                for copy in copies:
                    tasks.create_task(copy.open())
        except BaseExceptionGroup as errors:
            raise innermost(errors) from None
        finally:
            if not all(copy.vm.booted for copy in copies):
                await asyncio.gather(*(copy.close() for copy in copies))
        return copies

    async def snapshot(
        self,
        name: str,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        pause: bool = True,
    ) -> Snapshot:
        """Keep what this sandbox is: memory, processes and files. It stands still for a moment and goes on.

        ``Sandbox(snapshot=name)`` goes on from there, as often as one likes.

        Args:
            name: of the snapshot; no two of sandboxes have the same.
            description: what is said of it.
            labels: what programs keep with it.
            pause: have it stand still while its memory is copied. Else it goes on at once, if the host can do
                that: not with a template on a disk. ``Warned`` tells why it did stand still.

        Raises:
            UsageError: ``usage.snapshot``: that is no name; ``usage.state``: the sandbox was closed;
                ``usage.vsock``: it has a virtio socket; ``usage.mount``: it has a directory of the host.
            StoreError: ``store.already_exists``: there is one of that name; ``store.full``: nothing is left.
            BootError: it cannot be copied.
        """
        from atoll.sandbox import snapshots  # noqa: PLC0415 - not for those who make none
        from atoll.snapshot.storing import Wish  # noqa: PLC0415

        self._require_copyable()
        wish = Wish(name=name, description=description, labels=dict(labels or {}))
        await self._reach()
        async with self._copying:
            if self.vm.closed:
                raise UsageError("the sandbox was closed", code="state", hint="open a new one")
            self._id = self._id or os.urandom(16).hex()
            place = self.vm.attachment
            lan = place.network.name if place is not None and place.network.name != SANDBOXES else ""
            subject = snapshots.Subject(id=self._id, image=self.image, lan=lan, run=self._run)
            return await snapshots.make(
                self._config.paths, self.vm, subject, wish, self._emit, live=not pause
            )

    def _like(self, spawned: Spawned) -> Self:
        """A sandbox with the same settings."""
        return type(self)(
            self.image,
            env=self._env,
            workdir=self._workdir,
            user=self._user,
            config=self._config,
            on_event=self._emit,
            template=self._template,
            network=self._network,
            egress=self.vm.attachment.egress if self.vm.attachment is not None else None,
            auto_ports=self._auto_ports[0],
            auto_ports_deny=self._auto_ports[1],
            command_timeout=self._timeout,
            ttl=self._limits.ttl or None,
            idle_timeout=self._limits.idle_timeout or None,
            on_idle=self._limits.on_idle,
            labels=self.labels,
            spawned=replace(spawned, run=self._run, shell=self._shell),
        )

    async def _reach(self) -> None:
        if self.keeper is not None:
            await self.keeper.wake()

    def _reached(self) -> Agent:
        return self.vm.agent

    async def _explain(self, error: ChannelError) -> AtollError:
        if self.keeper is not None and self.keeper.ended:
            return self.keeper.expired(self.name)
        return await self.vm.explain(error)

    async def __aenter__(self) -> Self:
        await self.open()
        return self


class _Launch:
    """A launch in a thread of its own.

    An executor would do, but takes no work once the program's main thread has ended while others go on.
    """

    def __init__(self, work: Callable[[], Spawned]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[Spawned] = self._loop.create_future()
        self._hand_over = threading.Lock()
        self._abandoned = False
        threading.Thread(target=self._run, name="atoll-launch", daemon=True).start()

    async def spawned(self) -> Spawned:
        """Wait for the VM. Raises what the launch raised."""
        return await self._outcome

    def abandon(self) -> None:
        """Nobody waits any more: the VM goes as soon as it is there."""
        with self._hand_over:
            self._abandoned = True
        if self._outcome.done() and not self._outcome.cancelled() and self._outcome.exception() is None:
            self._outcome.result().discard()

    def _run(self) -> None:
        try:
            spawned = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            self._tell(self._outcome.set_exception, error)
            return
        with self._hand_over:
            if self._abandoned or not self._tell(self._outcome.set_result, spawned):
                spawned.discard()

    def _tell(self, settle: Callable[[Any], None], outcome: object) -> bool:
        """Hand ``outcome`` to the event loop; whether it is still there."""

        def tell() -> None:
            if not self._outcome.done():
                settle(outcome)
            elif isinstance(outcome, Spawned):
                outcome.discard()  # cancelled in between

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            return False
        return True
