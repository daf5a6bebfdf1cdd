"""Names of machines on their networks: further names of one, and what the name servers say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from atoll import store
from atoll.errors import ChannelError, UsageError
from atoll.machine import registry
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec, parse_alias
from atoll.paths import NetworkPaths, Paths
from atoll.vm.bootplan import BootPlan
from atoll.vm.network import names, naming, reaching
from atoll.vm.network.naming import Answered, NamesTold, Tables
from atoll.vm.network.requests import NetworkControl

__all__ = ["answer", "listen", "networks", "read", "rename", "with_alias", "without_alias"]


def with_alias(spec: MachineSpec, alias: str) -> MachineSpec:
    """``spec`` with one more alias, unless it has that. Raises ``UsageError``: ``usage.alias``."""
    return msgspec.structs.replace(spec, aliases=tuple(dict.fromkeys((*spec.aliases, parse_alias(alias)))))


def without_alias(spec: MachineSpec, alias: str) -> MachineSpec:
    """``spec`` without an alias. Raises ``UsageError``: ``usage.alias``: it has no such."""
    if alias not in spec.aliases:
        known = ", ".join(spec.aliases) or "it has none"
        raise UsageError(f"{alias!r} is no alias of the machine", code="alias", hint=f"its aliases: {known}")
    return msgspec.structs.replace(spec, aliases=tuple(one for one in spec.aliases if one != alias))


async def rename(machine: Named, spec: MachineSpec) -> None:
    """Have a machine's aliases be those of ``spec``, at once if it is on its network.

    They are on record before the network is told: one that is started anew meanwhile reads them there.

    Args:
        machine: which nobody else changes meanwhile.
        spec: what it shall be.

    Raises:
        StoreError: it cannot be written.
    """
    registry.save(machine, spec)
    if not machine.state.active:
        return
    plan = store.read_record(machine.place.boot, BootPlan)
    if plan.attachment is None:
        return
    attachment = msgspec.structs.replace(plan.attachment, aliases=spec.aliases)
    store.write_record(machine.place.boot, msgspec.structs.replace(plan, attachment=attachment))
    with contextlib.suppress(ChannelError):
        async with _reached(NetworkPaths(attachment.network)) as control:
            if control is not None:
                await naming.call(control, spec.id, spec.aliases)


def networks(paths: Paths) -> tuple[str, ...]:
    """The networks that were ever used, those that are made by themselves first."""
    return tuple(name for name in names.known(paths.networks) if paths.network(name).record.exists())


async def read(place: NetworkPaths) -> tuple[NamesTold, Tables] | None:
    """How a network's name server answers, and its names; None if its process does not run.

    Raises:
        ChannelError: it went away.
    """
    async with _reached(place) as control:
        return None if control is None else await naming.read_names(control)


async def answer(place: NetworkPaths, *queries: bytes) -> tuple[tuple[Answered, ...], NamesTold]:
    """What a network's name server answers a guest's questions, and how; it is started if need be.

    Raises:
        NetworkError: it cannot be had; ``network.question``: it passes over a question.
    """
    await asyncio.to_thread(reaching.ensure, place)
    async with _reached(place) as control:
        if control is None:
            raise reaching.gone(place)
        answers = tuple([await naming.ask(control, query) for query in queries])
        told, _ = await naming.read_names(control)
        return answers, told


async def listen(place: NetworkPaths) -> NamesTold | None:
    """Have a network answer this host's programs as its record says by now; None if it does not run."""
    async with _reached(place) as control:
        return None if control is None else await naming.listen(control)


@asynccontextmanager
async def _reached(place: NetworkPaths) -> AsyncIterator[NetworkControl | None]:
    sock = await asyncio.to_thread(reaching.reach, place)
    if sock is None:
        yield None
        return
    control = NetworkControl(sock)
    try:
        async with asyncio.timeout(reaching.ANSWER):
            yield control
    except TimeoutError:
        raise reaching.stuck(place) from None
    finally:
        control.close()
