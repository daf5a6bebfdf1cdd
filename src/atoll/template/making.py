"""Making a template: a VM is booted, made warm, frozen, and one clone of it is tried."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import cast

import msgspec

from atoll import store
from atoll.errors import AtollError, BootError, ChannelError, GuestError
from atoll.events import Emit, TaskAdvanced, Warned, ignore, task
from atoll.guest.agent import Agent
from atoll.guest.messages import ExecStart
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import FreezableVm
from atoll.paths import Paths, TemplatePaths
from atoll.template import cache
from atoll.template.cache import Manifest, Template
from atoll.template.key import Recipe, clone_of, original
from atoll.vm.life import Vm
from atoll.vm.spawning import Clone, spawn, spawn_clone

__all__ = ["ensure", "make"]

#: What a template takes at most beside its RAM, bytes.
_STATE = 4 << 20

#: What nearly every command needs of a guest, done once so that clones find it in their memory.
_WARM_UP: tuple[tuple[str, ...], ...] = (("/bin/sh", "-c", "true"), ("true",), ("true",))

#: Seconds between two looks at how far a boot is.
_LOOK = 0.02

#: Seconds in which a clone that is tried must have answered.
_TRIAL = 20.0

#: Seconds since the guest's boot after which its kernel has nothing left to do: a second after it has come up
#: it measures the TSC once more, which every clone would otherwise do again.
_SETTLED = 3.0

#: Seconds for the guest to have finished what it does after its last command.
_REST = 0.1


def ensure(paths: Paths, recipe: Recipe, *, emit: Emit = ignore) -> Template | None:
    """``make``, but a VM that cannot be frozen or cloned is remembered instead of tried at each start.

    Raises:
        StoreError: as ``make``.
    """
    try:
        return make(paths, recipe, emit=emit)
    except BootError as error:
        failed = msgspec.structs.replace(recipe.manifest, created=time.time(), failure=error.message)
        cache.remember_failure(paths, failed)
        emit(Warned(message=f"{failed.subject} boot: no template of them can be made: {error.message}"))
        return None


def make(paths: Paths, recipe: Recipe, *, emit: Emit = ignore) -> Template | None:
    """Make a template, unless somebody else is about to.

    Returns:
        The template; None if another process makes it now.

    Raises:
        StoreError: it cannot be kept.
        BootError: the VM that it was to be made of does not come up, or no clone of it does.
    """
    name = recipe.manifest.name
    try:
        with store.lock(cache.lock_of(paths, name), wait=0):
            found = cache.find(paths, name, recipe.manifest.identity)
            if found is not None:
                return found
            with task(emit, "template", f"Preparing a template of {recipe.manifest.subject}"):
                return _make(paths, recipe, emit)
    except AtollError as error:
        if error.code == "store.busy":
            return None
        raise


def _make(paths: Paths, recipe: Recipe, emit: Emit) -> Template:
    name = recipe.manifest.name
    store.require_space(paths.templates, recipe.machine.memory + _STATE)
    with store.staging(paths.templates, name) as staged:
        place = TemplatePaths(staged)
        asyncio.run(_freeze(recipe, place, emit))
        manifest = _seal(recipe.manifest, place)
        if not recipe.held:  # a machine tries it, and boots if it is of no use
            emit(TaskAdvanced(task="template", note="trying a clone"))
            asyncio.run(_try(recipe, place, manifest))
        store.write_record(place.manifest, manifest)
        store.publish(staged, paths.template(name).directory)
    cache.prune(paths)
    return Template(paths.template(name), manifest)


async def _freeze(recipe: Recipe, place: TemplatePaths, emit: Emit) -> None:
    """Boot the VM, have it do what clones will do, and write it down."""
    with place.ram.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(recipe.machine.memory)
    machine = original(recipe.machine, place.ram)
    vm = Vm(spawn(recipe.hypervisor, machine, ignore), ignore)
    async with vm:
        emit(TaskAdvanced(task="template", note="booting"))
        if recipe.held:
            await _until_held(vm, recipe.boot_timeout)
        else:
            await vm.boot(recipe.boot_timeout)
            if recipe.modules:
                await vm.agent.load_modules(recipe.modules)
            await _warm_up(vm.agent)
        up = (await vm.agent.info()).uptime / 1e9
        await asyncio.sleep(max(_SETTLED - up, _REST))
        await cast(FreezableVm, vm.hypervised).freeze(place.state)


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
                await asyncio.gather(execution.stdout.read_all(), execution.stderr.read_all())
                await execution.wait()
        finally:
            execution.release()
    await agent.ping()  # all is released by then


def _seal(manifest: Manifest, place: TemplatePaths) -> Manifest:
    """Flush the files, and note how they are from now on."""
    for path in (place.ram, place.state):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return msgspec.structs.replace(
        manifest,
        created=time.time(),
        ram=store.stamp(place.ram),
        state=store.stamp(place.state),
        digest=cache.digest_of(place.ram),
    )


async def _try(recipe: Recipe, place: TemplatePaths, manifest: Manifest) -> None:
    """Start one clone. Raises ``BootError`` if it does not come up."""
    template = Template(place, manifest)
    async with Vm(spawn_clone(recipe.hypervisor, *_clone(recipe, template), emit=ignore), ignore) as vm:
        await vm.boot(_TRIAL)


def _clone(recipe: Recipe, template: Template) -> tuple[Machine, Clone]:
    machine = clone_of(recipe.machine, "template-trial", template.place.ram)
    return machine, Clone(template.manifest.name, template.place.state, memory=recipe.machine.memory)
