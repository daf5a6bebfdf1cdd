"""Changing machines and copying them: ``edit``, ``resize``, ``memory``, ``rename``, ``clone``, ``fork``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec

from atoll.cli.output import listener, print_json, print_table, settle, size
from atoll.cli.parts import Part, running
from atoll.config import Config, load
from atoll.errors import UsageError
from atoll.events import Event, VmCaptured
from atoll.machine import archive, editing, live, registry
from atoll.machine.machine import Machine
from atoll.machine.porting import Port
from atoll.machine.registry import Named

__all__ = ["clone", "edit", "export", "fork", "import_", "memory", "rename", "resize"]


def _configure_edit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument(
        "changes", nargs="*", metavar="FIELD=VALUE", help=f"fields: {', '.join(editing.EDITABLE)}"
    )


def _run_edit(arguments: argparse.Namespace) -> int:
    config = load().config
    if not arguments.changes:
        spec = registry.find(config.paths, arguments.machine).spec
        rows = [(name, editing.shown(spec, name), about) for name, about in editing.EDITABLE.items()]
        print_table(("FIELD", "VALUE", "MEANING"), rows)
        return 0
    changes = dict(editing.parse_edit(text) for text in arguments.changes)
    with registry.change(config.paths, arguments.machine) as machine:
        spec = editing.edited(config, machine.spec, changes)
        # What it may reach is changed where it runs, too, and by whoever does that.
        registry.save(machine, msgspec.structs.replace(spec, egress=machine.spec.egress))
    waiting = set(changes)
    if spec.egress != machine.spec.egress and _follow(config, machine.name, spec.egress) == live.NOW:
        waiting.discard("egress")
    if machine.state.active and waiting - _settled_ports(config, machine, waiting):
        print(
            f"{arguments.machine}: takes effect when it is started again: `atoll restart {arguments.machine}`"
        )
    return 0


def _follow(config: Config, name: str, egress: tuple[str, ...]) -> str:
    """Change what a machine may reach; when that takes effect."""

    async def act() -> str:
        async with Machine(name, config=config) as machine:
            return await machine.set_egress(egress)

    return running(act())


def _settled_ports(config: Config, machine: Named, changes: AbstractSet[str]) -> AbstractSet[str]:
    """Have changed ports lead to a machine that runs; which of the changes have effect now."""
    ports = changes & editing.PORTS
    if not ports or machine.spec.slirp:
        return frozenset()

    async def act() -> tuple[Port, ...]:
        async with Machine(machine.name, config=config) as running_machine:
            return await running_machine.ports()

    for port in running(act()):
        if port.reason:
            print(f"warning: {port.reason}", file=sys.stderr)
    return ports


def _configure_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("name", metavar="NEW")


def _run_rename(arguments: argparse.Namespace) -> int:
    from atoll.machine import autostart as units
    from atoll.machine import ssh

    config = load().config
    with registry.change(config.paths, arguments.machine) as machine:
        registry.rename(config.paths, machine, arguments.name)
    ssh.forget_keys(config.paths, machine.name)
    if units.is_own(config, machine.name):
        units.disable(machine.name)
        units.enable(config, arguments.name, listener())
    return 0


def _run_clone(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    with registry.change(paths, arguments.machine) as machine:
        editing.clone(paths, machine, arguments.name)
    return 0


def _configure_fork(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("names", nargs="+", metavar="NEW")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")


def _run_fork(arguments: argparse.Namespace) -> int:
    names = tuple(dict.fromkeys(arguments.names))
    emit = listener(verbose=arguments.verbose, quiet=arguments.json)
    stopped: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, VmCaptured):
            stopped.append(event.stopped)
        emit(event)

    async def act() -> None:
        async with Machine(arguments.machine, on_event=on_event) as machine:
            for child in await machine.fork(*names):
                await child.close()

    try:
        running(act())
    finally:
        settle(emit)
    if arguments.json:
        print_json([{"name": name, "parent": arguments.machine, "stopped": sum(stopped)} for name in names])
    return 0


def _configure_resize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--cpus", metavar="N", help="vCPUs")
    parser.add_argument("--memory", "-m", metavar="SIZE", help="memory")
    parser.add_argument("--disk", metavar="SIZE", help="disk; it can only grow")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _run_resize(arguments: argparse.Namespace) -> int:
    if arguments.cpus is None and arguments.memory is None and arguments.disk is None:
        raise UsageError("nothing to resize", code="resize", hint="give --cpus, --memory or --disk")

    async def act() -> dict[str, str]:
        async with Machine(arguments.machine) as machine:
            return await machine.resize(cpus=arguments.cpus, memory=arguments.memory, disk=arguments.disk)

    done = running(act())
    if arguments.json:
        print_json(done)
    else:
        for what, how in done.items():
            print(f"{what}: {how}")
    return 0


def _configure_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--target", metavar="SIZE", help="what the balloon shall leave the guest")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _run_memory(arguments: argparse.Namespace) -> int:
    async def act() -> object:
        async with Machine(arguments.machine) as machine:
            return await machine.memory(arguments.target)

    from atoll.vm.messages import MemoryState

    found = running(act())
    assert isinstance(found, MemoryState)
    if arguments.json:
        print_json(found)
        return 0
    rows = [
        ("size", size(found.size)),
        ("left by the balloon", size(found.actual)),
        ("free in the guest", size(found.free) if found.free >= 0 else "not reported"),
        ("available in the guest", size(found.available) if found.available >= 0 else "not reported"),
        ("resident on the host", size(found.host)),
    ]
    print_table(("MEMORY", "VALUE"), rows)
    return 0


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("file", metavar="FILE", help="made; it must not exist")


def _run_export(arguments: argparse.Namespace) -> int:
    with registry.change(load().config.paths, arguments.machine) as machine:
        archive.export_machine(machine, Path(arguments.file), listener())
    return 0


def _configure_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="as `atoll export` made it")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the new machine (default: as it was)")


def _run_import(arguments: argparse.Namespace) -> int:
    print(archive.import_machine(load().config.paths, Path(arguments.file), arguments.name, listener()))
    return 0


edit = Part(_configure_edit, _run_edit)
rename = Part(_configure_rename, _run_rename)
fork = Part(_configure_fork, _run_fork)
clone = Part(_configure_rename, _run_clone)
resize = Part(_configure_resize, _run_resize)
memory = Part(_configure_memory, _run_memory)
export = Part(_configure_export, _run_export)
import_ = Part(_configure_import, _run_import)
