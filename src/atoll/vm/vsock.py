"""A guest's virtio socket device and the process that serves it (``atoll.vsock``).

The process dies with whoever looks after the VM, and the device is of no use without it: who comes next takes
the device out and plugs in another one. So nothing is written down. The socket where clients of the host
connect stays open meanwhile: they wait in its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from atoll import process
from atoll.errors import AtollError, BootError, ChannelError, GuestError
from atoll.events import Emit, Warned
from atoll.guest.agent import Agent
from atoll.hypervisor.port import Pluggable, connect, end, listen, wait_for_exit
from atoll.paths import VmPaths
from atoll.process import Adopted, Process
from atoll.vm.bootplan import BootPlan, OpenPort, Setup
from atoll.vm.logs import tail
from atoll.vm.state import StateError
from atoll.vsock.hello import LONGEST, build_hello, is_accepted
from atoll.vsock.program import arguments

__all__ = ["CID", "DRIVER", "VsockDevice", "introduce", "reach", "taken_slots"]

#: The guest's CID, the first that is free (vsock(7)): each device is a world of its own.
CID = 3

#: The kernel's driver.
DRIVER = "vmw_vsock_virtio_transport"

#: Seconds for a guest to take a device, or to let go of one.
_PATIENCE = 15.0

#: Seconds for a guest to answer a request for a connection: the device itself gives up before.
_ANSWER = 12.0

#: Seconds in which the hypervisor's end follows that of a process which served it.
_FAREWELL = 0.5

#: What the process says: it can be plugged in; the guest's driver uses it.
_READY, _USED = b"+", b"="


class _Plugged(Protocol):
    """A VM that devices can be plugged into."""

    @property
    def process(self) -> Process | Adopted:
        """The hypervisor's process."""

    @property
    def plugging(self) -> Pluggable | None:
        """What can be plugged in and out."""


def taken_slots(setup: Setup) -> int:
    """How many of a machine's slots are not for shares: the last one is the device's."""
    return 1 if setup.vsock is not None and not setup.vsock.kernel else 0


class VsockDevice:
    """The device of one VM. Belongs to one event loop.

    Args:
        name: of the VM.
        emit: told of a device that is lost and brought back.
        place: the machine's directory, where clients connect; None for a VM that has none.
    """

    def __init__(self, name: str, emit: Emit, place: VmPaths | None = None) -> None:
        self._name = name
        self._emit = emit
        self._place = place
        self._vm: _Plugged | None = None
        self._agent: Agent | None = None
        self._modules: tuple[str, ...] | None = ()
        self._ports: dict[int, str] = {}
        self._slot = 0
        self._listener: socket.socket | None = None
        self._listens_at: Path | None = None
        self._door: socket.socket | None = None
        self._child: Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    @property
    def plugged(self) -> bool:
        """Whether the guest has it."""
        return self._child is not None

    def connect(self, vm: _Plugged, agent: Agent, plan: BootPlan) -> None:
        """Work with this VM, which was made by ``plan``, and its agent, if the plan has a device.

        Raises:
            StoreError: its socket cannot be made.
        """
        wanted = plan.setup.vsock
        if wanted is None or wanted.kernel:
            return
        assert self._place is not None
        modules = plan.setup.drivers.get(DRIVER)
        self.join(vm, agent, plan.machine.slots - 1, wanted.ports, modules=modules, at=self._place.vsock)

    def join(
        self,
        vm: _Plugged,
        agent: Agent,
        slot: int,
        ports: tuple[OpenPort, ...],
        *,
        modules: tuple[str, ...] | None,
        at: Path | None,
    ) -> None:
        """Work with this VM and its agent from now on.

        Args:
            vm: that runs.
            agent: in it.
            slot: for the device.
            ports: of the host that the guest may connect to.
            modules: of the guest's kernel, which are loaded first; None if it lacks them.
            at: where clients connect; nowhere if None.

        Raises:
            StoreError: the socket cannot be made.
        """
        self._vm, self._agent, self._slot, self._modules = vm, agent, slot, modules
        # The process is started in the machine's directory: a short name, and a machine may be renamed.
        self._ports = {one.port: one.path or f"vsock.sock_{one.port}" for one in ports}
        if self._listener is None and at is not None:
            self._listener, self._listens_at = listen(at), at

    async def plug(self) -> None:
        """Give the guest its device, if one is wanted and it has none; it can be used then.

        Raises:
            StateError: ``state.vsock``: it cannot be done; nothing is left of it.
            ChannelError: the guest is gone.
        """
        async with self._lock:
            if self._vm is not None and self._child is None:
                await self._plug()

    async def unplug(self) -> None:
        """Take the device away, with all its connections. Raises as ``plug``."""
        async with self._lock:
            if self._vm is not None and self._child is not None:
                await self._unplug()

    @asynccontextmanager
    async def aside(self, *, stays: bool) -> AsyncIterator[None]:
        """Without the device meanwhile: no VM can be written down with it. With ``stays`` also afterwards.

        Raises as ``unplug``.
        """
        had = self.plugged
        await self.unplug()
        done = False
        try:
            yield
            done = True
        finally:
            if had and not (stays and done):
                await self.restore()

    async def restore(self) -> None:
        """Plug it in; if that cannot be done it is told."""
        try:
            await self.plug()
        except AtollError as error:
            message = f"{self._name}: its virtio socket could not be brought back: {error.message}"
            self._emit(Warned(message=message, hint=error.hint))

    async def forget(self) -> None:
        """The VM is gone, or is left to somebody else: end what serves it."""
        self._vm = self._agent = None
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        await self._end()
        for sock in (self._listener, self._door):
            if sock is not None:
                sock.close()
        self._listener = self._door = None
        if self._listens_at is not None:
            self._listens_at.unlink(missing_ok=True)
            self._listens_at = None

    async def reach(self, port: int) -> socket.socket:
        """A connection to a port of the guest, for a VM of this process. Raises as ``introduce``."""
        if self._door is None:
            raise StateError(
                f"{self._name} has no virtio socket", code="vsock", hint="ask for one when it is made"
            )
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._door, [b"+"], [theirs.fileno()])
            except OSError as error:
                ours.close()
                raise ChannelError("what serves the virtio socket is gone", code="gone") from error
        return await introduce(ours, port)

    # From here on: how it is done.

    async def _plug(self) -> None:
        assert self._vm is not None
        assert self._agent is not None
        plugging = self._vm.plugging
        if plugging is None:
            message = "this hypervisor has no virtio sockets"
            raise StateError(message, code="unsupported", hint="use QEMU")
        if self._modules is None:
            hint = "use Debian's, or one with CONFIG_VIRTIO_VSOCKETS"
            raise StateError("the guest's kernel has no virtio sockets", code="vsock", hint=hint)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._agent.load_modules(self._modules)
                await plugging.unplug_vsock()  # of who looked after the VM before
                await self._start(plugging)
        except (BootError, GuestError, TimeoutError) as error:
            raise await self._refused(plugging, error) from error

    async def _start(self, plugging: Pluggable) -> None:
        """Start the process, and plug in its device once it can answer: QEMU waits for its answers."""
        with ExitStack() as stack, ExitStack() as undo:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            stack.callback(ours.close)  # from then on only QEMU is connected
            told, says = os.pipe()
            stack.callback(os.close, told)
            says_end = stack.enter_context(open(says, "wb", closefd=True))  # noqa: ASYNC230 - of a pipe
            door, behind = socket.socketpair()
            stack.callback(behind.close)
            undo.callback(door.close)
            fds = {"device": theirs.fileno(), "ready": says_end.fileno(), "handed": behind.fileno()}
            if self._listener is not None:
                fds["listener"] = self._listener.fileno()
            self._child = self._spawn(fds)
            says_end.close()
            theirs.close()
            await _hear(told, _READY)
            await plugging.plug_vsock(self._slot, ours)
            await _hear(told, _USED)
            undo.pop_all()
            self._door, former = door, self._door
            if former is not None:
                former.close()
        self._watching = asyncio.create_task(self._heal(self._child))

    def _spawn(self, fds: Mapping[str, int]) -> Process:
        words = arguments(cid=CID, ports=self._ports, **fds)
        if self._place is None:
            return process.spawn(words, pass_fds=tuple(fds.values()))
        log = os.open(self._place.log("vsock"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            return process.spawn(words, pass_fds=tuple(fds.values()), output=log, cwd=self._place.directory)
        finally:
            os.close(log)

    async def _refused(self, plugging: Pluggable, error: Exception) -> StateError:
        """Leave nothing of a device that could not be plugged in."""
        with contextlib.suppress(AtollError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await plugging.unplug_vsock()
        await self._end()
        said = ""
        if self._place is not None:
            said = tail(self._place.log("vsock"), 2000).decode(errors="replace").strip()
        reason = error.message if isinstance(error, AtollError) else "the guest does not take it"
        message = f"{self._name} cannot have a virtio socket: {reason}"
        return StateError(message, code="vsock", hint=f"see `atoll logs {self._name}`", detail=said)

    async def _unplug(self) -> None:
        assert self._vm is not None
        watching, self._watching = self._watching, None
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()
        plugging = self._vm.plugging
        assert plugging is not None
        try:
            async with asyncio.timeout(_PATIENCE):
                await plugging.unplug_vsock()
        except (BootError, TimeoutError) as error:
            message = f"{self._name}: the guest does not let go of its virtio socket"
            raise StateError(message, code="vsock", hint="see `atoll logs`") from error
        await self._end()

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await end(child)

    async def _heal(self, child: Process) -> None:
        """Wait for an end of the process that nobody asked for, and have another one in its place."""
        await wait_for_exit(child)
        await asyncio.sleep(_FAREWELL)  # it may be QEMU that ended
        async with self._lock:
            if self._vm is None or self._vm.process.poll() is not None or self._child is not child:
                return
            message = f"{self._name}: what serves its virtio socket has ended; it is started again"
            self._emit(Warned(message=message))
            with contextlib.suppress(AtollError):
                await self._unplug()
        await self.restore()


async def _hear(fd: int, wanted: bytes) -> None:
    """Wait for a byte from a pipe. Raises ``BootError``: its writer has ended."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)
    if os.read(fd, 1) != wanted:
        raise BootError("what was to serve it has ended", stage="spawn")


async def reach(place: VmPaths, port: int) -> socket.socket:
    """A connection to a port of the guest of the machine at ``place``. Raises as ``introduce``."""
    try:
        sock = connect(place.vsock)
    except OSError as error:
        name = place.directory.name
        hint = f"`atoll start {name}` starts it; it has one if it was made with --vsock"
        raise StateError(f"{name} has no virtio socket now", code="vsock", hint=hint) from error
    return await introduce(sock, port)


async def introduce(sock: socket.socket, port: int) -> socket.socket:
    """Ask who serves the guest for a connection to ``port``; the same socket, which does not block.

    Raises:
        ChannelError: ``channel.refused``: nobody listens there in the guest, or it does not answer.
    """
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    line = b""
    try:
        async with asyncio.timeout(_ANSWER):
            await loop.sock_sendall(sock, build_hello(port))
            while not line.endswith(b"\n") and len(line) < LONGEST:
                piece = await loop.sock_recv(sock, 1)  # what follows the line is the guest's
                if not piece:
                    break
                line += piece
    except (OSError, TimeoutError):
        line = b""
    except BaseException:
        sock.close()
        raise
    if not is_accepted(line):
        sock.close()
        message = f"nobody listens at port {port} of the guest"
        raise ChannelError(message, code="refused", hint="start what is to listen there first")
    return sock
