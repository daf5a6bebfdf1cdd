"""Changing what was asked for: an edit, a larger disk, another name, a copy. The machine's VM is not touched."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from atoll import store
from atoll.config import Config, override
from atoll.errors import UsageError
from atoll.image import disk
from atoll.image.catalog import ImageManifest
from atoll.machine import registry
from atoll.machine.creation import parse_disk, shared, take_root
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec, check_user, parse_forward, parse_probe, parse_share
from atoll.paths import Paths, VmPaths
from atoll.vm.restart import Policy

__all__ = ["EDITABLE", "clone", "edited", "grow_disk", "parse_edit"]

#: What ``edit`` can change, each with what it means.
EDITABLE = {
    "cpus": "vCPUs",
    "memory": "memory, such as 1G",
    "user": "the user whom commands are run as",
    "workdir": "directory in which commands start",
    "env": "variables, NAME=VALUE each",
    "mounts": "directories of the host, HOST:GUEST[:ro] each",
    "ports": "ports, [ADDRESS:]HOST:GUEST[/udp] each",
    "network": "yes or no",
    "kernel": "a kernel to boot; empty for Debian's",
    "accel": "auto, kvm or tcg",
    "restart": "no, on-failure or always",
    "ready_probe": "a TCP port or a command; empty for none",
    "boot_timeout": "seconds in which it must be up",
}

_SETTINGS = ("cpus", "memory", "accel", "boot_timeout")


def parse_edit(text: str) -> tuple[str, str]:
    """``NAME=VALUE``. Raises ``UsageError``: ``usage.edit``."""
    name, given, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not given or name not in EDITABLE:
        raise UsageError(
            f"{text}: nothing to edit", code="edit", hint=f"write one of {', '.join(EDITABLE)} as NAME=VALUE"
        )
    return name, value.strip()


def edited(config: Config, spec: MachineSpec, changes: Mapping[str, str]) -> MachineSpec:
    """``spec`` with ``changes``, by the names of ``EDITABLE``; they take effect at the next start.

    Raises:
        UsageError, ConfigError: a value is wrong.
    """
    settings = override(config, {name: changes[name] for name in _SETTINGS if name in changes})
    new: dict[str, Any] = {name: getattr(settings, name) for name in _SETTINGS if name in changes}
    for name, value in changes.items():
        if name in _SETTINGS:
            continue
        new.update(_parse(name, value))
    return msgspec.structs.replace(spec, **new)


def _parse(name: str, value: str) -> dict[str, Any]:
    items = [item for item in value.replace(",", " ").split() if item]
    match name:
        case "user":
            return {"user": check_user(value)}
        case "env":
            return {"env": dict(_variable(item) for item in items)}
        case "mounts":
            return {"shares": tuple(shared(parse_share(item)) for item in items)}
        case "ports":
            return {"forwards": tuple(parse_forward(item) for item in items)}
        case "network":
            return {"network": _yes_or_no(value)}
        case "restart":
            if value not in set(Policy):
                raise UsageError(
                    f"restart={value}", code="restart", hint=f"choose one of: {', '.join(Policy)}"
                )
            return {"restart": Policy(value)}
        case "ready_probe":
            return {"probe": parse_probe(value) if value else None}
        case _:
            return {name: value}


def _variable(item: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    return name, value


def _yes_or_no(value: str) -> bool:
    if value not in {"yes", "no"}:
        raise UsageError(f"network={value}", code="edit", hint="write yes or no")
    return value == "yes"


def grow_disk(machine: Named, size: str | int) -> MachineSpec:
    """Make the machine's disk larger; the guest is told by the caller, or notices at its next start.

    Raises:
        UsageError: ``usage.disk``: it would become smaller.
    """
    count = parse_disk(size)
    disk.grow(machine.place.data, count)
    spec = msgspec.structs.replace(machine.spec, disk=count)
    registry.save(machine, spec)
    return spec


def clone(paths: Paths, machine: Named, name: str) -> None:
    """A machine like ``machine``, which is at rest, with a copy of its disk and addresses of its own.

    Raises:
        StateError: it is not at rest.
        StoreError: ``store.already_exists``, ``store.full``.
    """
    registry.require_rest(machine, "cloned")
    spec = msgspec.structs.replace(machine.spec, id=secrets.token_hex(16), created=time.time(), forwards=())

    def fill(place: VmPaths) -> None:
        take_root(machine.place.root, place.root)
        store.write_record(place.image, store.read_record(machine.place.image, ImageManifest))
        disk.copy_sparse(machine.place.data, place.data)

    registry.add(paths, name, spec, fill)
