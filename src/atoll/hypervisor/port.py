"""What every hypervisor backend does, and what a running VM is to the rest of Atoll."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from atoll import process, store
from atoll.errors import BootError, StoreError
from atoll.hypervisor.model import Machine, Port
from atoll.paths import VmPaths
from atoll.process import Adopted, Process

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "SUN_PATH",
    "Balloon",
    "Capture",
    "ChannelEnd",
    "CloningHypervisor",
    "Departure",
    "FreezableVm",
    "Frozen",
    "Hypervisor",
    "Instant",
    "MemorySize",
    "Pluggable",
    "Position",
    "Resident",
    "ResidentHypervisor",
    "Standstill",
    "VirtualMachine",
    "at_directory",
    "connect",
    "end",
    "find_holder",
    "listen",
    "sweep",
    "wait_for_exit",
]


#: Seconds in which a hypervisor that was just spawned has written its pid file.
_PID_WAIT = 5.0

#: Longest name of a socket, bytes (``sun_path`` of unix(7), without its final zero).
SUN_PATH = 107


class Position(StrEnum):
    """Where a guest's first vCPU executes, as far as can be told from outside."""

    FIRMWARE = "firmware"
    KERNEL = "kernel"
    UNKNOWN = "unknown"


class Hypervisor(Protocol):
    """A backend. The same contract suite runs against each of them."""

    @property
    def name(self) -> str:
        """Its name, as in messages."""

    def spawn(self, machine: Machine) -> VirtualMachine:
        """Start ``machine`` in a process that dies with this one. Does not wait for the guest.

        Raises:
            AtollError: with stage ``preflight`` or ``spawn``; nothing is left behind.
        """


class VirtualMachine(Protocol):
    """A VM that was spawned. ``close`` must be awaited; everything it had is then gone."""

    @property
    def process(self) -> Process:
        """The hypervisor's process."""

    @property
    def console(self) -> Capture:
        """What the guest wrote to its serial console."""

    @property
    def diagnostics(self) -> Capture:
        """What the hypervisor itself wrote to stderr."""

    @property
    def card(self) -> Path | None:
        """Socket at which its network card is to be reached (``CardNetwork``); None if it has none."""

    def take_channel(self) -> socket.socket:
        """The host's end of the guest channel, once; the caller owns it."""

    async def wait(self) -> int:
        """Wait for the process's end; its exit status, negative for a signal. Any number may wait."""

    async def position(self) -> Position:
        """Where the guest executes now; ``UNKNOWN`` if the backend cannot tell."""

    async def free_card(self) -> None:
        """Have its network card be as if nobody had ever been connected. Raises ``BootError``."""

    def discard(self) -> None:
        """``close`` without an event loop, for a VM that was never talked to; blocks for milliseconds."""

    async def close(self) -> None:
        """Kill the VM if it runs, reap its process, close all that is open. Closing twice is fine."""


class CloningHypervisor(Hypervisor, Protocol):
    """A backend whose VMs can be frozen, and cloned from then on: an ability that not every one has."""

    def spawn(self, machine: Machine) -> FreezableVm:
        """As ``Hypervisor.spawn``."""

    def clone(self, machine: Machine, state: Path) -> FreezableVm:
        """Start a VM that will go on where another was written down, once it is told to ``proceed``.

        Args:
            machine: as the one that was written down, in all that a guest can see. If its ``ram`` has a path,
                that is the RAM as ``FreezableVm.freeze`` left it.
            state: as ``FreezableVm.freeze`` wrote it, or ``FreezableVm.copy``.

        Raises:
            BootError: stage ``spawn``; nothing is left behind.
        """


class FreezableVm(VirtualMachine, Protocol):
    """A VM whose devices can be written down, and that can be changed while it runs."""

    @property
    def plugging(self) -> Pluggable:
        """What can be plugged in and out of it."""

    def proceed(self) -> None:
        """Have a clone go on, without waiting for it: what it goes on from is written."""

    async def freeze(self, state: Path) -> None:
        """Stop for good and write the state of the devices to a new file; the RAM is in the machine's file.

        Raises:
            BootError: stage ``freeze``: it cannot be written.
        """

    async def copy(self, fd: int, *, leave_out_shared: bool = False, live: bool = False) -> Standstill:
        """Write devices and RAM to an open file; the guest stands still meanwhile, and then goes on.

        Args:
            fd: of the file, which is in memory.
            leave_out_shared: without RAM that is in a shared file; and in the form that
                ``atoll.hypervisor.qemu.stream`` takes apart.
            live: have it go on while its RAM is written, if it can be.

        Returns:
            For how long it stood still.

        Raises:
            BootError: stage ``copy``: it cannot be written; the guest goes on.
        """

    async def pause(self) -> None:
        """Stop the vCPUs. Raises ``BootError``: stage ``spawn``: it does not answer."""

    async def resume(self) -> None:
        """Let the vCPUs go on. Raises as ``pause``."""


class Departure(StrEnum):
    """How a VM came to its end, as far as its hypervisor knows."""

    SHUTDOWN = "shutdown"
    RESET = "reset"
    QUIT = "quit"
    LOST = "lost"


class Frozen(msgspec.Struct, frozen=True):
    """Where a VM was written down.

    Attributes:
        ram: its RAM.
        state: of its devices.
        more: RAM that was plugged in; None if that cannot be.
        devices: what was plugged in beside it, in the hypervisor's own words.
        own: the RAM is nobody else's: a VM that goes on writes to it.
    """

    ram: Path
    state: Path
    more: Path | None = None
    devices: tuple[dict[str, Any], ...] = ()
    own: bool = False


class Standstill(NamedTuple):
    """For how long a VM stood still while it was written down.

    Attributes:
        seconds: for which its vCPUs did.
        reason: why it did all the while, if it was not to; empty otherwise.
    """

    seconds: float
    reason: str = ""


class Instant(msgspec.Struct, frozen=True):
    """A VM as it was at one instant. Its descriptors, of files in memory, are its owner's to close.

    Attributes:
        ram: its RAM.
        state: of its devices.
        more: RAM that was plugged in; -1 if that cannot be.
        devices: as in ``Frozen``.
        vcpus: that it was started with.
        memory: likewise, bytes.
        stopped: for how long it stood still.
    """

    ram: int
    state: int
    more: int
    devices: tuple[dict[str, Any], ...]
    vcpus: int
    memory: int
    stopped: Standstill

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.ram, self.state, self.more):
            if fd >= 0:
                os.close(fd)


class ResidentHypervisor(Hypervisor, Protocol):
    """A backend whose VMs can outlive the process that started them."""

    def settle(self, machine: Machine, place: VmPaths, frozen: Frozen | None = None) -> Resident:
        """Start ``machine`` so that it stays when this process ends. Does not wait for the guest.

        The hypervisor's process holds ``place.vm_lock`` from its first moment to its last.

        Args:
            machine: the VM.
            place: where its files are.
            frozen: what it goes on from, with a copy of that RAM if it is others' too; it boots by default.

        Raises:
            BootError: stage ``spawn``; nothing is left behind but the log.
        """

    def adopt(self, place: VmPaths) -> Resident | None:
        """The VM that runs at ``place``, whoever started it; None if there is none."""


class Balloon(NamedTuple):
    """A guest's memory, bytes: what the balloon leaves it, what it calls free and available; -1: unknown."""

    actual: int
    free: int
    available: int


class MemorySize(NamedTuple):
    """A VM's memory, bytes: what it was started with, what it has now, and what it can have while it runs."""

    started: int
    now: int
    most: int


class Pluggable(Protocol):
    """What a VM can be given and relieved of while it runs: an ability that not every ``Resident`` has.

    All methods raise as ``Resident.attach``, and may be called again after they were cut short.
    """

    async def plug_share(self, slot: int, tag: str, sock: socket.socket) -> None:
        """Put a share into a slot; ``sock`` is connected to its daemon, and the caller's still."""

    async def unplug_share(self, slot: int) -> None:
        """Have the guest let go of the share in a slot, if there is one; close its daemon's connection."""

    async def has_share(self, slot: int) -> bool:
        """Whether there is a share in a slot."""

    async def balloon(self) -> Balloon:
        """What the balloon leaves the guest, and what the guest says of its memory."""

    async def left_by_balloon(self) -> int:
        """What the balloon leaves the guest, bytes."""

    async def inflate(self, target: int) -> None:
        """Have the balloon leave the guest ``target`` bytes; it takes its time."""

    async def grow_disk(self, serial: str, size: int) -> None:
        """Tell the guest that a disk has ``size`` bytes now; the file on top of it follows if it must."""

    async def disk_file(self, serial: str) -> Path:
        """The file that a disk's writes go to now."""

    async def branch_disk(self, serial: str, overlay: Path) -> None:
        """Have a disk's writes go to ``overlay`` from now on, an empty qcow2 file of the disk's size.

        What was written before is in the file below when this returns, and that is only read from then on.
        """

    async def memory(self) -> MemorySize:
        """How much memory there is."""

    async def plug_memory(self, size: int) -> None:
        """Ask the guest to have ``size`` bytes of memory, whatever its balloon takes; it takes its time."""

    async def plug_vcpus(self, count: int) -> int:
        """Plug vCPUs in until there are ``count`` or no more can be; how many there are."""


class Resident(Protocol):
    """A VM that may outlive this process."""

    @property
    def plugging(self) -> Pluggable | None:
        """What can be plugged in and out of it; None if nothing can."""

    @property
    def process(self) -> Process | Adopted:
        """The hypervisor's process."""

    @property
    def departure(self) -> Departure:
        """How it ended, once it has; ``LOST`` if nobody was told."""

    def connect(self, port: Port) -> socket.socket | None:
        """A new connection to one of its ports, or None if it has no such port."""

    async def proceed(self) -> None:
        """Have a VM go on that was settled with ``Frozen``; nothing happens if it does already.

        Raises:
            BootError: stage ``spawn``: it cannot.
        """

    async def attach(self) -> None:
        """Begin to follow what the hypervisor says; without it ``departure`` stays unknown.

        Raises:
            BootError: stage ``spawn``: it does not answer.
        """

    async def paused(self) -> bool:
        """Whether its vCPUs stand still. Raises as ``attach``."""

    async def pause(self) -> None:
        """Stop the vCPUs. Raises as ``attach``."""

    async def resume(self) -> None:
        """Let the vCPUs go on. Raises as ``attach``."""

    async def free_card(self) -> None:
        """Have its network card be as if nobody had ever been connected. Raises as ``attach``."""

    async def capture(self, branch: Callable[[], Awaitable[None]], *, live: bool = False) -> Instant:
        """Write all of the VM down, which then goes on as it was.

        Args:
            branch: called while the vCPUs stand still and nothing is under way to a disk.
            live: have it go on while its RAM is written, if it can be: its memory takes its whole size on
                the host from then on.

        Raises:
            BootError: stage ``capture``: it cannot be written; the guest goes on.
            AtollError: of ``branch``; likewise.
        """

    async def recover(self, *, running: bool) -> None:
        """Put a VM right that somebody who is gone may have been writing down: nobody has what was written.

        Waits for the end of that.

        Args:
            running: the vCPUs go on then, if they stand still.

        Raises:
            BootError: as ``attach``; stage ``capture``: its RAM stays write-protected.
        """

    async def press_power_button(self) -> None:
        """Ask the guest to power off as a button would (ACPI). Raises as ``attach``."""

    async def quit(self) -> None:
        """Have the hypervisor end, disks flushed. Raises as ``attach``."""

    async def position(self) -> Position:
        """Where the guest executes now; ``UNKNOWN`` if the backend cannot tell."""

    async def wait(self) -> int:
        """Wait for the process's end; its status. Any number may wait."""

    async def close(self) -> None:
        """Kill the VM if it runs, reap its process, close all that is open. Closing twice is fine."""

    async def leave(self) -> None:
        """Close all that is open and leave the VM as it is."""


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, in the place of one that a killed process left; its owner's only.

    Raises:
        StoreError: it cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        at_directory(path, sock.bind)
        path.chmod(0o600)
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise StoreError(f"cannot listen at {path}: {error.strerror}", code="io") from error
    return sock


def connect(path: Path) -> socket.socket:
    """A connection to the socket at ``path``. Raises ``OSError`` if nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        at_directory(path, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


def at_directory(path: Path, use: Callable[[str], None]) -> None:
    """Call ``use`` with a short name of ``path``: a socket's name has at most 107 bytes (unix(7)).

    Raises ``OSError``.
    """
    if len(os.fsencode(path)) <= SUN_PATH:
        use(str(path))
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


class ChannelEnd:
    """The host's end of a guest channel until somebody takes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket: socket.socket | None = sock

    def take(self) -> socket.socket:
        """The socket, once; the caller owns it."""
        taken, self._socket = self._socket, None
        assert taken is not None, "the channel was taken before"
        return taken

    def close(self) -> None:
        """Close the socket if nobody took it."""
        if self._socket is not None:
            self.take().close()


#: Reads for one wake-up: a guest that writes without end shall not hold the event loop.
_READS = 16


class Capture:
    """The last bytes of an output that nobody may be reading.

    Args:
        source: descriptor to read from; owned from here on.
        limit: bytes kept, the newest.
    """

    def __init__(self, source: int, *, limit: int = 65_536) -> None:
        os.set_blocking(source, False)
        self._source = source
        self._limit = limit
        self._kept = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self) -> None:
        """Read along on the running event loop, so that the writer never waits for a full buffer."""
        import asyncio  # noqa: PLC0415 - loaded while the guest boots

        if self._source >= 0 and self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._source, self._read)

    def text(self) -> str:
        """What is kept, as text."""
        self._read()
        return self._kept.decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int = 15) -> str:
        """The last ``lines`` lines that are not empty."""
        return "\n".join([line for line in self.text().splitlines() if line.strip()][-lines:])

    def close(self) -> None:
        """Stop reading; what is kept stays readable."""
        self._read()
        self._stop()

    def _read(self) -> None:
        for _ in range(_READS):
            if self._source < 0:
                return
            try:
                data = os.read(self._source, 65_536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._stop()
                return
            self._kept += data
            del self._kept[: -self._limit]

    def _stop(self) -> None:
        if self._source < 0:
            return
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed already
                self._loop.remove_reader(self._source)
        os.close(self._source)
        self._source = -1


def find_holder(place: VmPaths) -> Adopted | None:
    """The hypervisor that runs at ``place``: it holds the lock there and wrote its process id; None if none.

    Other processes may have inherited the lock, and a pid file may be older than it: only a process for which
    both is true is the one.

    Raises:
        BootError: stage ``spawn``: something holds the lock, and does not say what it is.
    """
    deadline = time.monotonic() + _PID_WAIT
    while store.is_held(place.vm_lock):
        with contextlib.suppress(OSError, ValueError):  # it has not come so far yet
            identity = process.identify(int(place.pid_file.read_text()))
            if identity is not None and process.has_open(identity.pid, place.vm_lock):
                found = Adopted.of(identity)
                if found is not None:
                    return found
        if time.monotonic() > deadline:
            raise BootError(
                f"{place.directory.name}: its VM runs but does not tell its process id",
                stage="spawn",
                hint=f"find and end the process that holds {place.vm_lock}",
            )
        time.sleep(0.002)
    return None


def sweep(place: VmPaths) -> None:
    """Remove the sockets and the pid file of a VM that is gone."""
    if not store.is_held(place.vm_lock):
        for path in (place.pid_file, *(place.socket(name) for name in (*Port, "qmp"))):
            with contextlib.suppress(OSError):
                path.unlink()


async def wait_for_exit(running: Process | Adopted) -> int:
    """Wait until a process has ended, by its pidfd; its exit status."""
    import asyncio  # noqa: PLC0415 - loaded while the guest boots

    loop = asyncio.get_running_loop()
    status = running.poll()
    if status is not None:
        return status
    fd = os.dup(running.pidfd)  # one event loop allows one reader for each descriptor
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        while (status := running.poll()) is None:
            await ended.wait()
        return status
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def end(running: Process | Adopted) -> None:
    """Kill a process if it runs, wait for its end without blocking the loop, and reap it."""
    if running.pidfd < 0:
        return  # closed before
    running.kill()
    try:
        await wait_for_exit(running)
    finally:
        running.close()  # it was killed: this waits milliseconds at most
