"""What is done in a guest between its root and its first user: modules, network, files, a probe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable

from atoll.errors import BootError, FileMissingError, GuestError
from atoll.events import Emit, WaitingFor, Warned
from atoll.guest.agent import Agent
from atoll.guest.execution import Execution
from atoll.guest.files import as_root
from atoll.guest.messages import ExecStart
from atoll.vm.bootplan import Probe, Setup
from atoll.vm.hostfiles import give_names
from atoll.vm.inheriting.giving import give
from atoll.vm.steps import join_network, renew_ipv6

__all__ = ["probe_until_ready", "run_quietly", "set_up"]

#: Seconds between two attempts of a probe.
_PROBE_PAUSE = 0.2


async def set_up(
    agent: Agent,
    setup: Setup,
    vm: str,
    emit: Emit,
    *,
    mount: Callable[[], Awaitable[None]] | None = None,
    renew_network: bool = False,
) -> None:
    """Carry ``setup`` out. The caller bounds the time.

    Args:
        agent: in the guest.
        setup: what is to be done.
        vm: its name.
        emit: told what is waited for.
        mount: mounts the shares.
        renew_network: the guest was on a network before, with another card's address.

    Raises:
        BootError: stage ``setup`` or ``probe``.
        ChannelError: the guest is gone.
    """
    try:
        if setup.modules:
            await agent.load_modules(setup.modules)
        await agent.reseed(os.urandom(64))
        await _fill_disk(agent, vm, emit)
        if setup.network is not None:
            emit(WaitingFor(vm=vm, what="network"))
            interface = await join_network(agent, setup.network)
            if renew_network:
                await renew_ipv6(agent, interface)
        if setup.name:
            await give_names(agent, vm, emit, name=setup.name)
        if setup.inherited is not None:
            await give(agent, setup.inherited, vm, emit, systemd=setup.systemd)
        if setup.script:
            emit(WaitingFor(vm=vm, what="setup"))
            await _script(agent, setup.script, vm)
    except GuestError as error:
        hint = "see `atoll logs`; the image may lack what Atoll needs"
        raise BootError(f"{vm}: {error.message}", stage="setup", hint=hint) from error
    if setup.shares and mount is not None:
        emit(WaitingFor(vm=vm, what="shares"))
        await mount()
    if setup.probe is not None:
        emit(WaitingFor(vm=vm, what=_describe(setup.probe)))
        await probe_until_ready(agent, setup.probe)


async def probe_until_ready(agent: Agent, probe: Probe) -> None:
    """Wait until ``probe`` succeeds. The caller bounds the time."""
    while not await _probe(agent, probe):  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(_PROBE_PAUSE)


async def _fill_disk(agent: Agent, vm: str, emit: Emit) -> None:
    """Have the file system fill its disk, which may have grown while the machine was at rest."""
    try:
        await agent.grow_data()
    except GuestError as error:  # there is less room than was asked for, and no more is wrong
        emit(Warned(message=f"{vm}: the disk is larger than the file system on it: {error.message}"))


async def run_quietly(agent: Agent, argv: tuple[str, ...]) -> tuple[int, str]:
    """Run a command as root; its status, and the end of what it said."""
    execution: Execution = agent.start(ExecStart(id=f"setup-{os.urandom(4).hex()}", argv=argv))
    try:
        await execution.started()
        out, error, end = await asyncio.gather(
            execution.stdout.read_all(), execution.stderr.read_all(), execution.wait()
        )
        return end.code if end.code is not None else 128 + (end.signal or 0), (out + error).decode(
            errors="replace"
        )
    finally:
        execution.release()


async def _script(agent: Agent, script: str, vm: str) -> None:
    status, said = await run_quietly(agent, ("/bin/sh", "-ec", script))
    if status:
        message = f"{vm}: setting the guest up ended with status {status}"
        raise BootError(message, stage="setup", hint="see the lines above", detail=said[-2000:].strip())


async def _probe(agent: Agent, probe: Probe) -> bool:
    """Try once. A port is looked for among the guest's listening sockets: that takes no program."""
    try:
        if probe.command:
            return (await run_quietly(agent, probe.command))[0] == 0
        tables = [await _read(agent, path) for path in ("/proc/net/tcp", "/proc/net/tcp6")]
        return re.search(rf":{probe.port:04X} [0-9A-F:]* 0A ", "".join(tables)) is not None
    except GuestError:
        return False


async def _read(agent: Agent, path: str) -> str:
    """A table of the guest's kernel; empty if that has none."""
    with contextlib.suppress(FileMissingError):
        return (await as_root(agent).read(path)).decode("ascii", errors="replace")
    return ""


def _describe(probe: Probe) -> str:
    said = " ".join(probe.command).removeprefix("/bin/sh -c ")
    return f"probe: {said}" if said else f"probe: port {probe.port}"
