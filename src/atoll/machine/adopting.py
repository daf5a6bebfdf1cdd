"""Machines' snapshots from elsewhere: their records are looked through, and name files of this host then.

A plan names programs, files and directories of the host that it was made on. None of it is taken from an
imported one: it says what was in the VM, and this host says by what.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from msgspec.structs import replace

from atoll import store
from atoll.config import Config
from atoll.errors import AtollError
from atoll.hypervisor.model import Accelerator, Disk, Machine
from atoll.hypervisor.qemu.host import inspect_host
from atoll.image import kernel
from atoll.image.manifest import ImageManifest
from atoll.machine.planning import attachment_of
from atoll.machine.spec import MachineSpec, check_user, closed, mac_of
from atoll.paths import Paths, SnapshotPaths
from atoll.snapshot import thawing, vetting
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.importing import read_mark
from atoll.snapshot.manifest import Manifest
from atoll.snapshot.vetting import LARGEST, require
from atoll.vm.bootplan import BootPlan, user_network
from atoll.vm.network.attachment import with_mac

__all__ = ["DISK_ONLY", "adopted", "adopted_spec", "check_spec", "lost", "modules_of", "vet"]

_KEY = re.compile(r"[0-9a-f]{20}")

#: The disk with what runs programs of another architecture, and what its file is called.
_EMULATOR = "emulator"
_EMULATOR_FILE = re.compile(r"qemu-(?:aarch64|x86_64)\.erofs")
_ACCELERATORS = {"auto", *Accelerator}

#: Seconds of a day and of a hundred years.
_DAY, _LONG = 86_400.0, 3_155_760_000.0

_MODULES = "modules.erofs"

#: What can be done where a machine cannot go on from its RAM.
DISK_ONLY = "`atoll snapshot restore --disk-only` takes its disk alone"


def vet(place: SnapshotPaths, manifest: Manifest) -> Machine | None:
    """See that the records of a snapshot are such as are written of machines; its VM, if it has RAM.

    Raises:
        ValueError: what is wrong.
        AtollError: likewise.
        AssertionError: likewise, of the models.
    """
    spec = store.read_record(place.spec, MachineSpec)
    require(spec.id == manifest.machine_id, "its machine has another id")
    check_spec(spec)
    store.read_record(place.image, ImageManifest)
    if not manifest.ram:
        return None
    plan = store.read_record(place.plan, BootPlan)
    require(plan.origin is None, "its VM begins with a template")
    require(0 <= plan.disk <= LARGEST, "the disk of its VM")
    vetting.check_machine(manifest, plan.machine)
    _key_of(plan.machine)
    return plan.machine


def check_spec(spec: MachineSpec) -> None:
    """See that what a machine was asked for is what Atoll asks for. Raises as ``vet``."""
    require(spec.accel in _ACCELERATORS, "the accelerator of its machine")
    require(0 < spec.cpus <= 1024 and 0 < spec.memory <= LARGEST and 0 <= spec.disk <= LARGEST, "its size")
    vetting.check_image(spec.image)
    require(0 < spec.boot_timeout <= _DAY and 0 <= spec.idle_suspend <= _LONG, "the times of its machine")
    require(not spec.workdir or spec.workdir.startswith("/"), "where its commands start")
    require(all(name and "=" not in name for name in spec.env), "the variables of its commands")
    check_user(spec.user)


def _key_of(machine: Machine) -> str:
    """Which kernel a VM has, by the directory of its files: all of them are of one bundle."""
    files = [
        machine.kernel,
        machine.initramfs,
        *(disk.path for disk in machine.disks if disk.serial == "modules"),
    ]
    keys = {path.parent.name for path in files}
    key = keys.pop()
    require(not keys and _KEY.fullmatch(key), "its kernel")
    return key


def modules_of(snapshot: Snapshot) -> str:
    """SHA-256 of the modules of the kernel that runs in a snapshot, hexadecimal; empty if it is not known."""
    try:
        if snapshot.imported:
            return read_mark(snapshot.place).modules
        machine = store.read_record(snapshot.place.plan, BootPlan).machine
        found = store.read_record(machine.kernel.parent / "manifest.json", kernel.KernelBundle)
    except AtollError:
        return ""
    return _digest_of(found)


def _digest_of(bundle: kernel.KernelBundle) -> str:
    found = bundle.files.get(_MODULES)
    return found.sha256 if found is not None else ""


def lost(snapshot: Snapshot, paths: Paths) -> list[Path]:
    """Files of the kernel of an imported snapshot that are not here, or are others."""
    machine = store.read_record(snapshot.place.plan, BootPlan).machine
    emulators = [_emulator(disk, paths) for disk in machine.disks if disk.serial == _EMULATOR]
    gone = [path for path in emulators if not path.exists()]
    if gone:
        return gone
    directory = paths.kernel(_key_of(machine))
    try:
        here = kernel.load(paths, directory.name)
    except AtollError:
        return [directory]
    return [] if _digest_of(here.manifest) == read_mark(snapshot.place).modules else [directory / _MODULES]


def adopted_spec(spec: MachineSpec) -> MachineSpec:
    """What a machine from elsewhere was asked for, without a host's directories, ports, networks and kernels.

    It is a user's machine, whatever it was: what this Atoll's own machines do is trusted here.
    """
    return replace(
        spec,
        shares=(),
        forwards=(),
        reverse=(),
        auto_ports=None,
        aliases=(),
        kernel="",
        service=None,
        vsock=closed(spec.vsock),
        lan="",
    )


def adopted(plan: BootPlan, spec: MachineSpec, config: Config) -> BootPlan:
    """A plan from elsewhere, for a machine of this host.

    Args:
        plan: as it was looked through (``vet``).
        spec: of the machine that goes on by it.
        config: of this host.

    Raises:
        StateError: ``state.mismatch``: this host is too small, or of another kind.
        AtollError: its kernel is not here.
    """
    machine = plan.machine
    thawing.require_host(machine, DISK_ONLY)
    bundle = kernel.load(config.paths, _key_of(machine))
    mac = mac_of(spec.id)
    slirp = machine.network is not None
    own = replace(
        machine,
        kernel=bundle.vmlinux,
        initramfs=bundle.initramfs,
        disks=tuple(_disk(disk, bundle, config.paths) for disk in machine.disks),
        vsock_cid=0,
        ram=None,
        more=None,
    )
    return BootPlan(
        machine=with_mac(own, mac, spec.forwards),
        host=inspect_host(machine.architecture, config.cache_dir),
        setup=msgspec.structs.replace(
            plan.setup,
            network=user_network(mac) if slirp else None,
            shares=spec.shares,
            vsock=spec.vsock,
            user=spec.user,
            probe=spec.probe,
        ),
        policy=spec.restart,
        boot_timeout=spec.boot_timeout,
        disk=spec.disk,
        idle_suspend=spec.idle_suspend,
        attachment=attachment_of(config, machine.name, spec) if machine.card is not None else None,
    )


def _emulator(disk: Disk, paths: Paths) -> Path:
    """Where this host has what runs programs of another architecture: its directory says all that it is."""
    require(_KEY.fullmatch(disk.path.parent.name), "its emulator")
    require(_EMULATOR_FILE.fullmatch(disk.path.name), "its emulator")
    return paths.emulators / disk.path.parent.name / disk.path.name


def _disk(disk: Disk, bundle: kernel.Kernel, paths: Paths) -> Disk:
    """The kernel's modules and the emulator; others are put in by whoever has them: nowhere until then."""
    if disk.serial == _EMULATOR:
        return Disk(_emulator(disk, paths), disk.serial, read_only=True)
    if disk.serial == "modules":
        return Disk(bundle.directory / _MODULES, disk.serial, read_only=True)
    return Disk(Path(), disk.serial, read_only=disk.read_only)
