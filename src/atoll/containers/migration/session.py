"""One migration: both engines are read, a plan is made, and carried out if that is wanted."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from atoll import store
from atoll.containers.migration import inventory, translating
from atoll.containers.migration.carrying import Carrier
from atoll.containers.migration.inventory import Inventory
from atoll.containers.migration.journal import Journals
from atoll.containers.migration.planning import plan
from atoll.containers.migration.plans import Plan, Wishes
from atoll.containers.migration.remote import Remote
from atoll.containers.migration.translating import Place
from atoll.errors import UsageError
from atoll.events import Emit, ignore
from atoll.image.architectures import PACKAGED
from atoll.image.kernel import host_architecture

__all__ = ["Ends", "migrate", "outline"]


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """Between what things are carried, and where that is noted.

    Attributes:
        source: the socket of an engine, which is read.
        target: the socket of the engine that gets them.
        journals: directory of what was done.
        shares: directories of this host that the target's containers see at the same path.
    """

    source: Path
    target: Path
    journals: Path
    shares: tuple[str, ...] = ()


async def outline(ends: Ends, wishes: Wishes, *, cpus: int = 0) -> tuple[Inventory, Plan]:
    """What would be carried to an engine that was never made, with so many vCPUs; and what the source has.

    Raises:
        EngineError: ``engine.unreachable``, ``engine.answer``.
    """
    async with Remote(ends.source, "the source") as source:
        found = await inventory.read(source, sizes=True)
    native = host_architecture()
    target = Inventory(id="", architecture=PACKAGED.get(native, native), cpus=cpus)
    journal = Journals(ends.journals).load(found.id, "", ends.source)
    return found, plan(found, target, wishes, journal, _place(ends, found))


@asynccontextmanager
async def migrate(
    ends: Ends, wishes: Wishes, *, emit: Emit = ignore
) -> AsyncIterator[tuple[Inventory, Plan, Carrier]]:
    """Both engines, connected: what the source has, the plan, and who carries it out.

    As long as the block lasts nobody else migrates between the two.

    Args:
        ends: between what.
        wishes: of the user.
        emit: told of progress.

    Raises:
        EngineError: ``engine.unreachable``, ``engine.answer``.
        UsageError: ``usage.own_engine``: both are the same engine.
        StoreError: ``store.busy``: another process migrates between the two; the journal cannot be read.
    """
    async with (
        Remote(ends.source, "the source", writable=wishes.helper) as source,
        Remote(ends.target, "Atoll's engine", writable=True) as target,
    ):
        found = await inventory.read(source, sizes=True)
        there = await inventory.read(target)
        if found.id == there.id:
            message = "the source is Atoll's own engine: there is nothing to migrate"
            raise UsageError(message, code="own_engine", hint="name another socket")
        journals = Journals(ends.journals)
        with store.lock(journals.lock(found.id, there.id), wait=0.0):
            journal = journals.load(found.id, there.id, ends.source)
            decided = plan(found, there, wishes, journal, _place(ends, found))
            yield found, decided, Carrier(source, target, journals, journal, emit=emit)


def _place(ends: Ends, found: Inventory) -> Place:
    """What of this host the source's containers and volumes could have."""
    paths = {path for one in found.containers for path in translating.bind_sources(one)}
    paths |= {one.options["device"] for one in found.volumes if one.options.get("device", "").startswith("/")}
    return Place(shares=ends.shares, present=frozenset(path for path in paths if os.path.exists(path)))
