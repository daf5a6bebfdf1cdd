"""Giving a guest what it takes over of this host."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final

from atoll.errors import AtollError, ChannelError
from atoll.events import Emit, Warned
from atoll.guest.agent import Agent
from atoll.guest.files import Files, as_root
from atoll.guest.messages import ExecStart
from atoll.vm.inheriting import rendering
from atoll.vm.inheriting.believing import Believing, read_text, write_text
from atoll.vm.inheriting.inheritance import Inheritance

__all__ = ["give"]

#: Tells systemd of variables: at a machine's first start it has read its files before they are written.
_TELL: Final = """\
( for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    systemctl set-environment WORDS && break
    sleep 1
done ) </dev/null >/dev/null 2>&1 &"""


async def give(
    agent: Agent,
    inherited: Inheritance,
    vm: str,
    emit: Emit,
    *,
    throw_away: bool = False,
    systemd: bool = False,
) -> None:
    """Have a guest have that, and no more what it was given before. What fails is told, and nothing else.

    Args:
        agent: in the guest.
        inherited: what it shall have.
        vm: its name.
        emit: told of what failed, with the stage.
        throw_away: its commands have the variables from who runs them, and nobody else needs them.
        systemd: that is process 1 of it.

    Raises:
        ChannelError: the guest is gone.
    """
    files = as_root(agent)
    stage = "certificates"
    try:
        await Believing(files, inherited.certificates).give()
        stage = "proxies"
        if not throw_away:
            await _set_variables(agent, files, inherited.variables, systemd=systemd)
    except ChannelError:
        raise
    except AtollError as error:
        message = f"{vm}: it has not all that it takes over of this host ({stage}): {error.message}"
        emit(Warned(message=message, hint="without, it is started with `--no-ca`"))


async def _set_variables(agent: Agent, files: Files, variables: Mapping[str, str], *, systemd: bool) -> None:
    before = await read_text(files, rendering.ENVIRONMENT) or ""
    after = rendering.marked(before, variables)
    if after == before and not variables:
        return
    if variables:
        await write_text(files, rendering.ENVIRONMENT, after)
    await _keep(files, rendering.PROFILE, rendering.profile(variables))
    if await files.exists("/etc/apt/apt.conf.d"):
        await _keep(files, rendering.APT, rendering.apt(variables))
    if systemd:
        await _keep(files, rendering.SYSTEMD, rendering.systemd(variables))
        if variables and after != before:
            await _tell_systemd(agent, variables)
    if not variables:
        await write_text(files, rendering.ENVIRONMENT, after)  # last: it is by this that the others are known


async def _keep(files: Files, path: str, text: str) -> None:
    """Have a file of ours say that; an empty one is removed."""
    if text:
        await write_text(files, path, text)
    else:
        await files.remove(path, missing_ok=True)


async def _tell_systemd(agent: Agent, variables: Mapping[str, str]) -> None:
    words = shlex.join(f"{name}={value}" for name, value in sorted(variables.items()))
    command = ExecStart(id="inherit", argv=("/bin/sh", "-c", _TELL.replace("WORDS", words)), user="root")
    execution = agent.start(command)
    try:
        await execution.started()
        await execution.wait()
    finally:
        execution.release()
