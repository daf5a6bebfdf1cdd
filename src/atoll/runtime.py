"""Puts the parts together: from settings and a request to a machine that can be spawned."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from atoll.config import Config, NetworkKind
from atoll.errors import AtollError, BootError, PreflightError, StoreError, UsageError
from atoll.events import Emit, Warned, ignore
from atoll.hypervisor.model import (
    Accelerator,
    Architecture,
    CardNetwork,
    Machine,
    UserNetwork,
    parse_architecture,
)
from atoll.hypervisor.qemu.backend import QemuHypervisor
from atoll.hypervisor.qemu.host import QemuHost, cpu_identity, host_memory, inspect_host
from atoll.image import emulation, kernel
from atoll.image.manifest import Image
from atoll.paths import NetworkPaths
from atoll.platforms import architecture_of, ensure_image, require_emulation, warn_of_slowness
from atoll.template import cache
from atoll.template.cache import Template
from atoll.template.key import (
    Recipe,
    base_memory,
    clone_of,
    draft,
    identity_of,
    most_memory,
    name_of,
    plan_original,
)
from atoll.vm import accelerator
from atoll.vm.identity import new_mac
from atoll.vm.inheriting import looking
from atoll.vm.network.attachment import BUILT_IN, SANDBOXES, Attachment
from atoll.vm.network.egress import require_own
from atoll.vm.origin import Origin
from atoll.vm.plan import ANY_MAC, Bootable, Shape, check_memory, plan, plan_held, smallest_memory
from atoll.vm.spawning import Clone, Spawned, spawn, spawn_clone

if TYPE_CHECKING:
    from atoll.vm.inheriting.inheritance import Inheritance

__all__ = [
    "Foundation",
    "Prepared",
    "attachment_of",
    "available",
    "build_template",
    "candidate",
    "choose_network",
    "ensure_image",
    "found",
    "host_architecture",
    "host_identity",
    "host_memory",
    "inherited",
    "launch",
    "machine_origin",
    "named_network",
    "network_of",
    "new_name",
    "original_of",
    "prepare",
    "spawn_held",
    "template_recipe",
]


#: What the names of templates have in them, by the network that clones have a card for.
_TEMPLATES = {NetworkKind.NONE: "", NetworkKind.SLIRP: ".network", NetworkKind.OWN: ".own"}


class Foundation(msgspec.Struct, frozen=True):
    """What any VM is made of.

    Attributes:
        hypervisor: what runs it.
        host: the hypervisor's executable.
        files: what it boots from, without a root.
        shape: its size and accelerator.
        devices: kernel modules by the device that needs them.
        identity: changes when ``files`` do.
        least: bytes of memory in which they come up.
    """

    hypervisor: QemuHypervisor
    host: QemuHost
    files: Bootable
    shape: Shape
    devices: dict[str, tuple[str, ...]]
    identity: str
    least: int

    @property
    def growing(self) -> bool:
        """Whether its guests can take memory while they run. On arm64 that was not tried."""
        return "virtio_mem" in self.devices and self.shape.architecture is Architecture.X86_64

    def modules(self, *devices: str) -> tuple[str, ...]:
        """The kernel modules that ``devices`` need, in the order in which they are loaded."""
        return tuple(path for device in devices for path in self.devices.get(device, ()))


class Prepared(msgspec.Struct, frozen=True):
    """A throw-away VM of an image.

    Attributes:
        base: what it is made of.
        image: of its root.
        machine: the VM as it is booted.
    """

    base: Foundation
    image: Image
    machine: Machine


def host_architecture() -> Architecture:
    """This host's architecture. Raises ``PreflightError`` where no guest agent exists for it."""
    name = kernel.host_architecture()
    try:
        return parse_architecture(name)
    except ValueError:
        message = f"hosts of architecture {name} are not supported"
        raise PreflightError(message, hint="use x86_64 or aarch64") from None


def found(config: Config, *, root: str = "", emit: Emit = ignore) -> Foundation:
    """Everything but a root that must be there before a VM is spawned, built where it is missing.

    Quick once all is cached: some files are stat-ed and four small records read. Builds take tens of seconds.

    Args:
        config: size, accelerator, kernel and directories, and whether a VM is of its root's architecture.
        root: architecture of the root that it is to have; the host's by default.
        emit: told of progress.

    Raises:
        PreflightError: the host lacks something.
        ImageError: the kernel cannot be had.
        StoreError: a directory is full or cannot be written.
    """
    native = host_architecture()
    wanted = architecture_of(root) if root else native
    guest = wanted if config.full else native
    # What the user has to install is said before a kernel is fetched.
    emulator = (
        emulation.ensure(config.paths, wanted, native=guest, emit=emit) if wanted is not guest else None
    )
    tested = candidate(config, guest, emit)
    files = tested.files
    if emulator is not None:
        require_emulation(tested, wanted)
        files = msgspec.structs.replace(files, emulator=emulator.disk)
    least = smallest_memory(_size(tested.files.kernel), _size(tested.files.initramfs))
    check_memory(config.memory, least=least, most=host_memory())
    chosen = accelerator.choose(config.accel, tested, config.paths.verdicts, emit)
    if files.emulator is not None and chosen.accelerator is Accelerator.TCG:
        warn_of_slowness(wanted, emit)
    return Foundation(
        hypervisor=QemuHypervisor(tested.host, config.paths.network(SANDBOXES).cards),
        host=tested.host,
        files=files,
        shape=Shape(guest, chosen.accelerator, config.cpus, config.memory, chosen.tsc_khz),
        devices=tested.devices,
        identity=tested.identity,
        least=least,
    )


def prepare(
    config: Config,
    name: str,
    image: str,
    *,
    network: NetworkKind = NetworkKind.NONE,
    emit: Emit = ignore,
) -> Prepared:
    """A throw-away VM of ``image``, with a card for that network.

    Raises:
        ImageError: the image is unknown, corrupt, or cannot be built; else as ``found``.
    """
    found_image = ensure_image(config, image, emit)
    base = found(config, root=found_image.manifest.architecture, emit=emit)
    files = msgspec.structs.replace(base.files, root=found_image.root)
    names = found_image.manifest.origin is not None
    machine = plan(name, files, base.shape, machine_id=os.urandom(16).hex(), names=names)
    return Prepared(base, found_image, _with_card(machine, network, new_mac()))


def _with_card(machine: Machine, network: NetworkKind, mac: str) -> Machine:
    return msgspec.structs.replace(
        machine,
        network=UserNetwork(mac) if network is NetworkKind.SLIRP else None,
        card=CardNetwork(mac) if network is NetworkKind.OWN else None,
    )


def network_of(machine: Machine) -> NetworkKind:
    """Which network a machine's card is for."""
    if machine.card is not None:
        return NetworkKind.OWN
    return NetworkKind.NONE if machine.network is None else NetworkKind.SLIRP


def choose_network(config: Config, wish: str | bool | None) -> NetworkKind:
    """The network that is wished for: True is any, False none, None what the settings say.

    Raises ``UsageError``: ``usage.choice``.
    """
    try:
        return config.network.chosen(wish)
    except ValueError:
        hint = f"choose one of: {', '.join(NetworkKind)}"
        raise UsageError(f"network: {wish!r} is unknown", code="choice", hint=hint) from None


def named_network(config: Config, wish: str | bool | None) -> tuple[str | bool | None, str]:
    """What ``choose_network`` makes of a wish, and the network of Atoll that it names; empty for none.

    Raises:
        UsageError: ``usage.network``: that is no name.
        NetworkError: ``network.unknown``: there is no such network.
    """
    if not isinstance(wish, str) or wish in set(NetworkKind):
        return wish, ""
    from atoll.vm.network import names  # noqa: PLC0415 - only where one is named

    names.require(config.paths, wish)
    return NetworkKind.OWN, wish


def available(
    config: Config, name: str, wanted: NetworkKind, *, required: bool = False, emit: Emit = ignore
) -> NetworkKind:
    """``wanted``, or QEMU's user network where Atoll's own, of that name, does not come up; that is told.

    If it is ``required``, or a network of the user's, for which nothing else can stand in, its error is
    raised.
    """
    if wanted is NetworkKind.OWN:
        from atoll.vm.network import reaching  # noqa: PLC0415 - only where there is a network

        try:
            reaching.ensure(config.paths.network(name))
        except AtollError as error:
            if required or name not in BUILT_IN:
                raise
            emit(Warned(message=f"QEMU's user network is used: {error.message}", hint=error.hint))
            return NetworkKind.SLIRP
    return wanted


def attachment_of(
    config: Config, machine: Machine, lan: str = "", egress: tuple[str, ...] = ()
) -> Attachment | None:
    """Where the card of a throw-away VM is plugged in; None if it has none, or one of another kind.

    Args:
        config: settings.
        machine: the VM.
        lan: the name of the network; by default that of sandboxes.
        egress: lines of the policy that it is held to.

    Raises:
        UsageError: ``usage.egress``: it has none, and is to be held to a policy.
    """
    if machine.card is None:
        if egress:
            require_own(egress, network_of(machine))
        return None
    proxy_ports: tuple[int, ...] = ()
    if config.ca and looking.has_proxies(os.environ):
        from atoll.vm.inheriting import choosing  # noqa: PLC0415 - only where there are proxies

        proxy_ports = choosing.open_ports()
    return Attachment(
        network=config.paths.network(lan or SANDBOXES).directory,
        hostname=machine.name,
        host_ports=config.network_host_ports,
        proxy_ports=proxy_ports,
        egress=egress,
    )


def inherited(
    config: Config, machine: Machine, attachment: Attachment | None, *, emit: Emit = ignore
) -> Inheritance | None:
    """What a throw-away VM takes over of this host; None for nothing. Raises as ``choosing.inherited``.

    Args:
        config: says whether it does, and which certificates beside the host's own.
        machine: the VM.
        attachment: where its card is plugged in; None if it has none, or one of another kind.
        emit: told of what is left out.
    """
    if network_of(machine) is NetworkKind.NONE or not config.ca:
        return None
    if not looking.is_worthwhile(config.ca_files, os.environ):
        return None
    from atoll.vm.inheriting import choosing  # noqa: PLC0415 - only where there is something

    place = None if attachment is None else NetworkPaths(attachment.network)
    proxied = attachment is None or not attachment.egress
    return choosing.inherited(config.ca_files, place, proxied=proxied, emit=emit)


def new_name() -> str:
    """A name for a sandbox that no other has."""
    return f"sandbox-{os.urandom(4).hex()}"


def launch(
    config: Config,
    name: str,
    image: str,
    *,
    network: NetworkKind = NetworkKind.NONE,
    lan: str = "",
    egress: tuple[str, ...] = (),
    devices: Sequence[str] = (),
    shaped: Callable[[Machine], Machine] | None = None,
    emit: Emit = ignore,
) -> Spawned:
    """Prepare a VM and spawn it: from a template, which is made on its first use, or cold.

    Args:
        config: size, accelerator, kernel and directories.
        name: of the VM.
        image: of its root.
        network: give it a network card.
        lan: the network of Atoll that it is on; by default that of sandboxes.
        egress: lines of the policy that it is held to.
        devices: drivers to load beside that.
        shaped: makes it what no template is: it is booted.
        emit: told of progress.

    Raises:
        AtollError: as ``prepare``; ``BootError`` with stage ``spawn``.
    """
    network = available(config, lan or SANDBOXES, network, required=bool(egress), emit=emit)
    prepared = prepare(config, name, image, network=network, emit=emit)
    spawned = None
    if not config.cold and shaped is None:
        spawned = _from_template(config, prepared, lan, egress, emit)
    if spawned is None:
        machine = prepared.machine if shaped is None else shaped(prepared.machine)
        modules = prepared.base.modules(*(("virtio_net",) if machine.mac else ()), *devices)
        attachment = attachment_of(config, machine, lan, egress)
        spawned = spawn(prepared.base.hypervisor, machine, emit, modules=modules, attachment=attachment)
    manifest = prepared.image.manifest
    return msgspec.structs.replace(spawned, run=manifest.run, shell=manifest.shell)


def _from_template(
    config: Config, prepared: Prepared, lan: str, egress: tuple[str, ...], emit: Emit
) -> Spawned | None:
    """Start from a template; None if that cannot be had now, and the VM is to be booted."""
    recipe = template_recipe(config, prepared)
    template = _usable(config, recipe, emit)
    if template is None:
        return None
    manifest = template.manifest
    try:
        with cache.opened(template) as place:
            machine = clone_of(recipe.machine, prepared.machine.name, place.ram)
            clone = Clone(manifest.name, place.state, prepared.machine.memory, manifest.created)
            attachment = attachment_of(config, machine, lan, egress)
            return spawn_clone(recipe.hypervisor, machine, clone, emit, attachment=attachment)
    except StoreError:  # another process has just discarded or replaced it
        return None


def _usable(config: Config, recipe: Recipe, emit: Emit) -> Template | None:
    """The template of ``recipe``, made if it is not here; None if VMs cannot start from it now."""
    template = cache.find(config.paths, recipe.manifest.name, recipe.manifest.identity)
    if template is None:
        from atoll.template import making  # noqa: PLC0415 - once for each recipe

        template = making.ensure(config.paths, recipe, emit=emit)
    if template is None or template.manifest.failure:
        return None
    cache.note_use(template)
    return template


def build_template(config: Config, image: str, *, force: bool = False, emit: Emit = ignore) -> Template:
    """Make the template from which sandboxes of ``image`` start, if it is not here or ``force``.

    Raises:
        StoreError: ``store.busy``: another process makes it.
        AtollError: as ``prepare`` and ``making.make``.
    """
    from atoll.template import making  # noqa: PLC0415 - once for each image

    recipe = template_recipe(config, prepare(config, "template", image, emit=emit))
    if force:
        cache.discard(config.paths, recipe.manifest.name)
    made = making.make(config.paths, recipe, emit=emit)
    if made is None:
        message = f"the template {recipe.manifest.name} is being made by another process"
        raise StoreError(message, code="busy", hint="try again in some seconds")
    if made.manifest.failure:
        hint = "`atoll template build --force` tries again"
        raise BootError(made.manifest.failure, stage="template", hint=hint)
    return made


def template_recipe(config: Config, prepared: Prepared) -> Recipe:
    """What a template is made of from which VMs like the one that was prepared start."""
    base, image = prepared.base, prepared.image.manifest
    network = network_of(prepared.machine)
    machine, modules = original_of(prepared, network=network, smaller=True)
    shape = msgspec.structs.replace(base.shape, memory=machine.memory)
    kind = image.name + _TEMPLATES[network] + (".emulated" if base.files.emulator is not None else "")
    identity = identity_of(
        base.hypervisor.vector(machine), (*host_identity(base.host), base.identity, image.digest)
    )
    manifest = draft(
        machine,
        name=name_of(kind, shape, base.identity, most=machine.max_memory),
        identity=identity,
        hypervisor=base.host.version,
        image=image.name,
    )
    return Recipe(base.hypervisor, machine, manifest, modules, config.boot_timeout)


def original_of(
    prepared: Prepared, *, network: NetworkKind, smaller: bool = False
) -> tuple[Machine, tuple[str, ...]]:
    """The VM that is frozen so that others like the one that was prepared can start from it.

    Args:
        prepared: what clones are like.
        network: for which they have a card.
        smaller: it may have less memory than they, who plug the rest in.

    Returns:
        The VM, and the kernel modules that are loaded in it.
    """
    base = prepared.base
    shape, memory = base.shape, base.shape.memory
    most = most_memory(memory, host=host_memory()) if base.growing else 0
    if smaller:
        shape = msgspec.structs.replace(shape, memory=base_memory(memory, least=base.least, most=most))
    files = msgspec.structs.replace(base.files, root=prepared.image.root)
    machine = plan_original(files, shape, most=most, names=prepared.image.manifest.origin is not None)
    devices = ["virtio_mem"] if base.growing else []
    if network is not NetworkKind.NONE:
        devices.append("virtio_net")
    return _with_card(machine, network, ANY_MAC), base.modules(*devices)


def host_identity(host: QemuHost) -> tuple[str, ...]:
    """What of a host must be the same for a template and all that start from it."""
    return host.identity, host.version, cpu_identity()


def candidate(config: Config, architecture: Architecture, emit: Emit = ignore) -> accelerator.Candidate:
    """QEMU and the kernel bundle that a guest of that architecture would get. Raises as ``prepare``."""
    host = inspect_host(architecture, config.cache_dir)
    if config.kernel is not None and not os.path.exists(config.kernel):
        raise UsageError(f"there is no kernel {config.kernel}", code="kernel", hint="check the path")
    bundle = kernel.ensure(config.paths, architecture=architecture, kernel=config.kernel, emit=emit)
    return accelerator.Candidate(
        hypervisor=QemuHypervisor(host, config.paths.network(SANDBOXES).cards),
        host=host,
        files=Bootable(bundle.vmlinux, bundle.initramfs, bundle.modules),
        identity=bundle.manifest.key,
        architecture=architecture,
        native=kernel.host_architecture(),
        devices=bundle.manifest.devices,
    )


def machine_origin(
    config: Config, base: Foundation, machine: Machine, kind: str, *, emit: Emit = ignore
) -> Origin | None:
    """The template from which a machine that stays can go on, made if it is not here; None to boot it.

    Args:
        config: of the machine.
        base: what it is made of.
        machine: as it is booted.
        kind: what tells it from machines of the same size: the name of its template.
        emit: told of progress.

    Raises:
        StoreError: the template cannot be kept.
    """
    template = _held(config, base, machine, kind, emit)
    if template is None:
        return None
    place = template.place
    return Origin(
        template=template.manifest.name,
        manifest=place.manifest,
        ram=place.ram,
        state=place.state,
        stamps=(template.manifest.ram, template.manifest.state),
    )


def spawn_held(
    config: Config, base: Foundation, machine: Machine, kind: str, *, emit: Emit = ignore
) -> Spawned:
    """Spawn a throw-away VM from a boot that is held, with the disks of its own; cold if there is none now.

    Args:
        config: says whether it is booted.
        base: what it is made of.
        machine: as it is booted; the kernel's command line tells its agent of no root.
        kind: what tells it from VMs with other devices: the name of its template.
        emit: told of the start.

    Raises:
        StoreError: the template cannot be kept.
        BootError: stage ``spawn``.
    """
    template = _held(config, base, machine, kind, emit)
    if template is None:
        return spawn(base.hypervisor, machine, emit)
    manifest = template.manifest
    try:
        with cache.opened(template) as place:
            cloned = clone_of(machine, machine.name, place.ram)
            clone = Clone(manifest.name, place.state, machine.memory, manifest.created, same=True)
            return spawn_clone(base.hypervisor, cloned, clone, emit)
    except StoreError:  # another process has just discarded or replaced it
        return spawn(base.hypervisor, machine, emit)


def _held(config: Config, base: Foundation, machine: Machine, kind: str, emit: Emit) -> Template | None:
    """The template of a boot that is held, made if it is not here; None if VMs cannot go on from it now."""
    if config.cold:
        return None
    held = plan_held(machine)
    manifest = draft(
        held,
        name=name_of(kind, base.shape, base.identity),
        identity=identity_of(base.hypervisor.vector(held), (*host_identity(base.host), base.identity)),
        hypervisor=base.host.version,
    )
    return _usable(config, Recipe(base.hypervisor, held, manifest, (), config.boot_timeout, held=True), emit)


def _size(path: Path) -> int:
    return path.stat().st_size
