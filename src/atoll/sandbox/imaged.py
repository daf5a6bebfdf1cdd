"""Running what an image itself wants to be run, and having its commands get what it says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from atoll.events import Emit
from atoll.guest.agent import Agent
from atoll.guest.commands import Commands, Defaults
from atoll.guest.handle import Process
from atoll.guest.messages import TerminalSize
from atoll.guest.opening import opening
from atoll.guest.result import Result
from atoll.image.oci.command import (
    environment_of,
    stop_signal_of,
    user_of,
    words_of,
    workdir_of,
)
from atoll.image.oci.runconfig import RunConfig
from atoll.vm.hostfiles import give_names
from atoll.vm.spawning import Spawned

__all__ = ["Imaged"]


class Imaged(Commands):
    """Commands in a guest whose image may say how it wants to be run. Arguments: as ``Commands``."""

    def __init__(
        self,
        emit: Emit,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(emit, env=env, workdir=workdir, user=user, timeout=timeout)
        self._run: RunConfig | None = None
        self._shell = ""

    def _know(self, spawned: Spawned) -> None:
        """Have commands get what the image of this VM says."""
        run = self._run = spawned.run
        self._shell = spawned.shell
        if run is not None:
            self._defaults = Defaults(
                env=environment_of(run, self.name),
                workdir=workdir_of(run),
                user=user_of(run.user),
                container=True,
            )

    async def _furnish(self, agent: Agent, address: str) -> None:
        """Give the guest what any container has beside what its agent sees to: its address in its files.

        Args:
            agent: in the guest.
            address: its own on its network; empty if it has none.

        Raises:
            UsageError: ``usage.workdir``: commands are to start in a directory that is not absolute.
        """
        run = self._run
        if run is None:
            return
        self._workdir = workdir_of(run, self._workdir) if self._workdir else None
        self._user = user_of(self._user) if self._user else None
        if address:
            await give_names(agent, self.name, self._emit, name=self.name, address=address)

    async def run_image(
        self,
        args: Sequence[str] = (),
        *,
        entrypoint: str | Sequence[str] | None = None,
        input: bytes | str | None = None,  # noqa: A002 - as subprocess has it
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it ends the command in the guest
        check: bool = False,
    ) -> Result:
        """Run what the image is made to run, as ``docker run`` would, and return what it wrote.

        Args:
            args: in the place of the image's command: arguments of its entrypoint, or a command where it has
                none.
            entrypoint: in the place of the image's, whose command is left out then, too; an empty one for
                none.
            input: its standard input; empty by default.
            env: variables, beside those that all commands get.
            cwd: directory in which it starts; made where it is missing.
            user: who runs it.
            timeout: seconds after which it is ended.
            check: raise if it fails.

        Raises:
            ImageError: ``image.command``: there is nothing to run.
            AtollError: as ``run``.
        """
        await self._reach()
        words = words_of(self._run or RunConfig(), args, entrypoint, self._shell)
        return await self.run(words, input=input, env=env, cwd=cwd, user=user, timeout=timeout, check=check)

    @opening
    async def start_image(
        self,
        args: Sequence[str] = (),
        *,
        entrypoint: str | Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        tty: TerminalSize | None = None,
    ) -> Process:
        """Start what the image is made to run, and return while it runs; ``terminate`` sends its stop signal.

        Args:
            args: as for ``run_image``.
            entrypoint: likewise.
            env: variables, beside those that all commands get.
            cwd: directory in which it starts; made where it is missing.
            user: who runs it.
            stdin: give it an input to ``write`` to; empty by default.
            tty: give it a terminal of this size.

        Raises:
            ImageError: ``image.command``: there is nothing to run; ``image.config``: its stop signal is none.
            AtollError: as ``start_process``.
        """
        await self._reach()
        run = self._run or RunConfig()
        words: Sequence[str | bytes | os.PathLike[str]] = words_of(run, args, entrypoint, self._shell)
        stop = stop_signal_of(run)
        execution = await self.start_command(words, env=env, cwd=cwd, user=user, stdin=stdin, tty=tty)
        return self._held(execution, await execution.started(), takes_input=stdin, stop_signal=stop)
