"""``atoll ls``, where ``atoll.cli.quick`` had no answer, and ``atoll inspect``."""

from __future__ import annotations

import argparse
import time
from typing import Any

from atoll.cli import rows
from atoll.cli.output import print_json
from atoll.cli.parts import Part
from atoll.config import load
from atoll.errors import UsageError
from atoll.machine import registry
from atoll.machine.registry import Entry, Named

__all__ = ["describe", "inspect", "ls"]


def _configure_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="print names only")


def _run_ls(arguments: argparse.Namespace) -> int:
    entries = registry.listed(load().config.paths)
    if arguments.json:
        print_json([_described(entry) for entry in entries])
    elif arguments.quiet:
        for entry in entries:
            print(entry.name)
    else:
        print(rows.table(rows.HEAD, [_row(entry) for entry in entries]), end="")
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    machine = entry.machine
    if machine is None:
        return (entry.name, "unknown", "", "", "", "", str(entry.error))
    state, spec = machine.state, machine.spec
    failure = state.failure.message if state.failure is not None else ""
    remark = rows.note(state.cause, failure, active=state.active, supervised=machine.supervised)
    since = time.time() - state.since
    return rows.row(machine.name, state.phase, since, spec.cpus, spec.memory, spec.image, remark)


def _described(entry: Entry) -> dict[str, Any]:
    if entry.machine is None:
        error = entry.error
        assert error is not None
        return {
            "name": entry.name,
            "error": {"code": error.code, "message": error.message, "hint": error.hint},
        }
    return describe(entry.machine)


def describe(machine: Named) -> dict[str, Any]:
    """A machine for programs."""
    import msgspec

    spec = msgspec.to_builtins(machine.spec)
    state = msgspec.to_builtins(machine.state)
    del spec["schema"], state["schema"]
    return {
        "name": machine.name,
        "state": state,
        "supervised": machine.supervised,
        "spec": spec,
        "directory": str(machine.place.directory),
    }


def _configure_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print it as JSON (also the default)")
    parser.add_argument("--format", metavar="FIELD", help="print one field, such as state.phase")


def _run_inspect(arguments: argparse.Namespace) -> int:
    from atoll.machine.inherited import inherited
    from atoll.machine.spec import mac_of
    from atoll.vm.inheriting.describing import described as shown

    machine = registry.find(load().config.paths, arguments.machine)
    described = describe(machine)
    described["mac"] = mac_of(machine.spec.id)
    described["logs"] = str(machine.place.logs)
    described["inherited"] = shown(inherited(machine.place))
    if arguments.format is None:
        print_json(described)
        return 0
    value: Any = described
    for name in arguments.format.split("."):
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(value) if isinstance(value, dict) else "nothing below it"
            raise UsageError(f"there is no field {arguments.format}", code="field", hint=f"known: {known}")
        value = value[name]
    if isinstance(value, (dict, list)):
        print_json(value)
    else:
        print("" if value is None else value)
    return 0


ls = Part(_configure_ls, _run_ls)
inspect = Part(_configure_inspect, _run_inspect)
