"""Going back to a snapshot of a machine, or on from it as another machine."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec.structs import replace

from atoll import store
from atoll.config import Config
from atoll.hypervisor.qemu.host import inspect_host
from atoll.image.manifest import ImageManifest
from atoll.machine import adopting, registry
from atoll.machine.adopting import DISK_ONLY
from atoll.machine.creation import take_root
from atoll.machine.forking import copied, with_root
from atoll.machine.registry import Fill, Named
from atoll.machine.snapshots import note_base
from atoll.machine.spec import MachineSpec
from atoll.paths import VmPaths
from atoll.snapshot import catalog, thawing
from atoll.snapshot.catalog import Snapshot, manifest_of
from atoll.snapshot.manifest import Kind
from atoll.vm.bootplan import Beginning, BootPlan
from atoll.vm.branching import link_into
from atoll.vm.chain import disk_of
from atoll.vm.messages import Files
from atoll.vm.network.attachment import elsewhere
from atoll.vm.network.egress import held_to
from atoll.vm.state import StateError

__all__ = [
    "add_from",
    "fill_from",
    "require_fit",
    "require_own",
    "resumed",
    "thawed",
]

#: Disks that a snapshot has; the others are the kernel's.
_OWN_DISKS = {"root", "data"}


def require_own(snapshot: Snapshot, machine: Named) -> None:
    """See that a machine goes back to a snapshot of its own. Raises ``StateError``: ``state.foreign``."""
    catalog.require_kind(snapshot, Kind.MACHINE)
    manifest = manifest_of(snapshot)
    if manifest.machine_id != machine.spec.id:
        whose = manifest.machine if manifest.machine != machine.name else f"another {machine.name}"
        message = f"snapshot {manifest.name} is of {whose}, not of {machine.name}"
        hint = f"`atoll snapshot restore --as NEW {snapshot.id}` makes a machine of it"
        raise StateError(message, code="foreign", hint=hint)


def require_fit(snapshot: Snapshot, config: Config) -> None:
    """See that this host can go on from a snapshot's RAM. Raises as ``thawing.require_fit``."""
    machine = store.read_record(snapshot.place.plan, BootPlan).machine
    lost: Sequence[Path]
    if snapshot.imported:
        thawing.require_host(machine, DISK_ONLY)
        host = inspect_host(machine.architecture, config.cache_dir)
        lost = adopting.lost(snapshot, config.paths)
    else:
        host = inspect_host(machine.architecture, config.cache_dir)
        others = [disk.path for disk in machine.disks if disk.serial not in _OWN_DISKS]
        lost = [path for path in others if not path.exists()]
    thawing.require_fit(snapshot, host, lost=lost, hint=DISK_ONLY)


def _plan(snapshot: Snapshot, config: Config, spec: MachineSpec) -> BootPlan:
    """What was run, by files of this host; ``spec`` is of the machine that is to go on from it."""
    plan = store.read_record(snapshot.place.plan, BootPlan)
    return adopting.adopted(plan, spec, config) if snapshot.imported else plan


@contextmanager
def thawed(snapshot: Snapshot) -> Iterator[Files]:
    """A snapshot's RAM and devices, in files in memory that this process holds open. All of it is verified.

    Raises:
        StoreError: ``store.corrupt``: it was changed.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - cannot be loaded once a program's first thread has ended

    with ExitStack() as stack, ThreadPoolExecutor(1) as checking:
        checked = checking.submit(catalog.check, snapshot)
        files = thawing.thaw(snapshot, stack)
        checked.result()
        yield Files(
            pid=os.getpid(),
            ram=files.ram,
            state=files.state,
            more=files.more,
            devices=manifest_of(snapshot).devices,
        )


def resumed(machine: Named, plan: BootPlan) -> BootPlan:
    """The plan of a machine that goes on as the VM that was written down with ``plan``.

    Raises ``UsageError``: ``usage.egress``: that had no network that could hold it to its policy.
    """
    vm = replace(with_root(plan.machine, machine.place), name=machine.name)
    attachment = plan.attachment and replace(
        plan.attachment, hostname=machine.name, aliases=machine.spec.aliases, renew=False
    )
    if attachment is not None and machine.spec.on:
        attachment = elsewhere(attachment, machine.spec.on)
    attachment = held_to(attachment, machine.spec.egress)  # what is asked for now, not then
    return replace(plan, machine=vm, attachment=attachment, beginning=Beginning.RESUME)


def fill_from(machine: Named, snapshot: Snapshot, config: Config, *, ram: bool) -> Fill:
    """What puts a snapshot of a machine into a directory, for the machine to become that.

    Args:
        machine: which it will be.
        snapshot: of its own.
        config: of this host.
        ram: whether it goes on from the RAM, too.
    """
    manifest, source = manifest_of(snapshot), snapshot.place

    def fill(place: VmPaths) -> None:
        link_into(VmPaths(source.directory), manifest.layers, place, manifest.size)
        note_base(place, snapshot.id)
        if ram:
            store.write_record(place.boot, resumed(machine, _plan(snapshot, config, machine.spec)))

    return fill


def add_from(config: Config, snapshot: Snapshot, name: str, *, ram: bool) -> VmPaths:
    """Enter a machine that is what another one was; with ``ram`` it is planned to go on from there.

    Directories and kernels of another host are not taken over.

    Raises:
        StoreError: ``store.already_exists``; or it cannot be written.
    """
    manifest, source = manifest_of(snapshot), snapshot.place
    paths = config.paths
    old = store.read_record(source.spec, MachineSpec)
    if snapshot.imported:
        old = adopting.adopted_spec(old)
    # Two machines cannot have the same ports of the host.
    spec = replace(old, id=secrets.token_hex(16), created=time.time(), forwards=())
    final = paths.machine(name)

    def fill(place: VmPaths) -> None:
        take_root(source.root, place.root)
        store.write_record(place.image, store.read_record(source.image, ImageManifest))
        chain = link_into(VmPaths(source.directory), manifest.layers, place, manifest.size)
        if ram:
            plan = _plan(snapshot, config, spec)
            store.write_record(place.boot, copied(plan, name, spec, final, disk_of(final, chain)))
        note_base(place, snapshot.id)

    return registry.add(paths, name, spec, fill)
