"""A hypervisor without a virtual machine: the real guest agent as an ordinary process of the host.

It passes the same contract suite as the real backends and lets programs be tested where no VM can run.
Commands run on the host, with this user's rights: it isolates nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from atoll import process, store
from atoll.errors import BootError
from atoll.hypervisor.model import Machine, Port
from atoll.hypervisor.port import (
    Capture,
    ChannelEnd,
    Departure,
    Frozen,
    Instant,
    Position,
    connect,
    end,
    find_holder,
    listen,
    sweep,
    wait_for_exit,
)
from atoll.paths import VmPaths, agent_path
from atoll.process import Adopted, Process

__all__ = ["FakeHypervisor", "FakeResident", "FakeVm"]

#: Seconds that the agent has to end its commands before it is killed.
_ORDERLY = 1.0


class FakeHypervisor:
    """Spawns the agent in hosted mode; the device model is not looked at but for its name."""

    name = "fake"

    def spawn(self, machine: Machine) -> FakeVm:
        """Start the agent. Raises ``BootError`` (stage ``spawn``) if it is not built."""
        agent = _agent(machine)
        ours, theirs = socket.socketpair()
        console_read, console_write = os.pipe()
        try:
            child = process.spawn(
                [agent, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], output=console_write
            )
        except BaseException:
            ours.close()
            os.close(console_read)
            raise
        finally:
            theirs.close()
            os.close(console_write)
        return FakeVm(child, ours, Capture(console_read))

    def settle(self, machine: Machine, place: VmPaths, frozen: Frozen | None = None) -> FakeResident:
        """Start the agent so that it stays and serves one connection after another. Raises ``BootError``."""
        assert frozen is None, "an agent cannot go on from anything"
        agent = _agent(machine)
        place.logs.mkdir(mode=0o700, exist_ok=True)
        with ExitStack() as stack:
            lock = store.hold(place.vm_lock)
            if lock is None:
                raise BootError(f"{machine.name}: its VM runs already", stage="spawn", hint="see `atoll ls`")
            stack.callback(os.close, lock)
            place.pid_file.unlink(missing_ok=True)  # of an agent that was killed
            sock = stack.enter_context(listen(place.socket(Port.CHANNEL)))
            log = os.open(
                place.log("hypervisor"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            stack.callback(os.close, log)
            write_pid = f'echo $$ > {shlex.quote(str(place.pid_file))}; exec "$@"'
            argv = ["/bin/sh", "-c", write_pid, "sh", agent, "--listen", str(sock.fileno())]
            child = process.spawn(argv, pass_fds=[lock, sock.fileno()], output=log, die_with_parent=False)
        return FakeResident(child, place)

    def adopt(self, place: VmPaths) -> FakeResident | None:
        """The agent that runs at ``place``."""
        found = find_holder(place)
        return FakeResident(found, place) if found is not None else None


def _agent(machine: Machine) -> str:
    agent = agent_path(os.uname().machine)
    if not agent.exists():
        hint = "run `make build`, which compiles it"
        raise BootError(f"{machine.name}: no guest agent for this host", stage="spawn", hint=hint)
    return str(agent)


class FakeResident:
    """An agent's process that outlives whoever started it."""

    def __init__(self, handle: Process | Adopted, place: VmPaths) -> None:
        self.process = handle
        self._place = place
        self._quits = False

    @property
    def departure(self) -> Departure:
        """By its exit status; of an adopted one nobody learns it."""
        if self._quits:
            return Departure.QUIT
        status = self.process.poll()
        return {0: Departure.SHUTDOWN, 3: Departure.RESET}.get(
            -1 if status is None else status, Departure.LOST
        )

    @property
    def plugging(self) -> None:
        """A process has no devices."""

    def connect(self, port: Port) -> socket.socket | None:
        """A new connection to the agent; there are no consoles."""
        try:
            return connect(self._place.socket(port)) if port is Port.CHANNEL else None
        except OSError:
            return None

    async def proceed(self) -> None:
        """It runs."""

    async def attach(self) -> None:
        """There is no monitor."""

    async def paused(self) -> bool:
        """Whether the process is stopped."""
        return self._is_stopped()

    def _is_stopped(self) -> bool:
        """By its state, T (proc(5))."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self.process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
            return state == b"T"
        return False

    async def pause(self) -> None:
        """Stop the process."""
        self.process.send(signal.SIGSTOP)
        while self.process.poll() is None and not self._is_stopped():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)

    async def resume(self) -> None:
        """Let the process go on."""
        self.process.send(signal.SIGCONT)

    async def free_card(self) -> None:
        """It has none."""

    async def capture(
        self,
        branch: Callable[[], Awaitable[None]],  # noqa: ARG002
        *,
        live: bool = False,  # noqa: ARG002
    ) -> Instant:
        """What a process of the host has open cannot be written down."""
        message = "an agent alone cannot be written down"
        raise BootError(message, stage="capture", hint="use QEMU")

    async def recover(self, *, running: bool) -> None:
        """Nobody writes it down; it may have been stopped."""
        if running and self._is_stopped():
            await self.resume()

    async def press_power_button(self) -> None:
        """There is no button."""

    async def quit(self) -> None:
        """Have the agent end."""
        self._quits = True
        self.process.send(signal.SIGTERM)
        self.process.send(signal.SIGCONT)  # a process that is stopped takes no other signal

    async def position(self) -> Position:
        """There are no vCPUs to look at."""
        return Position.UNKNOWN

    async def wait(self) -> int:
        """Wait for the agent's end."""
        return await wait_for_exit(self.process)

    async def close(self) -> None:
        """Kill the agent; what it runs dies with it."""
        await end(self.process)
        sweep(self._place)

    async def leave(self) -> None:
        """Let it run."""
        self.process.forget()


class FakeVm:
    """The agent's process."""

    def __init__(self, child: process.Process, channel: socket.socket, console: Capture) -> None:
        self.process = child
        self.console = console
        self.diagnostics = console
        self.card: Path | None = None
        self._channel = ChannelEnd(channel)

    def take_channel(self) -> socket.socket:
        """The host's end of the channel, once."""
        return self._channel.take()

    async def wait(self) -> int:
        """Wait for the agent's end."""
        return await wait_for_exit(self.process)

    async def position(self) -> Position:
        """There are no vCPUs to look at."""
        return Position.UNKNOWN

    async def free_card(self) -> None:
        """It has none."""

    def discard(self) -> None:
        """Kill the agent; what it runs dies with it."""
        self.process.close()
        self._channel.close()
        self.console.close()

    async def close(self) -> None:
        """End the agent and the commands it runs."""
        self._channel.close()  # without it the agent ends its commands and itself
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ORDERLY):
                    await self.wait()
            await end(self.process)
        finally:
            self.discard()
