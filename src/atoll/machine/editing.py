"""Changing what was asked for: an edit, a larger disk, another name, a copy; the VM is not touched."""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from atoll import runtime, store
from atoll.config import Config, NetworkKind, override
from atoll.errors import StoreError, UsageError
from atoll.image import disk
from atoll.image.manifest import ImageManifest
from atoll.machine import registry, undoing
from atoll.machine.creation import check_workdir, choose, parse_disk, shared, take_root
from atoll.machine.ports import check
from atoll.machine.registry import Fill, Named
from atoll.machine.spec import (
    MachineSpec,
    Share,
    check_user,
    parse_alias,
    parse_idle,
    parse_probe,
    parse_share,
    parse_vsock,
)
from atoll.paths import Paths, VmPaths
from atoll.vm.autoports import parse_auto_ports, show_auto_ports, show_ranges
from atoll.vm.bootplan import AutoPorts, Vsock
from atoll.vm.branching import branch_at_rest, link_into
from atoll.vm.chain import PLAIN, read_chain, require_files, size_of
from atoll.vm.network.attachment import DEFAULT
from atoll.vm.network.egress import parse_egress, require_own, shown_egress
from atoll.vm.portwords import parse_forwards, parse_reverse, show_forward, show_reverse
from atoll.vm.restart import Policy
from atoll.vm.tidying import check_size, grow

__all__ = ["EDITABLE", "PORTS", "clone", "edited", "grow_disk", "network_of", "parse_edit", "shown"]

#: What ``edit`` can change, each with what it means.
EDITABLE = {
    "cpus": "vCPUs",
    "memory": "memory, such as 1G",
    "user": "the user whom commands are run as",
    "workdir": "directory in which commands start",
    "env": "variables, NAME=VALUE each",
    "mounts": "directories of the host, HOST:GUEST[:ro] each",
    "ports": "ports, [ADDRESS:]HOST[:GUEST][/udp] or unix:PATH:GUEST each",
    "reverse": "ports of the gateway that lead it to the host, PORT[:HOST] or PORT:unix:PATH each",
    "auto_ports": "yes, no, or ranges of ports that the host has, too, when programs listen on them",
    "auto_ports_deny": "ranges of ports that are none of these",
    "network": "own, slirp, none, or the name of a network",
    "egress": "what it may reach: rules and presets with ; between them; empty for anything",
    "ca": "yes or no: this host's certificates and proxies are the machine's, too",
    "aliases": "what other machines call it, too, with commas between",
    "kernel": "a kernel to boot; empty for Debian's",
    "accel": "auto, kvm or tcg",
    "full": "yes or no: a whole VM of its image's platform, whatever this host's is",
    "restart": "no, on-failure or always",
    "ready_probe": "a TCP port or a command; empty for none",
    "idle_suspend": "time such as 10m after which it is suspended if it does nothing; 0 for never",
    "vsock": "yes, no, kernel, or ports of the host, PORT[:PATH] each",
    "boot_timeout": "seconds in which it must be up",
}

#: Those of ``EDITABLE`` that hold at once for a machine that runs on Atoll's own network.
PORTS = {"ports", "reverse", "auto_ports", "auto_ports_deny"}

_SETTINGS = ("cpus", "memory", "accel", "kernel", "boot_timeout", "ca", "full")


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
    if "kernel" in changes:
        new["kernel"] = str(settings.kernel or "")
    if "network" in changes:
        new |= _network(config, changes["network"])
    for name in _PARSERS.keys() & changes.keys():
        field, parse = _PARSERS[name]
        new[field] = parse(changes[name])
    if "auto_ports" in changes or "auto_ports_deny" in changes:
        new["auto_ports"] = _auto_ports(spec, changes)
    changed = msgspec.structs.replace(spec, **new)
    check(changed)
    require_own(changed.egress, network_of(changed))
    return changed


def network_of(spec: MachineSpec) -> NetworkKind:
    """Which network a machine is to have."""
    if not spec.network:
        return NetworkKind.NONE
    return NetworkKind.SLIRP if spec.slirp else NetworkKind.OWN


def _items(value: str) -> list[str]:
    """What commas and blanks set apart, unless it is quoted as for a shell."""
    words = shlex.shlex(value, posix=True)
    words.whitespace, words.whitespace_split, words.commenters = ", \t\n", True, ""
    try:
        return list(words)
    except ValueError as error:
        raise UsageError(f"{value}: {error}", code="edit", hint="quote as in a shell") from error


def _variable(item: str) -> tuple[str, str]:
    name, given, value = item.partition("=")
    if not name or not given:
        hint = "write env=NAME=VALUE,..., with quotes around a value that has blanks or commas"
        raise UsageError(f"env: {item!r} is no variable", code="env", hint=hint)
    return name, value


def _network(config: Config, value: str) -> dict[str, Any]:
    """What a spec has of a network, by its fields."""
    wish = {"yes": "own", "no": "none"}.get(value, value)
    kind, lan = runtime.named_network(config, wish)
    return {"network": kind != "none", "slirp": kind == "slirp", "lan": lan if lan != DEFAULT else ""}


def _auto_ports(spec: MachineSpec, changes: Mapping[str, str]) -> AutoPorts | None:
    """What is not changed of it stays; who denies some wants the others."""
    wanted = changes.get("auto_ports", shown(spec, "auto_ports") if spec.auto_ports is not None else "yes")
    return parse_auto_ports(wanted, changes.get("auto_ports_deny", shown(spec, "auto_ports_deny")))


def _vsock(value: str) -> Vsock | None:
    """``yes``, ``no``, ``kernel``, or the ports that are open."""
    if value in {"", "no", "yes", "kernel"}:
        return parse_vsock(value if value == "kernel" else value == "yes", ())
    return parse_vsock(True, _items(value))


#: For each of ``EDITABLE`` that is no setting of sandboxes too: the spec's field, and what makes its value.
_PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "user": ("user", check_user),
    "workdir": ("workdir", check_workdir),
    "env": ("env", lambda value: dict(_variable(item) for item in _items(value))),
    "mounts": ("shares", lambda value: tuple(shared(parse_share(item)) for item in _items(value))),
    "ports": ("forwards", lambda value: tuple(one for item in _items(value) for one in parse_forwards(item))),
    "reverse": ("reverse", lambda value: tuple(parse_reverse(item) for item in _items(value))),
    "egress": ("egress", parse_egress),
    "aliases": ("aliases", lambda value: tuple(dict.fromkeys(map(parse_alias, _items(value))))),
    "restart": ("restart", lambda value: choose(Policy, value, "restart")),
    "idle_suspend": ("idle_suspend", parse_idle),
    "vsock": ("vsock", _vsock),
    "ready_probe": ("probe", lambda value: parse_probe(value) if value else None),
}


def shown(spec: MachineSpec, name: str) -> str:
    """A field of ``EDITABLE`` as ``edit`` takes it."""
    show = _SHOWN.get(name)
    return str(getattr(spec, name)) if show is None else show(spec)


def _show_probe(spec: MachineSpec) -> str:
    return "" if spec.probe is None else str(spec.probe.port or spec.probe.command[-1])


def _show_share(share: Share) -> str:
    return shlex.quote(f"{share.host}:{share.guest}{':ro' if share.read_only else ''}")


def _show_vsock(vsock: Vsock | None) -> str:
    if vsock is None or not vsock.ports:
        return "no" if vsock is None else "kernel" if vsock.kernel else "yes"
    return ",".join(
        shlex.quote(f"{one.port}:{one.path}" if one.path else f"{one.port}") for one in vsock.ports
    )


_SHOWN: dict[str, Callable[[MachineSpec], str]] = {
    "memory": lambda spec: f"{spec.memory >> 20}M",
    "env": lambda spec: ",".join(shlex.quote(f"{name}={value}") for name, value in spec.env.items()),
    "mounts": lambda spec: ",".join(_show_share(share) for share in spec.shares),
    "ports": lambda spec: ",".join(shlex.quote(show_forward(one)) for one in spec.forwards),
    "reverse": lambda spec: ",".join(shlex.quote(show_reverse(one)) for one in spec.reverse),
    "auto_ports": lambda spec: show_auto_ports(spec.auto_ports),
    "auto_ports_deny": lambda spec: show_ranges(spec.auto_ports.deny) if spec.auto_ports else "",
    "network": lambda spec: spec.lan or str(network_of(spec)),
    "egress": lambda spec: shown_egress(spec.egress),
    "ca": lambda spec: "yes" if spec.ca else "no",
    "full": lambda spec: "yes" if spec.full else "no",
    "aliases": lambda spec: ",".join(spec.aliases),
    "ready_probe": _show_probe,
    "idle_suspend": lambda spec: f"{spec.idle_suspend:g}",
    "vsock": lambda spec: _show_vsock(spec.vsock),
    "boot_timeout": lambda spec: f"{spec.boot_timeout:g}",
}


def grow_disk(machine: Named, size: str | int) -> MachineSpec:
    """Make the machine's disk larger; the guest is told by the caller, or notices at its next start.

    A file that only the VM may change while it runs gets its size from the VM, or at the next start.

    Raises:
        UsageError: ``usage.disk``: it cannot have that size.
    """
    count = parse_disk(size)
    with registry.undisturbed(machine) as nobody:
        if nobody or read_chain(machine.place) == PLAIN:
            grow(machine.place, count)
        else:
            check_size(machine.place, count)
    spec = msgspec.structs.replace(machine.spec, disk=count)
    registry.save(machine, spec)
    return spec


def clone(paths: Paths, machine: Named, name: str) -> None:
    """A machine like ``machine``, which is at rest, with addresses of its own.

    Both go on from the disk as it is now, each on files of its own; what it holds is there once.

    Raises:
        StateError: it is not at rest.
        StoreError: ``store.already_exists``, ``store.full``.
    """
    spec = msgspec.structs.replace(
        machine.spec, id=secrets.token_hex(16), created=time.time(), forwards=(), aliases=()
    )

    with registry.at_rest(machine, "cloned"):
        undoing.settle(machine)
        if registry.exists(paths, name):
            raise registry.taken(name)
        require_files(machine.place, read_chain(machine.place))
        give = _disk_for_others(machine.place)

        def fill(place: VmPaths) -> None:
            take_root(machine.place.root, place.root)
            store.write_record(place.image, store.read_record(machine.place.image, ImageManifest))
            give(place)

        registry.add(paths, name, spec, fill)


def _disk_for_others(place: VmPaths) -> Fill:
    """What gives a new machine the disk of the one at ``place``, which is at rest."""
    try:
        chain = branch_at_rest(place)
    except StoreError as error:
        if error.code != "store.no_links":
            raise
        return lambda target: disk.copy_sparse(place.data, target.data)  # without links there is no chain
    size = size_of(place, chain)

    def share(target: VmPaths) -> None:
        link_into(place, chain.frozen, target, size)

    return share
