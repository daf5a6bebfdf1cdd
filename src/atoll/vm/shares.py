"""Directories of the host in a running guest: a daemon, a device and a mount for each.

A daemon is connected to QEMU and to nothing else. It is no child that has to be looked after: it lives until
QEMU closes the connection, whatever happens to the supervisor. Each share has a slot, by which its device is
found; the record says which slot belongs to which share, and is written before anything is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import ClassVar

import msgspec

from atoll import process, store
from atoll.errors import AtollError, BootError, GuestError
from atoll.events import Emit, Warned
from atoll.guest.agent import Agent
from atoll.guest.files import as_root
from atoll.hypervisor.port import Pluggable, Resident, end, wait_for_exit
from atoll.paths import VmPaths
from atoll.process import Adopted, Identity, Process
from atoll.vm import holding
from atoll.vm.bootplan import BootPlan, Setup, Share
from atoll.vm.logs import tail
from atoll.vm.serving import serve
from atoll.vm.state import StateError
from atoll.vm.vsock import taken_slots

__all__ = ["Plugged", "Shares"]

#: Seconds for a guest to find a device and mount it, and for it to let go of one.
_PATIENCE = 15.0

#: Seconds for all of bringing a share back: a guest that is silent shall not hold up everybody else.
_LONGEST = 40.0

#: Seconds between two attempts to mount: the device appears in the guest by itself.
_LOOK = 0.01

#: Seconds in which a daemon ends when its connection was closed.
_FAREWELL = 2.0

#: errno(3), as the guest says it.
_EINVAL, _EBUSY, _ENODEV, _ENOENT = 22, 16, 19, 2


class Plugged(msgspec.Struct, frozen=True):
    """A share of a running machine.

    Attributes:
        slot: of its device.
        share: which directory it is.
        daemon: what serves it; None while it is made.
        mounted: the guest has it in its place.
    """

    slot: int
    share: Share
    daemon: Identity | None = None
    mounted: bool = False


class _Record(msgspec.Struct, frozen=True):
    """What is plugged into the VM."""

    SCHEMA: ClassVar[int] = 1

    shares: tuple[Plugged, ...] = ()
    schema: int = 1


class Shares:
    """The shares of the machine at ``place``. Belongs to one event loop.

    Args:
        place: the machine's directory.
        emit: told of shares that are lost and brought back.
    """

    def __init__(self, place: VmPaths, emit: Emit) -> None:
        self._place = place
        self._name = place.directory.name
        self._emit = emit
        self._plugged: dict[int, Plugged] = {}
        self._running: dict[int, Process | Adopted] = {}
        self._watching: dict[int, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._vm: Resident | None = None
        self._agent: Agent | None = None
        self._setup = Setup()
        self._slots = 0
        self._ready = False

    def connect(self, vm: Resident, agent: Agent, plan: BootPlan) -> None:
        """Work with this VM, which was made by ``plan``, and its agent from now on."""
        self._vm, self._agent = vm, agent
        self._setup, self._slots = plan.setup, plan.machine.slots - taken_slots(plan.setup)
        self._ready = False

    # What may be asked for.

    async def listed(self) -> tuple[Share, ...]:
        """What is shared. Raises as ``add``."""
        async with self._lock:
            await self._recollect()
            return tuple(plugged.share for plugged in self._plugged.values())

    async def mount_all(self) -> None:
        """Share all that the setup wants and that is not shared yet. Raises as ``add``."""
        async with self._lock:
            self._recall()
            await self._tidy()
            have = {plugged.share.guest for plugged in self._plugged.values()}
            wanted = [share for share in self._setup.shares if share.guest not in have]
            self._require_slots(len(wanted))
            await self._load_driver(wanted)
            free = self._free()
            works = [asyncio.create_task(self._put(share, free.pop(0))) for share in wanted]
            try:
                for work in works:
                    await work
            finally:
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)
            # A directory within another one's place is mounted over it.
            for plugged in sorted(self._plugged.values(), key=lambda one: one.share.guest):
                await self._mount(plugged)
            self._ready = True

    async def add(self, share: Share) -> Plugged:
        """Share a directory.

        Raises:
            StateError: it cannot be done; nothing is left of it.
            PreflightError: virtiofsd is not installed, or this user cannot run it.
            ChannelError: the guest is gone.
        """
        async with self._lock:
            await self._recollect()
            if any(one.share.guest == share.guest for one in self._plugged.values()):
                hint = f"`atoll umount {self._name} {share.guest}` takes it away"
                raise StateError(f"{share.guest} is a share already", code="share", hint=hint)
            self._require_slots(1)
            await self._load_driver([share])
            slot = self._free()[0]
            try:
                await self._put(share, slot)
                return await self._mount(self._plugged[slot])
            except BaseException:
                await asyncio.shield(self._undo(slot))
                raise

    async def remove(self, guest: str) -> None:
        """Take the share away that is at ``guest``. Raises as ``add``."""
        async with self._lock:
            await self._recollect()
            plugged = next((one for one in self._plugged.values() if one.share.guest == guest), None)
            if plugged is None:
                hint = f"`atoll mount {self._name}` lists them"
                raise StateError(f"{guest} is no share of {self._name}", code="share", hint=hint)
            await self._unmount(plugged)
            await self._take_out(plugged.slot)

    async def recover(self, *, again: bool) -> None:
        """Take over what another supervisor plugged in, and take out what it did not finish.

        Args:
            again: share again what is missing then, such as what was set aside for who wrote the VM down. Of
                each that cannot be shared it is told.
        """
        if self._vm is None:
            return
        try:
            have = {share.guest for share in await self.listed()}
        except (AtollError, TimeoutError) as error:
            self._emit(Warned(message=f"{self._name}: its shares cannot be taken over: {error}"))
            return
        # A directory within another one's place is mounted over it.
        for share in sorted(self._setup.shares, key=lambda one: one.guest):
            if again and share.guest not in have:
                await self.bring_back(share)

    async def bring_back(self, share: Share) -> None:
        """``add`` what was shared before; if that cannot be done, it is told."""
        try:
            async with asyncio.timeout(_LONGEST):
                await self.add(share)
        except (AtollError, TimeoutError) as error:
            message = f"{self._name}: {share.guest} could not be brought back: {error}"
            self._emit(Warned(message=message, hint=f"`atoll mount {self._name} {share.host}:{share.guest}`"))

    async def forget(self) -> None:
        """The VM is gone: have its daemons gone, too, which end by themselves."""
        self._vm = self._agent = None
        with contextlib.suppress(AtollError):
            self._recall()
        for task in self._watching.values():
            task.cancel()
        for slot in tuple(self._plugged):
            await self._end_daemon(slot)
        self._plugged.clear()
        self._place.shares.unlink(missing_ok=True)

    def leave(self) -> None:
        """Let everything run on."""
        for task in self._watching.values():
            task.cancel()
        for running in self._running.values():
            running.forget()
        self._running.clear()

    # From here on: how it is done.

    def _require_slots(self, count: int) -> None:
        if self._slots - len(self._plugged) < count:
            message = f"{self._name} has room for {self._slots} shares"
            raise StateError(message, code="share", hint="share a directory above several of them")

    def _free(self) -> list[int]:
        return [slot for slot in range(self._slots) if slot not in self._plugged]

    def _connected(self) -> tuple[Pluggable, Agent]:
        if self._vm is None or self._agent is None:
            raise StateError(
                f"{self._name} is not running", code="not_running", hint="`atoll start` starts it"
            )
        plugging = self._vm.plugging
        if plugging is None:
            message = "this hypervisor cannot share directories"
            raise StateError(message, code="unsupported", hint="use QEMU, or copy with `atoll cp`")
        return plugging, self._agent

    def _keep(self, plugged: Plugged) -> Plugged:
        """Know of ``plugged``, on disk first."""
        others = {slot: one for slot, one in self._plugged.items() if slot != plugged.slot}
        self._write({**others, plugged.slot: plugged})
        return plugged

    def _write(self, plugged: dict[int, Plugged]) -> None:
        store.write_record(self._place.shares, _Record(tuple(plugged.values())))
        self._plugged = plugged

    def _recall(self) -> None:
        """Read what an earlier supervisor wrote. Raises ``StoreError``."""
        if self._plugged or not self._place.shares.exists():
            return
        for plugged in store.read_record(self._place.shares, _Record).shares:
            self._plugged[plugged.slot] = plugged
            running = Adopted.of(plugged.daemon) if plugged.daemon is not None else None
            if running is not None:
                self._running[plugged.slot] = running
                self._watch(plugged.slot)

    async def _recollect(self) -> None:
        if not self._ready:
            self._recall()
            await self._tidy()
            self._ready = True

    async def _tidy(self) -> None:
        """Take out what an earlier supervisor did not bring to its end."""
        for plugged in tuple(self._plugged.values()):
            if not plugged.mounted or not self._is_served(plugged.slot):
                await self._undo(plugged.slot)

    async def _load_driver(self, shares: list[Share]) -> None:
        modules = self._setup.drivers.get("virtiofs")
        if shares and modules:
            _, agent = self._connected()
            await agent.load_modules(modules)

    async def _put(self, share: Share, slot: int) -> None:
        """Start a daemon for ``share`` and plug its device in."""
        plugging, agent = self._connected()
        if not os.path.isdir(share.host):  # noqa: ASYNC240 - as fast as any call
            message = f"there is no directory {share.host} on the host"
            raise StateError(message, code="share", hint="make it, or take the share away")
        self._keep(Plugged(slot, share))
        owner = await _owner(agent, self._setup.user)
        child, sock = serve(self._place, _tag(slot), share, owner)
        self._running[slot] = child
        try:
            self._keep(Plugged(slot, share, process.identify(child.pid)))
            async with asyncio.timeout(_PATIENCE):
                await plugging.plug_share(slot, _tag(slot), sock)
        except (BootError, TimeoutError) as error:
            raise self._refused(share, error) from error
        finally:
            sock.close()  # from here on only QEMU is connected
        self._watch(slot)

    def _refused(self, share: Share, error: Exception) -> StateError:
        said = tail(self._place.log("shares"), 2000).decode(errors="replace").strip()
        reason = error.message if isinstance(error, AtollError) else "the guest does not take it"
        hint = "see the lines above; `atoll doctor` checks virtiofsd"
        return StateError(f"{share.host} cannot be shared: {reason}", code="share", hint=hint, detail=said)

    async def _mount(self, plugged: Plugged) -> Plugged:
        """Have the guest mount what was plugged in, as soon as it has found it."""
        if plugged.mounted:
            return plugged
        _, agent = self._connected()
        share = plugged.share
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await agent.mount("virtiofs", _tag(plugged.slot), share.guest, read_only=share.read_only)
            except GuestError as error:
                if error.errno != _EINVAL or time.monotonic() > deadline:  # EINVAL: no such device yet
                    raise self._not_mounted(share, error) from error
                await asyncio.sleep(_LOOK)
            else:
                return self._keep(msgspec.structs.replace(plugged, mounted=True))

    def _not_mounted(self, share: Share, error: GuestError) -> StateError:
        hint = "see `atoll logs`"
        if error.errno == _ENODEV:
            hint = "the guest's kernel has no virtiofs: use Debian's, or one with CONFIG_VIRTIO_FS"
        return StateError(f"{share.guest} cannot be mounted: {error.message}", code="share", hint=hint)

    async def _unmount(self, plugged: Plugged) -> None:
        if not plugged.mounted:
            return
        _, agent = self._connected()
        device = await holding.device_of(agent, _tag(plugged.slot))
        try:
            async with asyncio.timeout(_PATIENCE):
                await agent.unmount(plugged.share.guest)
        except TimeoutError:
            raise StateError(f"{plugged.share.guest}: the guest does not unmount it", code="share") from None
        except GuestError as error:
            if error.errno in {_EINVAL, _ENOENT}:  # somebody in the guest did so before
                pass
            elif error.errno == _EBUSY:
                hint = "end what uses it in the guest, or leave the directory there"
                raise StateError(f"{plugged.share.guest} is in use", code="share_busy", hint=hint) from error
            else:
                raise
        if await holding.is_held(agent, device):
            await self._give_back(plugged, agent)
        self._keep(msgspec.structs.replace(plugged, mounted=False))

    async def _give_back(self, plugged: Plugged, agent: Agent) -> None:
        """Mount again what somebody still has at another place, and refuse to take it away."""
        share, tag = plugged.share, _tag(plugged.slot)
        who = await holding.holders(agent, tag)
        try:
            await agent.mount("virtiofs", tag, share.guest, read_only=share.read_only)
        except GuestError as error:
            self._keep(msgspec.structs.replace(plugged, mounted=False))
            raise self._not_mounted(share, error) from error
        told = f": {', '.join(who)}" if who else ""
        message = f"{share.guest} is mounted elsewhere in the guest, too{told}"
        hint = "end what has it, such as the containers named, or stop the machine instead of suspending it"
        raise StateError(message, code="share_busy", hint=hint)

    async def _take_out(self, slot: int) -> None:
        """Take a device out that nobody uses, see its daemon end, and forget the share."""
        await self._unplug(slot)
        self._write({number: one for number, one in self._plugged.items() if number != slot})

    async def _unplug(self, slot: int) -> None:
        watching = self._watching.pop(slot, None)
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()
        plugging, _ = self._connected()
        try:
            async with asyncio.timeout(_PATIENCE):
                await plugging.unplug_share(slot)
        except (BootError, TimeoutError) as error:
            message = f"the guest does not let go of {self._plugged[slot].share.guest}"
            raise StateError(message, code="share", hint="see `atoll logs`") from error
        await self._end_daemon(slot)

    async def _undo(self, slot: int) -> None:
        """Leave nothing of a share that was not finished, or that has lost its daemon."""
        plugged = self._plugged.get(slot)
        if plugged is None:
            return
        with contextlib.suppress(AtollError, TimeoutError):
            if not self._is_served(slot):  # then an unmount waits for ever to say good-bye to its device
                await self._unplug(slot)
            await self._unmount_if_ours(plugged)
            await self._take_out(slot)

    def _is_served(self, slot: int) -> bool:
        running = self._running.get(slot)
        return running is not None and running.poll() is None

    async def _unmount_if_ours(self, plugged: Plugged) -> None:
        """Unmount what a record may not tell of; never what lies beneath."""
        _, agent = self._connected()
        escaped = plugged.share.guest.replace("\\", "\\134").replace(" ", "\\040")
        async with asyncio.timeout(_FAREWELL):
            mounts = (await as_root(agent).read("/proc/mounts")).decode(errors="replace")
            start = f"{_tag(plugged.slot)} {escaped} virtiofs "
            if any(line.startswith(start) for line in mounts.splitlines()):
                await agent.unmount(plugged.share.guest, lazy=True)

    async def _end_daemon(self, slot: int) -> None:
        running = self._running.pop(slot, None)
        if running is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await wait_for_exit(running)
        await end(running)

    def _watch(self, slot: int) -> None:
        self._watching[slot] = asyncio.create_task(self._heal(slot))

    async def _heal(self, slot: int) -> None:
        """Wait for the end of a daemon that nobody asked for, and put another one in its place."""
        await wait_for_exit(self._running[slot])
        await asyncio.sleep(_FAREWELL)  # it may be QEMU that ended
        async with self._lock:
            plugged = self._plugged.get(slot)
            if self._vm is None or self._vm.process.poll() is not None or plugged is None:
                return
            share = plugged.share
            self._emit(
                Warned(message=f"{self._name}: what serves {share.guest} has ended; it is started again")
            )
            try:
                await self._undo(slot)
                await self._put(share, slot)
                await self._mount(self._plugged[slot])
            except (AtollError, TimeoutError) as error:
                message = f"{self._name}: {share.guest} could not be brought back: {error}"
                self._emit(Warned(message=message, hint=f"`atoll restart {self._name}`"))


async def _owner(agent: Agent, user: str) -> tuple[int, int]:
    """The numbers of the machine's user and of that user's group; root if it has none."""
    if not user or os.geteuid() == 0:  # then numbers stay what they are
        return 0, 0
    with contextlib.suppress(GuestError):
        for line in (await as_root(agent).read("/etc/passwd")).decode(errors="replace").splitlines():
            name, *fields = line.split(":")
            if name == user and len(fields) >= 3 and fields[1].isdecimal() and fields[2].isdecimal():
                return int(fields[1]), int(fields[2])
    return 0, 0


def _tag(slot: int) -> str:
    """What the guest calls the device; it is found by nobody else."""
    return f"atoll-share{slot}"
