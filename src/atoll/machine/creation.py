"""Making a machine: wishes are checked, its image is had, its disk is made, and only then is it there."""

from __future__ import annotations

import os
import secrets
import time
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from atoll import runtime, store
from atoll.config import Config, NetworkKind, parse_memory
from atoll.errors import ImageError, UsageError
from atoll.events import Emit, ignore
from atoll.image import disk, recipes
from atoll.machine import registry
from atoll.machine.ports import check
from atoll.machine.spec import (
    Init,
    MachineSpec,
    Share,
    check_free,
    check_user,
    parse_alias,
    parse_idle,
    parse_probe,
    parse_share,
    parse_vsock,
    reference_of,
)
from atoll.paths import VmPaths
from atoll.vm import serving
from atoll.vm.autoports import parse_auto_ports
from atoll.vm.network.attachment import DEFAULT
from atoll.vm.network.egress import parse_egress, require_own
from atoll.vm.portwords import parse_forwards, parse_reverse
from atoll.vm.restart import Policy

E = TypeVar("E", bound=StrEnum)

__all__ = [
    "Wishes",
    "check_workdir",
    "choose",
    "create",
    "enter",
    "make_spec",
    "parse_disk",
    "shared",
    "take_root",
]


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a user said of a new machine, beside the settings that sandboxes have, too."""

    distro: str = "debian"
    image: str | None = None
    disk: int = 16 << 30
    init: str = ""
    user: str = ""
    env: dict[str, str] = {}
    workdir: str = ""
    mounts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    reverse: tuple[str, ...] = ()
    auto_ports: bool | str = False
    auto_ports_deny: str = ""
    network: bool | str | None = None
    egress: tuple[str, ...] = ()
    restart: str = "no"
    ready_probe: str | None = None
    idle_suspend: str | float = 0.0
    vsock: bool | str = False
    vsock_ports: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def parse_disk(size: str | int) -> int:
    """Bytes of a disk's size. Raises ``UsageError``: ``usage.disk``."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    try:
        return parse_memory(size)
    except ValueError as error:
        raise UsageError(f"{size!r} is no size for a disk", code="disk", hint=str(error)) from error


def make_spec(config: Config, wishes: Wishes) -> MachineSpec:
    """The record of a new machine. Raises ``UsageError`` for a wish that is malformed."""
    init = choose(Init, wishes.init, "init") if wishes.init else Init.SYSTEMD
    found, lan = runtime.named_network(config, wishes.network)
    network = runtime.choose_network(config, found)
    egress = parse_egress(wishes.egress)
    require_own(egress, network)
    spec = MachineSpec(
        id=secrets.token_hex(16),
        image=recipes.canonical(wishes.image or reference_of(wishes.distro, init)),
        created=time.time(),
        cpus=config.cpus,
        memory=config.memory,
        disk=wishes.disk,
        init=init,
        user=check_user(wishes.user),
        env=wishes.env,
        workdir=check_workdir(wishes.workdir),
        shares=tuple(shared(parse_share(text)) for text in wishes.mounts),
        forwards=tuple(forward for text in wishes.ports for forward in parse_forwards(text)),
        reverse=tuple(parse_reverse(text) for text in wishes.reverse),
        auto_ports=parse_auto_ports(wishes.auto_ports, wishes.auto_ports_deny),
        network=network is not NetworkKind.NONE,
        slirp=network is NetworkKind.SLIRP,
        lan=lan if lan != DEFAULT else "",
        egress=egress,
        kernel=str(config.kernel or ""),
        accel=config.accel,
        restart=choose(Policy, wishes.restart, "restart"),
        probe=parse_probe(wishes.ready_probe) if wishes.ready_probe is not None else None,
        boot_timeout=config.boot_timeout,
        idle_suspend=parse_idle(wishes.idle_suspend),
        vsock=parse_vsock(wishes.vsock, wishes.vsock_ports),
        ca=config.ca,
        full=config.full,
        aliases=tuple(dict.fromkeys(map(parse_alias, wishes.aliases))),
    )
    check(spec)
    return spec


def create(config: Config, name: str, wishes: Wishes, emit: Emit = ignore) -> VmPaths:
    """Make a machine; its image is built or pulled if it is not here. Raises as ``Machine.create``."""
    return enter(config, name, make_spec(config, wishes), emit, by_image=not wishes.init)


def enter(
    config: Config, name: str, spec: MachineSpec, emit: Emit = ignore, *, by_image: bool = False
) -> VmPaths:
    """``create`` for who has the record already; its image may say that it is none with systemd."""
    check_free(name, spec)
    if registry.exists(config.paths, name):  # before an image is built for nothing
        raise registry.taken(name)
    image = runtime.ensure_image(config, spec.image, emit)
    if by_image and not image.manifest.init.endswith("/systemd"):
        spec = msgspec.structs.replace(spec, init=Init.MINIMAL)
        check(spec)
    if spec.init is Init.SYSTEMD and not image.manifest.init:
        hint = "use an image with systemd, or --init minimal"
        raise ImageError(f"the image {spec.image} has no init of its own", code="init", hint=hint)
    if spec.shares:
        serving.check()
    # What is missing on this host is said now, not at the first start.
    runtime.found(config, root=image.manifest.architecture, emit=emit)

    def fill(place: VmPaths) -> None:
        take_root(image.root, place.root)
        store.write_record(place.image, image.manifest)
        disk.make(place.data, spec.disk, emit=emit)

    return registry.add(config.paths, name, spec, fill)


def take_root(source: Path, target: Path) -> None:
    """Give a machine a root of its own: another name for the same file where the file system allows it."""
    try:
        target.hardlink_to(source)
    except OSError:
        disk.copy_sparse(source, target)


def shared(share: Share) -> Share:
    """A share whose directory is here. Raises ``UsageError``: ``usage.mount``."""
    path = os.path.abspath(os.path.expanduser(share.host))
    if not os.path.isdir(path):
        raise UsageError(f"there is no directory {path}", code="mount", hint="make it, or name another one")
    return msgspec.structs.replace(share, host=path)


def check_workdir(path: str) -> str:
    """A directory of the guest, or empty for the user's home. Raises ``UsageError``: ``usage.workdir``."""
    if path and not path.startswith("/"):
        raise UsageError(f"{path!r} is no absolute path", code="workdir", hint="write it from the guest's /")
    return path


def choose(kind: type[E], value: str, what: str) -> E:
    """The member that ``value`` names. Raises ``UsageError``: ``usage.choice``."""
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(kind)
        raise UsageError(
            f"{what}: {value!r} is unknown", code="choice", hint=f"choose one of: {choices}"
        ) from None
