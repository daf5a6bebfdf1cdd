"""From what the user asked for to what a supervisor runs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from atoll import runtime, store
from atoll.config import Config, NetworkKind
from atoll.events import Emit, ignore
from atoll.hypervisor.model import Accelerator, CardNetwork, Machine, UserNetwork
from atoll.image.manifest import ImageManifest
from atoll.machine.ports import plain
from atoll.machine.spec import Init, MachineSpec, cid_of, mac_of
from atoll.paths import VmPaths
from atoll.vm import serving
from atoll.vm.bootplan import BootPlan, Setup, user_network
from atoll.vm.chain import disk_of, read_chain
from atoll.vm.inheriting import choosing
from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.network.attachment import DEFAULT, Attachment
from atoll.vm.network.egress import require_own
from atoll.vm.plan import Residence, limits_of, plan_resident
from atoll.vm.vsock import DRIVER

__all__ = ["FAKE", "attachment_of", "make_plan", "setup_script"]

#: PCIe slots for shares that come and go while the machine runs.
_SLOTS = 4

#: Devices that may be plugged in later: their modules are loaded then.
_PLUGGED = ("virtiofs", "virtio_mem", DRIVER)

#: What makes systemd start faster and say less; a user's own units are not affected.
_SYSTEMD = ("systemd.show_status=0",)

#: Makes a user. Each step looks for its own result: a start may have been cut off after any of them.
_USER = """\
id USER >/dev/null 2>&1 || useradd -M -s "$(command -v bash || echo /bin/sh)" USER
home=$(eval echo ~USER)
if [ ! -d "$home" ]; then
    rm -rf "$home.new"
    mkdir -p "$home.new"
    [ ! -d /etc/skel ] || cp -R /etc/skel/. "$home.new"
    chown -R USER: "$home.new"
    chmod 700 "$home.new"
    mv "$home.new" "$home"
fi
mkdir -p /etc/sudoers.d
[ -s /etc/sudoers.d/USER ] || echo 'USER ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/USER"""

#: What the names of templates have in them, by the network that machines have a card for.
_TEMPLATES = {NetworkKind.NONE: "-offline", NetworkKind.SLIRP: "", NetworkKind.OWN: "-own"}

#: An accelerator that no flag chooses but a record may name: the machine is the agent alone, as a process of
#: this host (``atoll.hypervisor.fake``). Tests of what machines do by the thousand use it.
FAKE = "fake"


def make_plan(config: Config, name: str, place: VmPaths, spec: MachineSpec, emit: Emit = ignore) -> BootPlan:
    """What to run for ``spec``; a kernel is fetched where it is missing. Raises as ``runtime.found``."""
    if spec.accel == FAKE:
        return _hosted(name, place, spec)
    settings = msgspec.structs.replace(
        config,
        cpus=spec.cpus,
        memory=spec.memory,
        accel=spec.accel,
        kernel=Path(spec.kernel) if spec.kernel else None,
        boot_timeout=spec.boot_timeout,
        full=spec.full,
    )
    image = store.read_record(place.image, ImageManifest)
    base = runtime.found(settings, root=image.architecture, emit=emit)
    files = msgspec.structs.replace(base.files, root=place.root)
    init = image.init if spec.init is Init.SYSTEMD else ""
    mac = mac_of(spec.id)
    if spec.shares:
        serving.check()
    limits = limits_of(base.shape, host_memory=runtime.host_memory(), host_cpus=os.cpu_count() or 1)
    wanted = NetworkKind.NONE
    if spec.network:
        wanted = NetworkKind.SLIRP if spec.slirp else NetworkKind.OWN
    require_own(spec.egress, wanted)
    network = runtime.available(config, spec.on or DEFAULT, wanted, required=bool(spec.egress), emit=emit)
    residence = Residence(
        data=disk_of(place, read_chain(place)),
        init=init,
        network=UserNetwork(mac, plain(spec.forwards)) if network is NetworkKind.SLIRP else None,
        card=CardNetwork(mac) if network is NetworkKind.OWN else None,
        max_vcpus=limits.vcpus,
        max_memory=limits.memory,
        slots=_SLOTS,
        parameters=_SYSTEMD if init else (),
        machine_id=spec.id,
        direct=spec.service.direct if spec.service is not None else (),
    )
    machine = plan_resident(name, files, base.shape, residence)
    kernel_vsock = spec.vsock is not None and spec.vsock.kernel
    if kernel_vsock:
        machine = msgspec.structs.replace(machine, vsock_cid=cid_of(spec.id))
    emulated = "-emulated" if base.files.emulator is not None else ""
    kind = f"machine-{spec.init}{_TEMPLATES[network]}{emulated}"
    devices = (
        *("virtio_rng", "virtio_balloon"),
        *(("virtio_net",) if spec.network else ()),
        *((DRIVER,) if kernel_vsock else ()),
    )
    return BootPlan(
        machine=machine,
        host=base.host,
        setup=Setup(
            modules=base.modules(*devices),
            network=user_network(mac) if network is NetworkKind.SLIRP else None,
            script=setup_script(spec),
            name=name,
            shares=spec.shares,
            vsock=spec.vsock,
            probe=spec.probe,
            user=spec.user,
            farewell=spec.service.stop if spec.service is not None else "",
            drivers={name: base.devices[name] for name in _PLUGGED if name in base.devices},
            inherited=_inherited(config, spec, network, emit),
            systemd=spec.init is Init.SYSTEMD,
        ),
        policy=spec.restart,
        boot_timeout=spec.boot_timeout,
        idle_suspend=spec.idle_suspend,
        disk=spec.disk,
        attachment=attachment_of(config, name, spec) if network is NetworkKind.OWN else None,
        # A template would have another one's CID.
        origin=runtime.machine_origin(settings, base, machine, kind, emit=emit) if not kernel_vsock else None,
    )


def _inherited(config: Config, spec: MachineSpec, network: NetworkKind, emit: Emit) -> Inheritance:
    """What the guest takes over of this host; what it took over before and is none of that is taken back."""
    if not spec.ca or network is NetworkKind.NONE:
        return Inheritance()
    place = config.paths.network(spec.on or DEFAULT) if network is NetworkKind.OWN else None
    return choosing.inherited(config.ca_files, place, proxied=not spec.egress, emit=emit)


def attachment_of(config: Config, name: str, spec: MachineSpec) -> Attachment:
    """Where the network card of a machine is plugged in."""
    return Attachment(
        network=config.paths.network(spec.on or DEFAULT).directory,
        owner=spec.id,
        hostname=name,
        forwards=spec.forwards,
        host_ports=config.network_host_ports,
        proxy_ports=choosing.open_ports() if spec.ca else (),
        egress=spec.egress,
        reverse=spec.reverse,
        aliases=spec.aliases,
        trusted=spec.service is not None and spec.service.trusted,
    )


def _hosted(name: str, place: VmPaths, spec: MachineSpec) -> BootPlan:
    native = runtime.host_architecture()
    machine = Machine(name, native, Accelerator.TCG, spec.cpus, spec.memory, place.root, place.root)
    setup = Setup(probe=spec.probe)
    return BootPlan(
        machine=machine, host=None, setup=setup, policy=spec.restart, boot_timeout=spec.boot_timeout
    )


def setup_script(spec: MachineSpec) -> str:
    """What the guest's shell does at each start: the user, who is made once, a service; empty for nothing."""
    lines = []
    if spec.user:
        lines.append(_USER.replace("USER", spec.user))  # a name that needs no quotes
    if spec.service is not None:
        lines.append(spec.service.start)
    return "\n".join(lines)
