"""Which files changed between two snapshots: of machines, or of sandboxes.

Both are looked at in VMs that this process owns and that end with it (docs/explanation/snapshots.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import NamedTuple

from atoll import runtime
from atoll.config import Config, load
from atoll.errors import (
    ChannelError,
    GuestError,
    ProtocolError,
    StoreError,
    UsageError,
    innermost,
)
from atoll.events import Emit, TaskAdvanced, ignore, task
from atoll.guest.agent import Agent
from atoll.guest.files import Access, Files
from atoll.guest.survey import IN_MEMORY, End, Piece, Record, Survey, alike
from atoll.image.extents import Extent
from atoll.machine import comparing as machines
from atoll.machine.beside import beside, launched
from atoll.paths import Paths, agent_path
from atoll.sandbox import reviving
from atoll.snapshot import catalog
from atoll.snapshot.catalog import Snapshot, manifest_of
from atoll.snapshot.differences import Change, Changed, Difference, Pair, difference_of, pairs_of, verdict
from atoll.snapshot.manifest import Kind
from atoll.vm.life import Vm
from atoll.vm.spawning import Spawned

__all__ = ["compare_snapshots"]

#: The agent's own program, where the agent is of this Atoll.
_AGENT = "/proc/1/exe"

#: Where it is put in a sandbox, whose agent is as old as its snapshot: on another file system than its root.
_PROGRAM = "/run/.atoll-survey"


async def compare_snapshots(
    snapshot: str,
    other: str | None = None,
    *,
    config: Config | None = None,
    on_event: Emit = ignore,
) -> tuple[Difference, ...]:
    """Which files changed from one snapshot to another, in the order of their paths.

    Only what is on the root's own file system counts: not ``/proc``, ``/dev``, ``/run`` and what else was
    mounted. Times are not compared.

    Args:
        snapshot: name or id of the first one; without ``other``, of the second one, and the first one is its
            parent: that from which its machine or sandbox had gone on.
        other: name or id of the second one; names of the same machine come first.
        config: resolved settings; by default those of this user.
        on_event: told of progress.

    Raises:
        UsageError: ``usage.snapshot``: it has no parent; one is of a machine and the other of a sandbox.
        StoreError: ``store.missing``: there is none, or its parent was removed; ``store.corrupt``.
        StateError: ``state.mismatch``: of sandboxes: this host cannot go on from one.
        BootError: the VM in which they are looked at does not come up.
        GuestError: files of one cannot be read.
    """
    settings = config if config is not None else load({}).config
    before, after = await asyncio.to_thread(_chosen, settings.paths, snapshot, other)
    one, two = manifest_of(before), manifest_of(after)
    shared = one.files.get(before.place.root.name) == two.files.get(after.place.root.name)
    with task(on_event, "compare", f"Comparing snapshots {one.name} and {two.name}"):
        machine = one.kind is Kind.MACHINE
        if before.id == after.id or (machine and shared and machines.same_disk(before, after)):
            return ()
        opened = _in_one_vm if machine else _in_their_own
        async with opened(settings, (before, after), shared, on_event) as sides:
            on_event(TaskAdvanced(task="compare", note="looking at files"))
            return await _compare(sides, shared=shared, patience=settings.boot_timeout)


def _chosen(paths: Paths, reference: str, other: str | None) -> tuple[Snapshot, Snapshot]:
    """The first and the second one."""
    found = catalog.find(paths, reference)
    manifest = manifest_of(found)
    if other is None:
        return _parent(paths, found), found
    try:
        second = catalog.find(paths, other, manifest.machine_id)
    except StoreError as error:
        if error.code != "store.missing":
            raise
        second = catalog.find(paths, other)
    _require_comparable(found, second)
    return found, second


def _parent(paths: Paths, snapshot: Snapshot) -> Snapshot:
    manifest = manifest_of(snapshot)
    hint = f"name another one: `atoll snapshot diff OTHER {snapshot.id}`"
    if not manifest.parent:
        message = f"snapshot {manifest.name} has no parent that it can be compared with"
        raise UsageError(message, code="snapshot", hint=hint)
    parent = catalog.read(paths, manifest.parent)
    if not parent.place.directory.exists():
        message = f"the parent of snapshot {manifest.name}, {manifest.parent}, was removed"
        raise StoreError(message, code="missing", hint=hint)
    manifest_of(parent)
    _require_comparable(parent, snapshot)
    return parent


def _require_comparable(one: Snapshot, other: Snapshot) -> None:
    first, second = manifest_of(one), manifest_of(other)
    if first.kind is not second.kind:
        message = f"snapshot {first.name} is of a {first.kind}, and {second.name} of a {second.kind}"
        raise UsageError(message, code="snapshot", hint="compare two of machines, or two of sandboxes")
    if first.kind is Kind.MACHINE:
        machines.require_disk(one)
        machines.require_disk(other)


class _Side(NamedTuple):
    """What a snapshot had written, in a VM that runs.

    Attributes:
        snapshot: its name.
        vm: the VM.
        survey: looks at it.
    """

    snapshot: str
    vm: Vm
    survey: Survey


class _Sides(NamedTuple):
    """Both, and where their disks may differ."""

    one: _Side
    other: _Side
    changed: Changed


@asynccontextmanager
async def _in_one_vm(
    config: Config, snapshots: tuple[Snapshot, Snapshot], shared: bool, emit: Emit
) -> AsyncIterator[_Sides]:
    """The disks of two machines' snapshots, in a VM that boots none of them."""
    async with AsyncExitStack() as stack:
        with _reading():
            stack.enter_context(machines.undisturbed(*snapshots))
        changed = Changed(await asyncio.to_thread(_changed_runs, *snapshots))
        vm = await beside(config, _new_name(), snapshots, stack, emit)
        one, other = (
            _Side(manifest_of(snapshot).name, vm, Survey(vm.agent, _AGENT, *serials))
            for snapshot, serials in zip(snapshots, machines.serials(shared=shared), strict=True)
        )
        yield _Sides(one, other, changed)


def _changed_runs(before: Snapshot, after: Snapshot) -> list[Extent] | None:
    with _reading():
        return machines.changed_runs(before, after)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot read a snapshot's disk: {error.strerror}", code="io") from error


@asynccontextmanager
async def _in_their_own(
    config: Config, snapshots: tuple[Snapshot, Snapshot], _shared: bool, emit: Emit
) -> AsyncIterator[_Sides]:
    """Two sandboxes that go on, and stand still but for who looks at them."""
    async with AsyncExitStack() as stack:
        one, other = [await _revived(config, snapshot, stack, emit) for snapshot in snapshots]
        yield _Sides(one, other, Changed(None))


async def _revived(config: Config, snapshot: Snapshot, stack: AsyncExitStack, emit: Emit) -> _Side:
    name = _new_name()

    def launch() -> Spawned:
        return reviving.launch(config, name, snapshot.id, same=True, emit=emit).spawned

    vm = await stack.enter_async_context(Vm(await launched(launch), emit))
    await vm.boot(config.boot_timeout)

    async def agent() -> Agent:
        return vm.agent

    files = Files(Access(agent, vm.explain, lambda: ("0:0", "/")))
    program = await asyncio.to_thread(agent_path(vm.machine.architecture).read_bytes)
    await files.write(_PROGRAM, program, mode=0o700)
    return _Side(manifest_of(snapshot).name, vm, Survey(vm.agent, _PROGRAM, IN_MEMORY, "root"))


def _new_name() -> str:
    return runtime.new_name().replace("sandbox", "compare")


async def _compare(sides: _Sides, *, shared: bool, patience: float) -> tuple[Difference, ...]:
    try:
        async with asyncio.TaskGroup() as tasks:
            one, other = (
                tasks.create_task(_records(side, everything=not shared, patience=patience))
                for side in (sides.one, sides.other)
            )
    except BaseExceptionGroup as errors:
        raise innermost(errors) from None
    pairs = await asyncio.to_thread(pairs_of, one.result(), other.result(), shared=shared)
    verdicts = [verdict(pair, sides.changed) for pair in pairs]
    unsure = [pair for pair, said in zip(pairs, verdicts, strict=True) if said is True]
    same = await _same_contents(sides, unsure)
    found = []
    for pair, said in zip(pairs, verdicts, strict=True):
        final = verdict(pair, sides.changed, same[pair.path]) if said is True else said
        if isinstance(final, Change):
            found.append(difference_of(pair, final))
    return tuple(found)


async def _records(side: _Side, *, everything: bool, patience: float) -> list[Record]:
    async with _explained(side):
        return await side.survey.records(everything=everything, patience=patience)


async def _same_contents(sides: _Sides, pairs: list[Pair]) -> dict[bytes, bool]:
    """Whether files hold the same on both sides, by their paths."""
    if not pairs:
        return {}
    paths = [pair.path for pair in pairs]
    async with aclosing(_contents(sides.one, paths)) as one, aclosing(_contents(sides.other, paths)) as other:
        try:
            return {path: await alike(one, other) for path in paths}
        except StopAsyncIteration:
            raise ProtocolError("the contents of files from the guest were cut short") from None


async def _contents(side: _Side, paths: Sequence[bytes]) -> AsyncGenerator[Piece | End]:
    async with _explained(side), aclosing(side.survey.contents(paths)) as pieces:
        async for piece in pieces:
            yield piece


@asynccontextmanager
async def _explained(side: _Side) -> AsyncIterator[None]:
    """Say whose files cannot be read, and what is behind a channel that broke."""
    try:
        yield
    except GuestError as error:
        message = f"snapshot {side.snapshot}: {error.message}"
        raise GuestError(message, reason=error.reason, errno=error.errno, hint=error.hint) from error
    except ChannelError as error:
        raise await side.vm.explain(error) from error
