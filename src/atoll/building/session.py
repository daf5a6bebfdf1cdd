"""One build in the builder, as long as it is held: commands that are a part of it, files for them.

Whatever ends the client, the guest ends all that the build runs, and removes its directories.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from atoll.building.guest import ENTER, SESSION, memory_of, work_of
from atoll.containers.own import OwnMachine
from atoll.errors import BuildError
from atoll.guest.commands import feed
from atoll.guest.execution import Output

__all__ = ["Session", "began", "refusal"]

#: Of what a command says, lines that are kept, and characters of a line.
_MOST_LINES, _MOST_LINE = 40, 65_536


class Session:
    """A build.

    Args:
        machine: the builder.

    Attributes:
        machine: it.
        name: of the build in the guest.
        work: its directory on the disk.
        memory: its directory in memory.
    """

    def __init__(self, machine: OwnMachine) -> None:
        self.machine = machine
        self.name = os.urandom(6).hex()
        self.work = work_of(self.name)
        self.memory = memory_of(self.name)

    async def run(
        self,
        words: Sequence[str],
        *,
        feeding: AsyncIterator[bytes] | None = None,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> tuple[int, list[str]]:
        """Run a command to its end: its status, and the last lines of what it said.

        Args:
            words: the command.
            feeding: its input.
            on_line: given each line as it comes.
        """
        said: list[str] = []

        def take(line: str) -> None:
            on_line(line)
            said.append(line)
            del said[:-_MOST_LINES]

        enter = ["/bin/sh", "-c", ENTER, "sh", self.name, *words]
        execution = await self.machine.start_command(enter, stdin=feeding is not None)
        end = await self.machine.attend(
            execution,
            _lines(execution.stdout, take),
            _lines(execution.stderr, take),
            feed=feed(execution, feeding) if feeding is not None else None,
        )
        return end.code if end.code is not None else 128 + (end.signal or 0), said

    async def must(
        self, words: Sequence[str], what: str, *, feeding: AsyncIterator[bytes] | None = None
    ) -> list[str]:
        """``run`` for what has to succeed.

        Raises:
            BuildError: ``build.full``: the builder's disk is full; ``build.builder``: anything else.
        """
        status, said = await self.run(words, feeding=feeding)
        if status:
            raise refusal(said) or BuildError(
                f"{what}: status {status}",
                code="builder",
                hint="try again; `atoll builder rm` removes the builder with all that it keeps",
                detail="\n".join(said[-12:]),
            )
        return said


def refusal(said: Sequence[str]) -> BuildError | None:
    """The error for a command that failed as there was no room; None if it was for something else."""
    if not any("no space left on device" in line.lower() for line in said):
        return None
    hint = "`atoll builder prune` makes room; the setting build_disk has it be larger"
    message = "the builder's disk is full"
    return BuildError(message, code="full", hint=hint, detail="\n".join(said[-12:]))


@asynccontextmanager
async def began(machine: OwnMachine) -> AsyncIterator[Session]:
    """A new build, for as long as the block lasts."""
    session = Session(machine)
    async with await machine.start_process(
        ["/bin/sh", "-c", SESSION, "sh", session.name], stdin=True
    ) as held:
        if await held.stdout.readline() != "ready":
            said = await held.stderr.read_all()
            hint = "`atoll builder stop`, and try again"
            detail = said.decode(errors="replace").strip()
            raise BuildError("the builder cannot begin a build", code="builder", hint=hint, detail=detail)
        try:
            yield session
        finally:
            with contextlib.suppress(Exception):
                await held.close_stdin()


async def _lines(output: Output, take: Callable[[str], None]) -> None:
    """Give each line as it comes; a carriage return ends one, too, and control characters are left out."""
    rest = ""
    while data := await output.read():
        *lines, rest = (rest + data.decode(errors="replace")).replace("\r", "\n").split("\n")
        for line in lines:
            take(_plain(line))
        if len(rest) > _MOST_LINE:
            take(_plain(rest))
            rest = ""
    if rest:
        take(_plain(rest))


def _plain(line: str) -> str:
    return "".join(letter for letter in line if letter.isprintable() or letter == "\t")
