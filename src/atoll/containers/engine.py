"""Docker's engine in a machine of its own: there when it is asked for, at rest when it is not.

Everything that changes the machine is done under one lock, which other processes respect, too; whoever comes
second finds it done. What runs in the machine is `atoll.containers.guest`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec

from atoll import runtime, store
from atoll.config import Config, NetworkKind, load, override
from atoll.containers import api, guest, root
from atoll.containers.hosting import NAME
from atoll.containers.own import OwnMachine, alone
from atoll.containers.settings import CONTAINERD_SOCKET, DOCKER_SOCKET, EngineSettings, daemon_json
from atoll.errors import (
    AtollError,
    ConfigError,
    EngineError,
    GuestError,
)
from atoll.events import Emit, ignore
from atoll.guest.agent import Agent
from atoll.guest.channel import Stream
from atoll.guest.wire import WINDOW
from atoll.image.manifest import ImageManifest
from atoll.machine import creation
from atoll.machine.creation import Wishes
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.vm import serving
from atoll.vm.restart import Policy
from atoll.vm.state import Phase

__all__ = ["IMAGE", "NAME", "Engine", "EngineStatus"]

IMAGE = "engine"

#: Seconds in which an engine that runs answers; more, and it is brought up again.
_ANSWER = 5.0

#: Seconds between two attempts to reach an engine that comes up.
_PAUSE = 0.02

#: Seconds between two looks at how often the engine's programs have ended meanwhile.
_LOOK = 1.0

#: So often a program may end while it is waited for.
_ENDS = 3

#: Seconds in which containers may end when the machine is stopped, beside the guest's own end.
_STOP = 60.0

_PROGRAMS = ("containerd", "dockerd")


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is and does.

    Attributes:
        phase: of its machine; "absent" if there is none.
        ready: whether it answers.
        pending: whether settings wait for a restart.
        image: its root's name and digest; empty without a machine.
        cpus: vCPUs of the machine; ``memory`` and ``disk`` in bytes.
        emulated: Docker's platforms that its root emulates.
    """

    phase: str
    ready: bool = False
    pending: bool = False
    image: str = ""
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    emulated: tuple[str, ...] = ()


class Engine:
    """Docker's engine of this user. Nothing is done before a method is called. Belongs to one event loop.

    Args:
        settings: what is wanted of it; they take effect at its next start.
        config: resolved settings; by default those of this user.
        on_event: told of everything that happens, see ``atoll.events``.
        renew: makes the settings anew before each start; it may raise ``ConfigError``.
    """

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        config: Config | None = None,
        on_event: Emit = ignore,
        renew: Callable[[], EngineSettings] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self._renew = renew
        # Its image is Atoll's own, whatever platform others shall be of.
        given = load().config if config is None else config
        self._config = override(given, {"platform": "", "full": False})
        self._emit = on_event
        self._machine = OwnMachine(NAME, title="the engine", config=self._config, on_event=on_event)

    # Its life.

    async def start(self, timeout: float = 60.0) -> EngineStatus:  # noqa: ASYNC109 - as for ``ensure_ready``
        """``ensure_ready``, and what the engine is then."""
        await self.ensure_ready(timeout)
        return await self.status()

    async def ensure_ready(self, timeout: float = 60.0) -> None:  # noqa: ASYNC109 - a stage is named at its end
        """Have the engine answer: made, started, resumed or just found. Many may ask at once.

        Args:
            timeout: seconds in which it must answer once its image and its kernel are here; they are built
                before, on the first use.

        Raises:
            EngineError: ``engine.containerd`` or ``engine.dockerd``: that program does not come up, with what
                it wrote last; ``engine.busy``: another process brings it up or ends it, and does not finish.
            ImageError: the image cannot be built, or lacks a program.
            ConfigError: a setting is wrong.
            UsageError: ``usage.reserved``: a machine of a user's has its name.
            AtollError: as ``Machine.start``.
        """
        if await self._answers():
            return
        if self._renew is not None:
            self.settings = await asyncio.to_thread(self._renew)
        await asyncio.to_thread(self._provide)
        deadline = time.monotonic() + timeout
        async with self._alone(deadline):
            if not await self._answers():
                await self._machine.bring_up(self._made, self._wanted)
                await self._await_answer(deadline, timeout)

    async def stop(self, timeout: float = _STOP) -> None:  # noqa: ASYNC109 - the containers' part
        """End containers, engine and machine in this order within ``timeout`` seconds, else by force."""
        async with self._alone(time.monotonic() + timeout):
            if self._machine.exists():
                await self._machine.stop(timeout=timeout)
                await self._machine.close()

    async def restart(self, timeout: float = 60.0) -> EngineStatus:  # noqa: ASYNC109 - as for ``ensure_ready``
        """Stop and start it with its settings as they are now; containers return as their policies say.

        Raises:
            ConfigError: as ``check``, before anything is stopped; and as ``start``.
        """
        await self.check()
        await self.stop()
        return await self.start(timeout)

    async def check(self) -> None:
        """Refuse settings with which the engine would not start, as far as that is known before it is tried.

        An engine that runs is asked what it thinks of them (dockerd(8), ``--validate``); it goes on as it is.

        Raises:
            ConfigError: ``config.engine``, with dockerd's own words if they are.
            PreflightError: a directory is to be shared, and this host lacks what that takes.
        """
        wanted = daemon_json(self.settings)
        guest.service(self.settings)
        if self.settings.shares:
            serving.check()
        if not self._machine.exists() or self._machine.state.phase is not Phase.RUNNING:
            return
        done = await self._machine.run(["/bin/sh", "-c", guest.VALIDATE], input=wanted)
        if done.code:
            message, hint = "dockerd refuses the daemon settings", "nothing was stopped; mend docker_daemon"
            raise ConfigError(message, code="engine", hint=hint, detail=done.stderr.strip())

    async def suspend(self) -> None:
        """Have the engine rest, containers and all, until ``ensure_ready``, unless it rests already.

        Raises:
            StateError: a share is in use in it.
            StoreError: ``store.full``: it cannot be kept, and goes on.
        """
        async with self._alone(time.monotonic() + _STOP):
            if self._machine.exists() and self._machine.state.phase in {Phase.RUNNING, Phase.PAUSED}:
                await self._machine.suspend()
                await self._machine.close()

    async def reset(self) -> None:
        """Remove the engine with all images, containers and volumes."""
        async with self._alone(time.monotonic() + _STOP):
            if self._machine.exists():
                self._machine.require_own()
                await self._machine.purge()

    async def close(self) -> None:
        """Let go of the engine, which goes on. Closing twice is fine."""
        await self._machine.close()

    # What it is.

    async def status(self) -> EngineStatus:
        """What the engine is and does."""
        if not self._machine.exists():
            return EngineStatus(phase="absent")
        machine = self._machine.find()
        manifest = store.read_record(machine.place.image, ImageManifest)
        return EngineStatus(
            phase=machine.state.phase,
            ready=await self._answers(),
            pending=self._is_pending(machine),
            image=f"{manifest.name}@sha256:{manifest.digest}",
            cpus=machine.spec.cpus,
            memory=machine.spec.memory,
            disk=machine.spec.disk,
            emulated=root.emulated(manifest),
        )

    async def busy(self) -> bool:
        """Whether a container runs in it. One that does not run is not busy. Raises ``AtollError``."""
        if not self._machine.exists() or not self._machine.state.active:
            return False
        containers = await api.get(await self.connected(), "/containers/json")
        return bool(msgspec.json.decode(containers, type=list[msgspec.Raw]))

    async def logs(self, lines: int = 200) -> str:
        """What containerd and dockerd wrote last, so many lines of each. Raises ``StateError`` at rest."""
        files = [f"{guest.LOGS}/{name}.log" for name in _PROGRAMS]
        return (await self._machine.run(["tail", "-n", str(lines), *files])).stdout

    async def dial(self, window: int = WINDOW) -> Stream:
        """A new connection to dockerd's socket, whose reply tells whether it was taken.

        Args:
            window: bytes that may be under way in either direction.

        Raises:
            StateError, ChannelError: it does not run.
        """
        return (await self.agent()).connect(DOCKER_SOCKET, window=window)

    async def connected(self) -> Stream:
        """A new connection to dockerd's socket, for ``api``.

        Raises:
            StateError, ChannelError, GuestError: it does not run, or does not listen now.
        """
        return await self._machine.connected(DOCKER_SOCKET)

    async def agent(self) -> Agent:
        """The agent of its guest. Raises ``StateError`` or ``ChannelError``: it does not run."""
        return await self._machine.agent()

    def active(self) -> bool:
        """Whether its machine runs."""
        return self._machine.exists() and self._machine.state.active

    def shared(self) -> tuple[str, ...]:
        """Paths in its machine that are directories of this host."""
        return (
            tuple(share.guest for share in self._machine.find().spec.shares) if self._machine.exists() else ()
        )

    def allocated(self) -> int:
        """Bytes of this host that its disk takes. Raises ``StoreError``: there is none."""
        return self._machine.allocated()

    async def trim(self) -> None:
        """Give space that nothing uses any more back to this host. Raises as ``dial``, and ``GuestError``."""
        await (await self.agent()).trim_data()

    # From here on: how it is done.

    def _is_pending(self, machine: Named) -> bool:
        at_rest = not machine.state.active and machine.state.phase is not Phase.SUSPENDED
        with contextlib.suppress(AtollError):  # what is wrong with the settings is said at a start
            return not at_rest and self._wanted(machine.spec) != machine.spec
        return True

    @asynccontextmanager
    async def _alone(self, deadline: float) -> AsyncIterator[None]:
        """Keep other processes from bringing the engine up or ending it meanwhile."""
        async with alone(self._config.paths.engine_lock, deadline) as held:
            if not held:
                hint = "wait for it, and see `atoll docker status`"
                message = "another process brings the engine up or ends it"
                raise EngineError(message, code="busy", hint=hint)
            yield

    def _provide(self) -> None:
        """Have image and kernel here before a machine is made or started: to build them takes minutes."""
        if not self._machine.exists():
            runtime.ensure_image(self._config, IMAGE, self._emit)
            runtime.found(self._sized(), emit=self._emit)

    def _sized(self) -> Config:
        size = f"{self.settings.memory >> 20}M"
        return override(self._config, {"cpus": self.settings.cpus, "memory": size})

    def _wanted(self, former: MachineSpec) -> MachineSpec:
        """What the machine shall be. Its disk can only grow."""
        settings = self.settings
        return msgspec.structs.replace(
            former,
            cpus=settings.cpus,
            memory=settings.memory,
            disk=max(former.disk, settings.disk),
            shares=tuple(creation.shared(share) for share in settings.shares),
            service=guest.service(settings),
            restart=Policy.ON_FAILURE,
            slirp=self._config.network is NetworkKind.SLIRP,
            ca=self._config.ca,
        )

    def _made(self) -> MachineSpec:
        """What a new machine is."""
        wishes = Wishes(image=IMAGE, init="minimal", network=True, disk=self.settings.disk)
        return self._wanted(creation.make_spec(self._sized(), wishes))

    async def _answers(self) -> bool:
        """Whether dockerd answers."""
        with contextlib.suppress(AtollError, TimeoutError):
            async with asyncio.timeout(_ANSWER):
                if self._machine.exists() and self._machine.state.phase is Phase.RUNNING:
                    return await api.get(await self.connected(), "/_ping") == b"OK"
        return False

    async def _await_answer(self, deadline: float, limit: float) -> None:
        """Wait until dockerd answers; a program that ends again and again is not waited for."""
        began = await self._ends()
        look = time.monotonic() + _LOOK
        while not await self._answers():
            now = time.monotonic()
            state = self._machine.state
            if not state.active:
                said = state.failure.message if state.failure else state.cause
                raise EngineError(f"the engine's machine is {state.phase}: {said}", code="machine")
            if now > look:
                ends = await self._ends()
                failing = next((name for name in _PROGRAMS if ends[name] - began[name] >= _ENDS), "")
                if failing:
                    raise await self._failure(failing, f"{failing} ends again and again")
                look = now + _LOOK
            if now > deadline:
                name = await self._waited_for()
                raise await self._failure(name, f"{name} has not come up within {limit:g} s")
            await asyncio.sleep(_PAUSE)

    async def _ends(self) -> dict[str, int]:
        """How often each program has ended without being asked."""
        counts = dict.fromkeys(_PROGRAMS, 0)
        for name in _PROGRAMS:
            with contextlib.suppress(GuestError, ValueError):
                counts[name] = int(await self._machine.files.read_text(f"{guest.FAILURES}/{name}"))
        return counts

    async def _waited_for(self) -> str:
        """The program that does not listen."""
        try:
            stream = await self._machine.connected(CONTAINERD_SOCKET)
        except AtollError:
            return "containerd"
        stream.cancel()
        return "dockerd"

    async def _failure(self, name: str, message: str) -> EngineError:
        hint = "see `atoll docker logs`; a wrong key of the daemon settings is named there"
        said = ""
        with contextlib.suppress(AtollError):
            said = (await self._machine.run(["tail", "-n", "12", f"{guest.LOGS}/{name}.log"])).stdout
        if name == "containerd":
            return EngineError(message, code="containerd", hint=hint, detail=said.strip())
        return EngineError(message, code="dockerd", hint=hint, detail=said.strip())
