"""The machine in which images are built: there when it is asked for, asleep when nothing is built.

It is kept with all that buildah has made so far, and has the root of the engine of containers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from atoll import runtime
from atoll.building import guest
from atoll.config import Config, NetworkKind, override
from atoll.containers.own import OwnMachine, alone
from atoll.errors import AtollError, BuildError
from atoll.events import Emit, ignore
from atoll.image import catalog
from atoll.image.engine import BUILDER
from atoll.machine import creation
from atoll.machine.creation import Wishes
from atoll.machine.spec import MachineSpec
from atoll.vm.restart import Policy
from atoll.vm.state import Phase

__all__ = ["NAME", "Builder", "BuilderStatus"]

#: The machine, and the image whose root it has.
NAME, _IMAGE = "image-builder", "engine"

#: Seconds in which one that runs answers; more, and it is brought up again.
_ANSWER = 5.0

#: Seconds that another process may take to bring it up or to end it, image and kernel being here.
_PATIENCE = 180.0


class BuilderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the builder is and does.

    Attributes:
        phase: of its machine; "absent" if there is none.
        cpus: vCPUs of the machine; ``memory`` and ``disk`` in bytes.
        used: bytes of this host that its disk takes.
    """

    phase: str
    cpus: int = 0
    memory: int = 0
    disk: int = 0
    used: int = 0


class Builder:
    """The builder of this user. Nothing is done before a method is called. Belongs to one event loop.

    Args:
        config: resolved settings.
        on_event: told of everything that happens, see ``atoll.events``.

    Attributes:
        machine: it, once ``ensure_ready`` was called.
    """

    def __init__(self, config: Config, *, on_event: Emit = ignore) -> None:
        self._config = config
        self._emit = on_event
        self.machine = OwnMachine(NAME, title="the builder", config=config, on_event=on_event)

    async def ensure_ready(self) -> None:
        """Have it answer: made, started, resumed or just found. Many may ask at once.

        Raises:
            BuildError: ``build.busy``: another process brings it up or ends it, and does not finish.
            ImageError: its image cannot be built.
            UsageError: ``usage.reserved``: a machine of a user's has its name.
            AtollError: as ``Machine.start``.
        """
        if await self._answers():
            return
        await asyncio.to_thread(self._provide)
        async with self._alone():
            if not await self._answers():
                await self.machine.bring_up(self._made, self._wanted)

    async def stop(self) -> None:
        """End it; what it keeps stays. Builds that go on fail."""
        async with self._alone():
            if self.machine.exists():
                await self.machine.stop()
                await self.machine.close()

    async def remove(self) -> None:
        """Remove it with all that it keeps. Builds that go on fail."""
        async with self._alone():
            if self.machine.exists():
                self.machine.require_own()
                await self.machine.purge()

    async def prune(self) -> int:
        """Remove all that it keeps of earlier builds; bytes that this host got back.

        Raises:
            BuildError: ``build.busy``: an image is being built; ``build.builder``: buildah fails.
            AtollError: as ``ensure_ready``.
        """
        if not self.machine.exists():
            return 0
        await self.ensure_ready()
        before = self.machine.allocated()
        done = await self.machine.run(["/bin/sh", "-c", guest.PRUNE])
        if done.code == guest.BUSY:
            raise BuildError("an image is being built", code="busy", hint="wait for its end")
        if done.code:
            message, hint = "the builder cannot be tidied", "`atoll builder rm` removes it with all it keeps"
            raise BuildError(message, code="builder", hint=hint, detail=done.stderr.strip())
        await (await self.machine.agent()).trim_data()
        return max(0, before - self.machine.allocated())

    async def close(self) -> None:
        """Let go of it; it goes on. Closing twice is fine."""
        await self.machine.close()

    def status(self) -> BuilderStatus:
        """What it is and does."""
        if not self.machine.exists():
            return BuilderStatus(phase="absent")
        machine = self.machine.find()
        return BuilderStatus(
            phase=machine.state.phase,
            cpus=machine.spec.cpus,
            memory=machine.spec.memory,
            disk=machine.spec.disk,
            used=self.machine.allocated(),
        )

    # From here on: how it is done.

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep other processes from bringing it up or ending it meanwhile."""
        async with alone(self._config.paths.builder_lock, time.monotonic() + _PATIENCE) as held:
            if not held:
                message = "another process brings the builder up or ends it"
                raise BuildError(message, code="busy", hint="wait for it, and see `atoll builder status`")
            yield

    def _provide(self) -> None:
        """Have image and kernel here before the machine is made or started: to build them takes minutes."""
        if self.machine.exists() and self.machine.state.phase is Phase.SUSPENDED:
            return
        image = runtime.ensure_image(self._config, _IMAGE, self._emit)
        if not any(program.name == BUILDER and program.path for program in image.manifest.programs):
            mirror = self._config.ubuntu_mirror
            catalog.build(self._config.paths, _IMAGE, force=True, mirror=mirror, emit=self._emit)
        if not self.machine.exists():
            runtime.found(self._sized(), emit=self._emit)

    def _sized(self) -> Config:
        memory = f"{self._config.build_memory >> 20}M"
        return override(self._config, {"cpus": self._config.build_cpus, "memory": memory})

    def _wanted(self, former: MachineSpec) -> MachineSpec:
        """What the machine shall be. Its disk can only grow."""
        config = self._config
        return msgspec.structs.replace(
            former,
            cpus=config.build_cpus,
            memory=config.build_memory,
            disk=max(former.disk, config.build_disk),
            service=guest.service(),
            restart=Policy.NO,
            idle_suspend=config.build_idle,
            slirp=config.network is NetworkKind.SLIRP,
            ca=config.ca,
        )

    def _made(self) -> MachineSpec:
        """What a new machine is."""
        wishes = Wishes(image=_IMAGE, init="minimal", network=True, disk=self._config.build_disk)
        return self._wanted(creation.make_spec(self._sized(), wishes))

    async def _answers(self) -> bool:
        """Whether its guest answers."""
        with contextlib.suppress(AtollError, TimeoutError):
            async with asyncio.timeout(_ANSWER):
                if self.machine.exists() and self.machine.state.phase is Phase.RUNNING:
                    await (await self.machine.agent()).ping()
                    return True
        return False
