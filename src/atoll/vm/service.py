"""What a supervisor's clients may ask for, and who answers (docs/reference/control-protocol.md)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from atoll.errors import AtollError, StoreError
from atoll.events import Event
from atoll.guest.messages import Empty
from atoll.hypervisor.model import Port
from atoll.hypervisor.port import Instant
from atoll.paths import VmPaths
from atoll.vm import messages
from atoll.vm.branching import Branch
from atoll.vm.chain import read_chain, used_by
from atoll.vm.control import ControlServer, Method
from atoll.vm.ports import port_methods
from atoll.vm.sizing import memory_of, memory_state, resize, set_balloon
from atoll.vm.state import Phase, StateError
from atoll.vm.streams import LocalStream
from atoll.vm.supervisor import Supervisor

__all__ = ["Service", "cpu_time"]

T = TypeVar("T")

#: Lines that a listener may lag behind before it loses some.
_MOST_LINES = 4096


class Service:
    """Answers clients on behalf of ``supervisor``."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._listeners: set[asyncio.Queue[bytes]] = set()
        self.server = ControlServer(self._methods())
        supervisor.on_channel = self._on_channel

    def tell(self, event: Event) -> None:
        """Pass ``event`` on to who follows the events."""
        line = msgspec.json.encode(event) + b"\n"
        for listener in self._listeners:
            with contextlib.suppress(asyncio.QueueFull):
                listener.put_nowait(line)

    def _on_channel(self, channel: object) -> None:
        self.server.channel = channel  # type: ignore[assignment]

    def _methods(self) -> Mapping[str, Method]:
        return {
            "vm.status": self._status,
            "vm.start": self._start,
            "vm.stop": self._stop,
            "vm.pause": self._pause,
            "vm.resume": self._resume,
            "vm.wait": self._wait,
            "vm.events": self._events,
            "vm.console": self._console,
            "vm.branch": self._branch,
            "vm.capture": self._capture,
            "vm.stats": self._stats,
            "vm.memory": self._memory,
            "vm.resize": self._resize,
            "vm.egress": self._egress,
            "vm.share.add": self._share_add,
            "vm.share.remove": self._share_remove,
            "vm.share.list": self._share_list,
            "vm.network.join": self._network_join,
            **port_methods(self._supervisor.card.ports),
        }

    def status(self) -> messages.Status:
        """The machine, now."""
        supervisor = self._supervisor
        vm = supervisor.vm.process.pid if supervisor.vm is not None else 0
        return messages.Status(
            state=supervisor.state, supervisor=os.getpid(), vm=vm, clients=len(self.server.clients)
        )

    async def _status(self, _: bytes, stream: LocalStream) -> None:
        stream.reply(self.status())

    async def _start(self, payload: bytes, stream: LocalStream) -> None:
        await self._supervisor.start(_parse(payload, messages.Start).files)
        stream.reply(self.status())

    async def _stop(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.Stop)
        stop = self._supervisor.stop(
            force=request.force, timeout=request.timeout, suspended=request.suspended
        )
        stream.reply(await _to_its_end(stop))

    async def _pause(self, _: bytes, stream: LocalStream) -> None:
        await _to_its_end(self._supervisor.pause())
        stream.reply(Empty())

    async def _resume(self, _: bytes, stream: LocalStream) -> None:
        await _to_its_end(self._supervisor.resume())
        stream.reply(Empty())

    async def _branch(self, _: bytes, stream: LocalStream) -> None:
        branch = await _to_its_end(self._supervisor.branch())
        stream.reply(messages.Branched(branch.after.frozen, branch.size))

    async def _capture(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.Capture)
        hold = request.hold

        def drop(taken: tuple[Branch | None, Instant]) -> None:
            taken[1].close()
            if hold:
                self._supervisor.release_soon()

        capture = self._supervisor.capture(hold=hold, flush=request.flush, live=request.live)
        branch, instant = await _to_its_end(capture, unwanted=drop)
        try:
            files = messages.Files(
                pid=os.getpid(),
                ram=instant.ram,
                state=instant.state,
                more=instant.more,
                devices=instant.devices,
            )
            stream.patient = True
            stream.reply(
                messages.Captured(
                    files=files,
                    layers=branch.after.frozen if branch is not None else (),
                    size=branch.size if branch is not None else 0,
                    vcpus=instant.vcpus,
                    memory=instant.memory,
                    stopped=instant.stopped.seconds,
                ),
                end=False,
            )
            while await stream.read():
                pass
        finally:
            instant.close()
            if hold:
                self._supervisor.release_soon()

    async def _wait(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.WaitFor)
        stream.patient = True
        await self._supervisor.settled()
        while self._supervisor.state.phase not in request.phases:
            changed = self._supervisor.changed
            await changed.wait()
        stream.reply(self.status())

    async def _events(self, _: bytes, stream: LocalStream) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue(_MOST_LINES)
        self._listeners.add(queue)
        try:
            stream.reply(Empty(), end=False)
            while True:
                await stream.write(await queue.get())
        finally:
            self._listeners.discard(queue)

    async def _console(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.ConsoleAttach)
        await self._supervisor.settled()
        if self._supervisor.state.phase is Phase.PAUSED or self._supervisor.vm is None:
            message = f"{self._supervisor.name} is {self._supervisor.state.phase}: its console is dead"
            raise StateError(message, code="not_running", hint="`atoll start` or `atoll resume` helps")
        tap = self._supervisor.outputs.taps[Port.CONSOLE]
        queue: asyncio.Queue[bytes] = asyncio.Queue(_MOST_LINES)

        def feed(data: bytes) -> None:
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(data)

        async def show() -> None:
            while True:
                await stream.write(await queue.get())

        stream.reply(Empty(), end=False)
        if request.replay:
            feed(tap.recent()[-request.replay :])
        tap.listeners.add(feed)
        showing = asyncio.create_task(show())
        try:
            while data := await stream.read():
                self._supervisor.outputs.type(data)
        finally:
            tap.listeners.discard(feed)
            showing.cancel()

    async def _memory(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.MemoryTarget)
        await self._supervisor.settled()
        vm = self._supervisor.require(Phase.RUNNING, "asked for its memory")
        stream.reply(await (memory_state(vm) if request.target is None else set_balloon(vm, request.target)))

    async def _resize(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.Resize)
        await self._supervisor.settled()
        vm, agent = self._supervisor.require(Phase.RUNNING, "resized"), self._supervisor.agent
        assert agent is not None, "it is running"
        stream.reply(messages.Resized(await resize(vm, agent, self._supervisor.plan.setup, request)))

    async def _egress(self, payload: bytes, stream: LocalStream) -> None:
        await self._supervisor.card.follow(_parse(payload, messages.EgressSet).egress)
        stream.reply(Empty())

    async def _share_add(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.ShareAdd)
        await self._supervisor.settled()
        self._supervisor.require(Phase.RUNNING, "given a share")
        await self._supervisor.shares.add(request.share)
        stream.reply(Empty())

    async def _share_remove(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.ShareRemove)
        await self._supervisor.settled()
        self._supervisor.require(Phase.RUNNING, "relieved of a share")
        await self._supervisor.shares.remove(request.guest)
        stream.reply(Empty())

    async def _network_join(self, payload: bytes, stream: LocalStream) -> None:
        request = _parse(payload, messages.NetworkJoin)
        await self._supervisor.settled()
        await _to_its_end(self._supervisor.join(request.network))
        stream.reply(Empty())

    async def _share_list(self, _: bytes, stream: LocalStream) -> None:
        await self._supervisor.settled()
        self._supervisor.require(Phase.RUNNING, "asked for its shares")
        stream.reply(messages.Shared(await self._supervisor.shares.listed()))

    async def _stats(self, _: bytes, stream: LocalStream) -> None:
        supervisor = self._supervisor
        pid = supervisor.vm.process.pid if supervisor.vm is not None else 0
        guest = None
        if supervisor.agent is not None and supervisor.state.phase is Phase.RUNNING:
            with contextlib.suppress(AtollError, TimeoutError):
                async with asyncio.timeout(2.0):
                    guest = await supervisor.agent.stats()
        resident, private = memory_of(pid)
        stream.reply(
            messages.Stats(
                host_memory=resident,
                host_private=private,
                host_cpu=cpu_time(pid),
                supervisor_memory=memory_of(os.getpid())[1],
                disk=_disk_use(supervisor.place),
                guest=guest,
            )
        )


async def _to_its_end(
    change: Coroutine[None, None, T], *, unwanted: Callable[[T], None] = lambda _: None
) -> T:
    """Carry a change out although the client that asked for it may go away: half of it would be no state.

    What it brings is ``unwanted`` then.
    """
    task = asyncio.create_task(change)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(
            lambda done: None if done.cancelled() or done.exception() else unwanted(done.result())
        )
        raise


def _parse(payload: bytes, kind: type[T]) -> T:
    return msgspec.msgpack.decode(payload, type=kind)


def cpu_time(pid: int) -> int:
    """CPU time of a process, ns."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    return 0


def _disk_use(place: VmPaths) -> int:
    """Bytes that the disk takes on the host."""
    with contextlib.suppress(StoreError):
        return used_by(place, read_chain(place))
    return 0
