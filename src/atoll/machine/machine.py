"""A named machine, as programs use it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from atoll import store
from atoll.config import Config, load, override
from atoll.errors import ChannelError, ImageError
from atoll.events import Emit, ignore
from atoll.guest.copying import Copied, receive_tree, send_tree
from atoll.image.manifest import Image, ImageManifest
from atoll.machine import editing, live, naming, networks, registry
from atoll.machine.checkpoints import Checkpoints
from atoll.machine.creation import Wishes, create, parse_disk
from atoll.machine.porting import Ported
from atoll.machine.spec import Share, check_guest_path
from atoll.machine.supervised import AT_REST
from atoll.machine.vsock import reach_vsock
from atoll.paths import NetworkPaths
from atoll.vm.messages import MemoryState, Stats, Status
from atoll.vm.network.egress import parse_egress, require_own
from atoll.vm.network.linked import Linked
from atoll.vm.state import Phase, State, StateError

__all__ = ["Machine"]


class Machine(Linked, Ported, Checkpoints):
    """A machine of this user, by its name. Nothing is done before a method is called.

    Args:
        name: of the machine.
        config: resolved settings; by default those of this user.
        on_event: told of everything that happens, see ``atoll.events``.
    """

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
        init: str = "",
        user: str = "",
        env: Mapping[str, str] | None = None,
        workdir: str = "",
        mounts: Sequence[str] = (),
        ports: Sequence[str] = (),
        reverse: Sequence[str] = (),
        auto_ports: bool | str = False,
        auto_ports_deny: str = "",
        network: bool | str | None = None,
        egress: str | Sequence[str] = (),
        kernel: str | Path | None = None,
        accel: str | None = None,
        platform: str | None = None,
        full: bool | None = None,
        restart: str = "no",
        ready_probe: str | None = None,
        idle_suspend: str | float = 0.0,
        vsock: bool | str = False,
        vsock_ports: Sequence[str] = (),
        aliases: Sequence[str] = (),
        ca: bool | None = None,
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
            init: ``systemd`` or ``minimal``; by default systemd where the image has it.
            user: the user whom commands are run as, made at the first start; root if empty.
            env: variables of every command.
            workdir: directory in which commands start.
            mounts: ``HOST:GUEST[:ro]`` each.
            ports: as ``add_ports`` takes them.
            reverse: likewise.
            auto_ports: have the host's 127.0.0.1 have each port, too, that a program of it listens on; or
                ranges of those that it is to have, such as ``"3000-3999,8080"``, by default from 1024 on.
            auto_ports_deny: ranges of those that it is not to have.
            network: ``own``, ``slirp``, ``none``, or the name of a network (``atoll.Network``); None for what
                the settings say, True for any.
            egress: what it may reach, lines each of which is a rule or the name of a preset; anything by
                default. It needs a network of Atoll.
            kernel: a kernel to boot instead of Debian's cloud kernel.
            accel: ``auto``, ``kvm`` or ``tcg``.
            platform: of its image, such as ``"linux/arm64"``; the host's by default. Programs of another one
                are emulated in it.
            full: for another platform be a whole VM of it instead, which is emulated with its kernel.
            restart: ``no``, ``on-failure`` or ``always``: what follows when the guest ends by itself.
            ready_probe: a TCP port or a shell command that must work before it counts as running.
            idle_suspend: such as ``"10m"``, or seconds, after which it is suspended if it does nothing and
                nobody uses it; 0 for never.
            vsock: give it a virtio socket; ``"kernel"`` for that of the host's kernel.
            vsock_ports: ports of the host that the guest may connect to over it, ``PORT[:PATH]`` each: what
                listens at the unix socket PATH serves it, by default ``vsock.sock_PORT`` beside the machine's
                own.
            aliases: what other machines call it, too; several may have the same.
            ca: it takes over this host's added certificates, and its proxies; None for what the settings say.
            boot_timeout: seconds in which it must be up.
            config: resolved settings; by default those of this user.
            on_event: told of everything that happens.

        Raises:
            StoreError: ``store.already_exists``.
            UsageError, ConfigError: a value is wrong.
            NetworkError: ``network.unknown``: there is no network of that name.
            ImageError, PreflightError: its image cannot be had.
        """
        flags = {
            "cpus": cpus,
            "memory": _size(memory),
            "accel": accel,
            "platform": platform,
            "full": full,
            "boot_timeout": boot_timeout,
            "kernel": kernel,
            "ca": ca,
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
            reverse=tuple(reverse),
            auto_ports=auto_ports,
            auto_ports_deny=auto_ports_deny,
            network=network,
            egress=parse_egress(egress),
            restart=restart,
            ready_probe=ready_probe,
            idle_suspend=idle_suspend,
            vsock=vsock,
            vsock_ports=tuple(vsock_ports),
            aliases=tuple(aliases),
        )
        await asyncio.to_thread(create, settings, name, wishes, on_event)
        return cls(name, config=settings, on_event=on_event)

    async def pause(self) -> None:
        """Stop its vCPUs. Raises ``StateError`` if it is not running."""
        await (await self._active("paused")).pause()

    async def resume(self) -> None:
        """Let its vCPUs go on; the guest's clock is set. Raises ``StateError`` if it is not paused."""
        await (await self._active("resumed")).resume()

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

    async def join_network(self, network: str) -> str:
        """Be on another network of Atoll, and no more on the former; ``"now"`` or ``"at the next start"``.

        One that runs is moved at once: it gets another address, and connections that it had are reset.

        Args:
            network: its name; ``default`` is that of all machines.

        Raises:
            UsageError: ``usage.network``: that is no name; ``usage.reserved``: the machine is Atoll's own.
            NetworkError: ``network.unknown``; or the network cannot be had: the machine is where it was.
            StateError: it is paused, or about to start or stop.
        """
        async with self._changing() as machine:
            registry.require_users(machine, "moved")
            spec = networks.on_network(self._config, machine.spec, network)
            networks.require_movable(machine)
            registry.save(machine, spec)
            if not machine.state.active:
                return live.LATER
            try:
                await (await self._connect(machine.place)).join(network)
            except StateError as error:
                if error.code == "state.network":
                    return live.LATER
                registry.save(machine, machine.spec)
                raise
            except BaseException:
                registry.save(machine, machine.spec)
                raise
            return live.NOW

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
            if disk is not None and machine.state.phase is Phase.SUSPENDED:
                message = f"{self.name} is suspended: its disk cannot change its size"
                raise StateError(message, code="suspended", hint=f"`atoll start {self.name}` first")
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

    async def set_egress(self, egress: str | Sequence[str]) -> str:
        """Change what it may reach; ``"now"`` or ``"at the next start"``, when that holds.

        Connections that it has and may not have any more are reset.

        Args:
            egress: lines each of which is a rule or the name of a preset; with none it may reach anything.

        Raises:
            UsageError: ``usage.rule``: a line is none; ``usage.egress``: its network cannot enforce it.
            NetworkError: its network does not answer; it is recorded all the same.
        """
        lines = parse_egress(egress)
        async with self._changing() as machine:
            require_own(lines, editing.network_of(machine.spec))
            spec = msgspec.structs.replace(machine.spec, egress=lines)
            registry.save(machine, spec)
            if not machine.state.active or not live.is_held(machine.place):
                return live.LATER
            live.replan(machine.place, spec)
            await (await self._connect(machine.place)).set_egress(lines)
            return live.NOW

    async def add_alias(self, alias: str) -> None:
        """Have other machines call it so, too, from now on. Raises ``UsageError``: ``usage.alias``."""
        async with self._changing() as machine:
            await naming.rename(machine, naming.with_alias(machine.spec, alias))

    async def remove_alias(self, alias: str) -> None:
        """Have it be called so no more. Raises ``UsageError``: ``usage.alias``: it is not."""
        async with self._changing() as machine:
            await naming.rename(machine, naming.without_alias(machine.spec, alias))

    async def connect_vsock(self, port: int) -> socket.socket:
        """A connection to what listens at a port of AF_VSOCK in it; the socket does not block.

        Raises:
            UsageError: ``usage.vsock``: that is no port.
            StateError: ``state.vsock``: it has no virtio socket, or does not run.
            ChannelError: ``channel.refused``: nobody listens there.
        """
        return await reach_vsock(self.find(), port)

    async def _link(self) -> tuple[NetworkPaths, str]:
        """See ``Linked``."""
        from atoll.machine.lines import network_of  # noqa: PLC0415 - rarely wanted

        machine = self.find()
        return network_of(self._config, machine), machine.spec.id

    async def wait(self, *phases: Phase, timeout: float | None = None) -> State:  # noqa: ASYNC109
        """Wait until it is in one of ``phases``; at rest by default.

        Raises:
            TimeoutError: ``timeout`` seconds have passed.
        """
        wanted = phases or AT_REST
        async with asyncio.timeout(timeout):
            while (state := self.state).phase not in wanted:
                try:
                    control = await self._active("waited for")
                    await control.wait_for(*wanted)
                except (ChannelError, StateError):
                    await self.close()
                    await asyncio.sleep(0.02)
            return state

    async def commit(self, name: str, *, changes: Sequence[str] = (), message: str = "") -> Image:
        """Make an image of what it has on its disk now: its image's layers, and one of its changes.

        It may run, and stands still for a moment. What is its own is left out: what it mounts, its names and
        ids, ``/tmp``. Of an image that has no layers, as those that Atoll builds, it becomes one with one.

        Args:
            name: of the image.
            changes: of how the image is run: instructions of a Containerfile, such as ``CMD ["/bin/app"]``.
            message: what its history says.

        Raises:
            UsageError: ``usage.change``: that is no such instruction.
            ImageError: ``image.name``; ``image.missing``: the image that it was made of is not here any more.
            StateError: it is about to start or stop, or suspended.
            StoreError: ``store.full``, or the image cannot be written.
            BootError, GuestError: its disk cannot be read.
        """
        from atoll.image.oci.committing import parse_change  # noqa: PLC0415 - not on the way to a VM
        from atoll.image.registry.carrying import named  # noqa: PLC0415
        from atoll.machine import committing  # noqa: PLC0415

        parsed = [parse_change(text) for text in changes]
        reference = named(name, self._config)
        manifest = await asyncio.to_thread(store.read_record, self.find().place.image, ImageManifest)
        base = await asyncio.to_thread(committing.base_of, self._paths, manifest)
        async with self._kept_for("an image") as snapshot:
            return await committing.commit(
                self._config,
                snapshot,
                base,
                references=(reference,),
                changes=parsed,
                message=message,
                emit=self._emit,
            )

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
        """The shell of its image. Raises ``ImageError``: ``image.shell``: it has none; and as ``find``."""
        shell = store.read_record(self.find().place.image, ImageManifest).shell
        if not shell:
            hint = f"run one of its own programs: `atoll exec {self.name} -- PROGRAM`"
            raise ImageError(f"{self.name}: its image has no shell", code="shell", hint=hint)
        return shell


def _size(size: str | int | None) -> str | None:
    return f"{size / (1 << 20):f}M" if isinstance(size, int) else size
