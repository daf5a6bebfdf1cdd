"""``atoll supervise`` and ``atoll autostart``: machines under a service manager."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from atoll.cli.output import listener, print_json
from atoll.cli.parts import Part
from atoll.config import load
from atoll.errors import UsageError
from atoll.machine import registry

__all__ = ["autostart", "supervise"]


def _configure_supervise(parser: argparse.ArgumentParser) -> None:
    parser.description = "Start a machine and look after it in the foreground; SIGTERM stops it in order."
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")


def _run_supervise(arguments: argparse.Namespace) -> int:
    from atoll.machine.supervise import supervise_at
    from atoll.machine.supervised import plan_start, woken
    from atoll.vm.process import BUSY
    from atoll.vm.state import Phase

    config = load().config
    emit = listener(json=arguments.json, verbose=True)
    with ExitStack() as stack:
        files = None
        with registry.change(config.paths, arguments.machine) as machine:
            if machine.state.phase is Phase.SUSPENDED:
                files = stack.enter_context(woken(config, machine, emit))
            elif not machine.state.active:
                plan_start(config, machine, emit)
        status = supervise_at(machine.place, start=True, files=files, emit=emit)
    if status == BUSY:
        message = f"{machine.name} has a supervisor already"
        raise UsageError(message, code="supervised", hint=f"`atoll stop {machine.name}` ends it")
    return status


def _configure_autostart(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    enable = commands.add_parser("enable", help="start the machine with your session")
    enable.add_argument("machine", metavar="NAME")
    disable = commands.add_parser("disable", help="do not")
    disable.add_argument("machine", metavar="NAME")
    listing = commands.add_parser("ls", help="list the machines that do")
    listing.add_argument("--json", action="store_true", help="print the list as JSON")


def _run_autostart(arguments: argparse.Namespace) -> int:
    from atoll.machine import autostart as units

    config = load().config
    emit = listener()
    if arguments.action == "enable":
        print(units.enable(config, registry.find(config.paths, arguments.machine).name, emit))
    elif arguments.action == "disable":
        if not units.disable(arguments.machine, emit):
            message = f"{arguments.machine} does not start by itself"
            raise UsageError(message, code="autostart", hint="`atoll autostart ls` lists those that do")
    elif arguments.json:
        print_json(units.enabled())
    else:
        for name in units.enabled():
            print(name)
    return 0


supervise = Part(_configure_supervise, _run_supervise)
autostart = Part(_configure_autostart, _run_autostart)
