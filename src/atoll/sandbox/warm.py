"""Templates that users make: a VM that was prepared, frozen with its processes, and started from again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from atoll import runtime
from atoll.config import Config, NetworkKind
from atoll.errors import ImageError, StoreError, UsageError
from atoll.events import Emit, ignore
from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.backend import QemuHypervisor
from atoll.hypervisor.qemu.host import QemuHost, inspect_host
from atoll.template import cache
from atoll.template.cache import Preparation, Template
from atoll.template.key import Recipe, clone_of, draft, identity_of, with_disks_at
from atoll.vm.identity import new_mac
from atoll.vm.network.attachment import SANDBOXES, with_mac
from atoll.vm.spawning import Clone, Spawned, spawn_clone

__all__ = [
    "build",
    "find",
    "launch",
    "rebuilt",
    "refuse_beside_snapshot",
    "refuse_what_it_fixes",
    "require_card",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

#: Seconds for all that a user has done in a template: packages take minutes to install under emulation.
_PATIENCE = 3600.0

#: Where the disks of a template are, as far as its identity is concerned.
_ANYWHERE = Path("/template")


def build(
    config: Config, name: str, image: str, preparation: Preparation, *, emit: Emit = ignore
) -> Template:
    """Boot a VM of ``image``, prepare it, and freeze it as the template ``name``, in the place of one before.

    Args:
        config: size and accelerator of the VM.
        name: of the template.
        image: of its root; it stays as it is when the image is built anew.
        preparation: what is done in it.
        emit: told of progress.

    Raises:
        UsageError: ``usage.template``: the name is none.
        StoreError: ``store.busy``: another process makes it; or it cannot be kept.
        BootError: stage ``prepare`` if a command failed; else it does not come up, or no clone does.
        AtollError: as ``runtime.prepare``.
    """
    from atoll.template import making  # noqa: PLC0415 - not for those who start from it

    _check(name)
    prepared = runtime.prepare(config, "template", image, emit=emit)
    wished = runtime.choose_network(config, wish=preparation.network)
    network = runtime.available(config, SANDBOXES, wished, emit=emit)
    recipe = _recipe(config, name, prepared, preparation, network)
    paths = config.paths.own
    made = making.make(paths, recipe, anew=True, emit=emit)
    if made is None:
        message = f"the template {name} is being made by another process"
        raise StoreError(message, code="busy", hint="wait for it, or choose another name")
    return made


def find(config: Config, name: str) -> Template:
    """A user's template.

    Raises:
        ImageError: ``image.template``: there is none of that name, or it was changed.
    """
    _check(name)
    template = cache.find(config.paths.own, name)
    if template is None or template.manifest.machine is None:
        broken = config.paths.own.template(name).directory.exists()
        message = f"the template {name} is broken" if broken else f"there is no template {name}"
        hint = "`atoll template ls` lists them; `atoll template build NAME --image IMAGE` makes one"
        raise ImageError(message, code="template", hint=hint)
    return template


def launch(
    config: Config,
    name: str,
    template: str,
    memory: int | None,
    *,
    lan: str = "",
    egress: tuple[str, ...] = (),
    emit: Emit = ignore,
) -> Spawned:
    """Spawn a VM that goes on where a user's template was frozen.

    Args:
        config: where templates are kept.
        name: of the VM.
        template: its name.
        memory: bytes that the VM shall have; those of the template by default.
        lan: the network of Atoll that it is on; by default that of sandboxes.
        egress: lines of the policy that it is held to.
        emit: told of the start.

    Raises:
        ImageError: ``image.template``: there is none of that name; ``image.stale``: it was made with another
            QEMU, or on another CPU.
        UsageError: ``usage.memory``: the template has more, or cannot grow so far; ``usage.network``,
            ``usage.egress``: it has no card for a network of Atoll.
        BootError: stage ``spawn``.
    """
    found = find(config, template)
    manifest = found.manifest
    assert manifest.machine is not None
    host = inspect_host(manifest.machine.architecture, config.cache_dir)
    hypervisor = QemuHypervisor(host, config.paths.network(SANDBOXES).cards)
    if manifest.identity != _identity(hypervisor, host, manifest.machine):
        message = f"the template {template} was made with another QEMU, or on another CPU"
        raise ImageError(message, code="stale", hint="`atoll template build NAME` makes it anew")
    require_card(manifest.machine, lan, f"the template {template}")
    size = manifest.memory if memory is None else memory
    most = max(manifest.memory, manifest.machine.max_memory)
    if not manifest.memory <= size <= most:
        message = f"VMs of the template {template} cannot have {size >> 20} MiB of memory"
        hint = f"ask for {manifest.memory >> 20}M to {most >> 20}M, or make it anew with another --memory"
        raise UsageError(message, code="memory", hint=hint)
    with cache.opened(found) as place:
        machine = clone_of(with_disks_at(manifest.machine, found.place), name, place.ram)
        clone = Clone("", place.state, size, manifest.created)
        attachment = runtime.attachment_of(config, machine, lan, egress)
        spawned = spawn_clone(hypervisor, machine, clone, emit, attachment=attachment)
        return replace(spawned, run=manifest.run)


def require_card(machine: Machine, lan: str, what: str) -> None:
    """See that what goes on from ``machine`` has a card. Raises ``UsageError``: ``usage.network``."""
    if lan and machine.card is None:
        message = f"{what} has no card for a network of Atoll"
        raise UsageError(message, code="network", hint="make it anew with a network")


def refuse_what_it_fixes(wanted: Mapping[str, object]) -> None:
    """Refuse what is asked for beside a template and is no longer to be chosen.

    Args:
        wanted: by name; None for what nobody asked for.

    Raises:
        UsageError: ``usage.template``.
    """
    fixed = [name for name, value in wanted.items() if value is not None]
    if fixed:
        message = f"{' and '.join(fixed)}: a template has that already"
        raise UsageError(message, code="template", hint="say it when the template is made")


def refuse_beside_snapshot(wanted: Mapping[str, object]) -> None:
    """As ``refuse_what_it_fixes``, beside a snapshot. Raises ``UsageError``: ``usage.snapshot``."""
    fixed = [name for name, value in wanted.items() if value is not None]
    if fixed:
        message = f"{' and '.join(fixed)}: a snapshot has that already"
        raise UsageError(message, code="snapshot", hint="leave it out")


def rebuilt(config: Config, name: str) -> tuple[Config, str, str, Preparation]:
    """What makes a template anew: the arguments of ``build``.

    Raises:
        ImageError: as ``find``.
    """
    manifest = find(config, name).manifest
    assert manifest.preparation is not None
    same = replace(
        config,
        cpus=manifest.vcpus,
        memory=manifest.memory,
        accel=manifest.accelerator,
        platform=manifest.platform,
        full=manifest.full,
    )
    return same, name, manifest.image, manifest.preparation


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        hint = "use lower-case letters, digits, - and _; begin with a letter or digit"
        raise UsageError(f"{name!r} cannot be a template's name", code="template", hint=hint)


def _recipe(
    config: Config, name: str, prepared: runtime.Prepared, preparation: Preparation, network: NetworkKind
) -> Recipe:
    base = prepared.base
    machine, modules = runtime.original_of(prepared, network=network)
    machine = with_mac(machine, new_mac())  # on the network there may be another one that is prepared
    manifest = draft(
        machine,
        name=name,
        identity=_identity(base.hypervisor, base.host, machine),
        hypervisor=base.host.version,
        image=prepared.image.manifest.name,
    )
    attachment = runtime.attachment_of(config, machine)
    return Recipe(
        base.hypervisor,
        machine,
        replace(
            manifest,
            preparation=preparation,
            machine=machine,
            platform=config.platform,
            full=config.full,
            run=prepared.image.manifest.run,
        ),
        modules,
        config.boot_timeout,
        keeps_disks=True,
        patience=_PATIENCE,
        attachment=attachment,
        inherited=runtime.inherited(config, machine, attachment),
    )


def _identity(hypervisor: QemuHypervisor, host: QemuHost, machine: Machine) -> str:
    """What a template and its clones must have in common: a kernel is in the template's RAM."""
    placed = replace(machine, disks=tuple(replace(disk, path=_ANYWHERE) for disk in machine.disks))
    return identity_of(hypervisor.vector(placed, incoming=True), runtime.host_identity(host))
