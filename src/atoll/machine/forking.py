"""Copying a running machine to others that go on from the same instant."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from msgspec.structs import replace

from atoll import store
from atoll.errors import AtollError, StoreError
from atoll.hypervisor.model import Disk, Machine
from atoll.image.manifest import ImageManifest
from atoll.machine import registry
from atoll.machine.creation import take_root
from atoll.machine.planning import setup_script
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec, check_name, mac_of
from atoll.paths import Paths, VmPaths
from atoll.patience import to_its_end
from atoll.vm.bootplan import Beginning, BootPlan, user_network
from atoll.vm.branching import link_into
from atoll.vm.chain import disk_of, with_disk
from atoll.vm.client import Control
from atoll.vm.cloning import renamed
from atoll.vm.messages import Captured, Files
from atoll.vm.network.attachment import elsewhere, with_mac
from atoll.vm.network.egress import held_to

__all__ = ["Child", "add_copy", "as_captured", "copied", "fork", "opened", "with_root"]


class Child(NamedTuple):
    """A machine that a copy becomes.

    Attributes:
        go_on: brings it up where its parent was written down.
        remove: removes it.
    """

    go_on: Callable[[Files], Awaitable[object]]
    remove: Callable[[], Awaitable[None]]


async def fork(paths: Paths, parent: Named, control: Control, children: Mapping[str, Child]) -> None:
    """Copy a running machine to ``children``, by their names. Raises as ``Machine.fork``."""
    for name in children:
        check_name(name)
        if registry.exists(paths, name):
            raise registry.taken(name)
    made: list[Child] = []
    try:
        async with control.capture() as captured:
            for name, child in children.items():
                await to_its_end(asyncio.to_thread(_enter, paths, parent, name, captured, made, child))
            last = made[-1:]
            async with asyncio.TaskGroup() as tasks:
                for child in made:
                    tasks.create_task(_go_on(child, captured.files, copy=child not in last))
    except BaseException as error:
        for child in made:
            with contextlib.suppress(AtollError):
                await to_its_end(child.remove())
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise


def _enter(
    paths: Paths, parent: Named, name: str, captured: Captured, made: list[Child], child: Child
) -> None:
    add_copy(paths, parent, name, captured)
    made.append(child)


async def _go_on(child: Child, files: Files, *, copy: bool) -> None:
    with opened(files, copy=copy) as own:
        await child.go_on(own)


def add_copy(paths: Paths, parent: Named, name: str, captured: Captured) -> VmPaths:
    """Enter a machine that is what ``parent`` was when it was written down; it is not started.

    Raises:
        StoreError: ``store.already_exists``; or it cannot be written.
    """
    # Two machines cannot have the same ports of the host.
    spec = replace(parent.spec, id=secrets.token_hex(16), created=time.time(), forwards=(), aliases=())
    plan = store.read_record(parent.place.boot, BootPlan)
    final = paths.machine(name)

    def fill(place: VmPaths) -> None:
        take_root(parent.place.root, place.root)
        store.write_record(place.image, store.read_record(parent.place.image, ImageManifest))
        chain = link_into(parent.place, captured.layers, place, captured.size)
        disk = disk_of(final, chain)
        store.write_record(place.boot, copied(as_captured(plan, captured), name, spec, final, disk))

    return registry.add(paths, name, spec, fill)


def as_captured(plan: BootPlan, captured: Captured) -> BootPlan:
    """The plan of the VM that was written down: its machine may have been planned anew since it started."""
    machine = replace(plan.machine, vcpus=captured.vcpus, memory=captured.memory)
    return replace(plan, machine=machine, origin=None)


def copied(plan: BootPlan, name: str, spec: MachineSpec, place: VmPaths, disk: Disk) -> BootPlan:
    """The plan of a machine that goes on where another one was written down.

    Args:
        plan: of the other one.
        name: of the new machine.
        spec: of the new machine.
        place: where its files will be.
        disk: its disk.
    """
    mac = mac_of(spec.id)
    machine = replace(
        with_disk(renamed(plan.machine, {"hostname": name, "machine_id": spec.id}), disk), name=name
    )
    attachment = plan.attachment and replace(
        plan.attachment, owner=spec.id, hostname=name, forwards=(), aliases=()
    )
    if attachment is not None and spec.on:
        attachment = replace(elsewhere(attachment, spec.on), renew=False)  # it is told in any case
    attachment = held_to(attachment, spec.egress)
    network = user_network(mac) if plan.setup.network is not None else None
    setup = replace(plan.setup, network=network, script=setup_script(spec), name=name)
    return replace(
        plan,
        machine=with_mac(with_root(machine, place), mac),
        setup=setup,
        attachment=attachment,
        beginning=Beginning.FORK,
    )


def with_root(machine: Machine, place: VmPaths) -> Machine:
    """``machine`` with the root that lies at ``place``."""
    root = next(disk for disk in machine.disks if disk.serial == "root")
    return with_disk(machine, replace(root, path=place.root))


@contextmanager
def opened(files: Files, *, copy: bool) -> Iterator[Files]:
    """What another process holds, held by this one; with ``copy`` the RAM is another's no more.

    Raises:
        StoreError: it is gone.
    """
    with ExitStack() as stack:

        def take(number: int, name: str) -> int:
            if number < 0:
                return -1
            fd = os.open(f"/proc/{files.pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            if not copy or name == "state":
                return fd
            target = os.memfd_create(f"atoll-{name}", os.MFD_CLOEXEC)
            stack.callback(os.close, target)
            store.copy_data(fd, target)
            return target

        try:
            own = replace(
                files,
                pid=os.getpid(),
                ram=take(files.ram, "ram"),
                state=take(files.state, "state"),
                more=take(files.more, "more"),
            )
        except OSError as error:
            message = f"what was written down cannot be read: {error.strerror}"
            raise StoreError(message, code="io") from error
        yield own
