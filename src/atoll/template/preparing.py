"""What a user has done in a VM before it is frozen: commands, and a probe that must succeed."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections import deque
from collections.abc import Mapping

from atoll.errors import BootError
from atoll.events import Emit, TaskAdvanced
from atoll.guest.agent import Agent
from atoll.guest.execution import Execution, Output
from atoll.guest.messages import ExecStart
from atoll.template.cache import Preparation
from atoll.vm.setup import probe_until_ready

__all__ = ["carry_out"]

#: Lines of a command's output that are told if it fails.
_TOLD = 15

#: What installers take as a word not to ask questions.
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive"}


async def carry_out(
    agent: Agent, preparation: Preparation, emit: Emit, environment: Mapping[str, str] | None = None
) -> None:
    """Run the commands, each with that environment, and wait for the probe. The caller bounds the time.

    Raises:
        BootError: stage ``prepare``: a command failed; its last lines are the detail.
        GuestError: a command could not be started.
    """
    for number, command in enumerate(preparation.commands):
        await _run(agent, f"prepare-{number}", command, emit, {**(environment or {}), **_ENVIRONMENT})
    if preparation.probe is not None:
        emit(TaskAdvanced(task="template", note="waiting for the probe"))
        await probe_until_ready(agent, preparation.probe)


async def _run(agent: Agent, name: str, command: str, emit: Emit, environment: Mapping[str, str]) -> None:
    """Run one command, what it says passed on line by line."""
    emit(TaskAdvanced(task="template", note=command))
    variables: dict[str | bytes, str | bytes] = dict(environment.items())
    argv = ("/bin/sh", "-ec", command)
    start = ExecStart(id=f"{name}-{os.urandom(4).hex()}", argv=argv, env=variables)
    execution: Execution = agent.start(start)
    said: deque[str] = deque(maxlen=_TOLD)
    try:
        await execution.started()
        async with asyncio.TaskGroup() as tasks:
            for output in (execution.stdout, execution.stderr):
                tasks.create_task(_pass_on(output, said, emit))
            end = await execution.wait()
    finally:
        execution.release()
    if end.code != 0:
        how = f"status {end.code}" if end.signal is None else f"signal {end.signal}"
        message = f"`{command}` ended with {how}"
        raise BootError(message, stage="prepare", hint="try it with `atoll run`", detail="\n".join(said))


async def _pass_on(output: Output, said: deque[str], emit: Emit) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest = ""
    while data := await output.read():
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        for line in filter(str.strip, lines):
            said.append(line.rstrip())
            emit(TaskAdvanced(task="template", note=line.strip()))
    if rest.strip():
        said.append(rest.rstrip())
