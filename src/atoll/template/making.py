"""Making a template: a VM is booted, made warm, frozen, and one clone of it is tried."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from atoll import store
from atoll.errors import AtollError, BootError, ChannelError, GuestError, StoreError
from atoll.events import Emit, TaskAdvanced, Warned, ignore, task
from atoll.guest.agent import Agent
from atoll.guest.messages import ExecStart
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import CloningHypervisor
from atoll.image.oci.command import environment_of
from atoll.paths import Paths, TemplatePaths
from atoll.template import cache
from atoll.template.cache import Manifest, Template
from atoll.template.key import Recipe, clone_of, original, with_disks_at
from atoll.template.preparing import carry_out
from atoll.vm.inheriting.giving import give
from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.life import Vm
from atoll.vm.spawning import Clone, spawn, spawn_clone

__all__ = ["ensure", "make"]

T = TypeVar("T")

#: What a template takes at most beside its RAM, bytes.
_STATE = 4 << 20

#: What nearly every command needs of a guest, done once so that clones find it in their memory.
_WARM_UP: tuple[tuple[str, ...], ...] = (("/bin/sh", "-c", "true"), ("true",), ("true",))

#: Seconds for that: what an image has under these names may do anything.
_WARM_UP_TIME = 10.0

#: Seconds between two looks at how far a boot is.
_LOOK = 0.02

#: Seconds in which a clone that is tried must have answered.
_TRIAL = 20.0

#: Seconds since the guest's boot after which its kernel has nothing left to do: a second after it has come up
#: it measures the TSC once more, which every clone would otherwise do again.
_SETTLED = 3.0

#: Seconds for the guest to have finished what it does after its last command.
_REST = 0.1


class _PassingError(Exception):
    """What says nothing of the recipe: the host was slow, or somebody ended the VM."""

    def __init__(self, error: BootError) -> None:
        super().__init__(str(error))
        self.error = error


def ensure(paths: Paths, recipe: Recipe, *, emit: Emit = ignore) -> Template | None:
    """``make`` for a VM that can as well be booted.

    Returns:
        The template; it has a ``failure`` if VMs cannot start from it, which is remembered. None if there is
        none now: another process makes it, or it cannot be kept.
    """
    try:
        return _make_once(paths, recipe, emit, remember=True)
    except (BootError, StoreError) as error:
        emit(Warned(message=f"{recipe.manifest.subject} boot, for want of a template: {error.message}"))
        return None


def make(paths: Paths, recipe: Recipe, *, anew: bool = False, emit: Emit = ignore) -> Template | None:
    """Make a template, unless somebody else is about to.

    Args:
        paths: where it is kept.
        recipe: what it is made of.
        anew: also if it is there; until it is made, that one stays.
        emit: told of progress.

    Returns:
        The template; None if another process makes it now.

    Raises:
        StoreError: it cannot be kept.
        BootError: the VM that it was to be made of does not come up, or no clone of it does.
    """
    return _make_once(paths, recipe, emit, remember=False, anew=anew)


def _make_once(
    paths: Paths, recipe: Recipe, emit: Emit, *, remember: bool, anew: bool = False
) -> Template | None:
    name = recipe.manifest.name
    cache.sweep(paths)
    try:
        with store.lock(cache.lock_of(paths, name), wait=0):
            found = cache.find(paths, name, recipe.manifest.identity)
            if found is not None and not anew:
                return found
            try:
                with task(emit, "template", f"Preparing a template of {recipe.manifest.subject}"):
                    return _make(paths, recipe, emit)
            except _PassingError as passing:
                raise passing.error from passing
            except BootError as error:
                if remember:
                    failed = msgspec.structs.replace(
                        recipe.manifest, created=time.time(), failure=error.message
                    )
                    cache.remember_failure(paths, failed)
                raise
    except StoreError as error:
        if error.code == "store.busy":
            return None
        raise


def _make(paths: Paths, recipe: Recipe, emit: Emit) -> Template:
    name = recipe.manifest.name
    store.require_space(paths.templates, recipe.machine.memory + _STATE)
    with store.staging(paths.templates, name) as staged:
        place = TemplatePaths(staged)
        machine = _with_disks(recipe, place)
        asyncio.run(_freeze(recipe, machine, place, emit))
        manifest = _seal(recipe.manifest, place)
        if not recipe.held:  # a machine tries it, and boots if it is of no use
            emit(TaskAdvanced(task="template", note="trying a clone"))
            asyncio.run(_try(recipe.hypervisor, machine, place, manifest))
        store.write_record(place.manifest, manifest)
        store.publish(staged, paths.template(name).directory)
    if manifest.preparation is None:
        cache.prune(paths)
    return Template(paths.template(name), manifest)


async def _freeze(recipe: Recipe, machine: Machine, place: TemplatePaths, emit: Emit) -> None:
    """Boot the VM, have it do what clones will do, and write it down."""
    with place.ram.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(machine.memory)
    spawned = spawn(
        recipe.hypervisor,
        original(machine, place.ram),
        ignore,
        modules=recipe.modules,
        attachment=recipe.attachment,
    )
    async with Vm(spawned, ignore) as vm:
        emit(TaskAdvanced(task="template", note="booting"))
        up = _until_held(vm, recipe.boot_timeout) if recipe.held else vm.boot(recipe.boot_timeout)
        await _judged(vm, up, slow_passes=True)
        try:
            async with asyncio.timeout(recipe.patience):
                await _judged(vm, _prepare(vm, recipe, place, emit), slow_passes=True)
        except TimeoutError:
            raise BootError("the guest does not come to rest", stage="command") from None


def _with_disks(recipe: Recipe, place: TemplatePaths) -> Machine:
    """The VM with the disks that it shall have, which are put beside its RAM where it keeps its own."""
    if not recipe.keeps_disks:
        return recipe.machine
    for disk in recipe.machine.disks:
        try:
            os.link(disk.path, place.disk(disk.serial))
        except OSError:  # on another file system
            shutil.copyfile(disk.path, place.disk(disk.serial))
    return with_disks_at(recipe.machine, place)


async def _prepare(vm: Vm, recipe: Recipe, place: TemplatePaths, emit: Emit) -> None:
    """From a VM that is up to one that is frozen."""
    if not recipe.held:
        if recipe.manifest.preparation is not None:
            inherited = recipe.inherited or Inheritance()
            if inherited:
                await give(vm.agent, inherited, recipe.manifest.name, emit, throw_away=True)
            run = recipe.manifest.run
            environment = {**(environment_of(run) if run is not None else {}), **inherited.environment}
            await carry_out(vm.agent, recipe.manifest.preparation, emit, environment)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WARM_UP_TIME):
                await _warm_up(vm.agent)
    up = (await vm.agent.info()).uptime / 1e9
    await asyncio.sleep(max(_SETTLED - up, _REST))
    await vm.freezable.freeze(place.state)


async def _judged(vm: Vm, work: Awaitable[T], *, slow_passes: bool) -> T:
    """Await ``work`` on a VM.

    Raises:
        _PassingError: somebody killed the VM, or it took too long and ``slow_passes``.
        BootError: any other failure.
    """
    try:
        return await work
    except AtollError as error:
        reason = await vm.explain(error) if isinstance(error, ChannelError) else error
        killed = (vm.hypervised.process.poll() or 0) < 0
        slow = slow_passes and isinstance(error.__cause__, TimeoutError)
        stage = reason.stage if isinstance(reason, BootError) else "agent"
        failed = BootError(reason.message, stage=stage, hint=reason.hint, detail=reason.detail)
        raise _PassingError(failed) if killed or slow else failed from error


async def _until_held(vm: Vm, timeout: float) -> None:  # noqa: ASYNC109 - the limit of a stage
    """Wait until the guest's boot stands still. Raises ``BootError``."""
    agent = vm.attach()
    try:
        async with asyncio.timeout(timeout):
            while (await agent.info()).phase != "held":  # noqa: ASYNC110 - only asking again tells
                await asyncio.sleep(_LOOK)
    except (ChannelError, TimeoutError) as error:
        raise await vm.explain(error) from error


async def _warm_up(agent: Agent) -> None:
    """Run what there is of the usual programs; an image may lack them."""
    for number, argv in enumerate(_WARM_UP):
        execution = agent.start(ExecStart(id=f"warm-{number}", argv=argv))
        try:
            with contextlib.suppress(GuestError):
                await execution.started()
                await execution.wait()
        finally:
            execution.release()
    await agent.ping()  # all is released by then


def _seal(manifest: Manifest, place: TemplatePaths) -> Manifest:
    """Flush the files, and note how they are from now on."""
    for path in (place.ram, place.state):
        store.sync_file(path)
    return msgspec.structs.replace(
        manifest,
        created=time.time(),
        ram=store.stamp(place.ram),
        state=store.stamp(place.state),
        digest=cache.digest_of(place.ram),
    )


async def _try(
    hypervisor: CloningHypervisor, machine: Machine, place: TemplatePaths, manifest: Manifest
) -> None:
    """Start one clone. Raises as ``_judged``; one that hangs is wrong, too: CPUs differ so."""
    trial = clone_of(machine, "template-trial", place.ram)
    clone = Clone(manifest.name, place.state, machine.memory, manifest.created)
    async with Vm(spawn_clone(hypervisor, trial, clone, ignore), ignore) as vm:
        await _judged(vm, vm.boot(_TRIAL), slow_passes=False)
