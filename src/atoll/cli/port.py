"""``atoll port``: ports of the host that lead into machines, and of machines that lead to the host."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Sequence

from atoll.cli.main import report
from atoll.cli.options import add_json, add_reverse_option
from atoll.cli.output import print_json, print_table
from atoll.cli.parts import running
from atoll.config import Config, load
from atoll.errors import AtollError, UsageError
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.machine.porting import Port, PortKind, PortPhase

__all__ = ["configure", "run"]

_SPEC = (
    "[ADDRESS:]HOST[:GUEST][/udp], such as 8080:80, 0.0.0.0:8080:80, [::1]:8080:80, 0:80 for any free port, "
    "8000-8010:9000-9010, or unix:PATH:GUEST"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    add = actions.add_parser("add", help="have ports lead to a machine", allow_abbrev=False)
    _add_ports(add, "to forward")
    add_json(add, "the ports that were added")
    listing = actions.add_parser("ls", help="list the ports of machines", allow_abbrev=False)
    listing.add_argument("machine", nargs="?", metavar="NAME", help="of one machine (default all)")
    add_json(listing, "the list")
    remove = actions.add_parser("rm", help="have ports lead to a machine no more", allow_abbrev=False)
    _add_ports(remove, "to close; HOST is enough")
    remove.add_argument("--close", action="store_true", help="end the connections that came by them, too")
    add_json(remove, "the ports that are left")


def _add_ports(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("ports", nargs="*", metavar="SPEC", help=f"{what}: {_SPEC}")
    add_reverse_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    config = load().config
    if arguments.action == "ls":
        found, status = running(_listed(config, arguments.machine))
        _show(found, json=arguments.json)
        return status
    if not arguments.ports and not arguments.reverse:
        hint = f"write `atoll port {arguments.action} {arguments.machine} 8080:80`, or --reverse 5432"
        raise UsageError("no port is named", code="port", hint=hint)
    changed = running((_add if arguments.action == "add" else _remove)(config, arguments))
    if arguments.json:
        print_json(changed)
    elif arguments.action == "add":
        for one in changed:
            print(_said(one))
    return 0


async def _add(config: Config, arguments: argparse.Namespace) -> Sequence[Port]:
    async with Machine(arguments.machine, config=config) as machine:
        return await machine.add_ports(*arguments.ports, reverse=arguments.reverse)


async def _remove(config: Config, arguments: argparse.Namespace) -> Sequence[Port]:
    async with Machine(arguments.machine, config=config) as machine:
        return await machine.remove_ports(*arguments.ports, reverse=arguments.reverse, close=arguments.close)


async def _listed(config: Config, name: str | None) -> tuple[list[Port], int]:
    """The ports of one machine, or of all; and whether some could not be asked, as an exit status."""
    names = [name] if name is not None else [entry.name for entry in registry.listed(config.paths)]
    answers = await asyncio.gather(*(_of(config, one) for one in names), return_exceptions=True)
    found: list[Port] = []
    status = 0
    for answer in answers:
        if isinstance(answer, AtollError) and name is None:
            report(answer)
            status = 1
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found += answer
    return found, status


async def _of(config: Config, name: str) -> Sequence[Port]:
    async with Machine(name, config=config) as machine:
        return await machine.ports()


def _show(ports: Iterable[Port], *, json: bool) -> None:
    if json:
        print_json(ports)
        return
    rows = [(one.machine, _host(one), _guest(one), one.protocol, _state(one)) for one in ports]
    print_table(("MACHINE", "HOST", "GUEST", "PROTOCOL", "STATE"), rows)


def _said(port: Port) -> str:
    if port.kind is PortKind.REVERSE:
        return f"{_guest(port)} -> {_host(port)}"
    return f"{_host(port)} -> {port.machine}:{port.guest_port}/{port.protocol}"


def _host(port: Port) -> str:
    if port.path:
        return f"unix:{port.path}"
    address = f"[{port.address}]" if ":" in port.address else port.address
    return f"{address}:{port.port or 'any'}"


def _guest(port: Port) -> str:
    if port.kind is PortKind.REVERSE:
        return f"host.atoll.internal:{port.guest_port}"
    return f"{port.guest_port}"


def _state(port: Port) -> str:
    if port.state is PortPhase.REFUSED:
        return f"refused: {port.reason}"
    return f"{port.state}, automatic" if port.kind is PortKind.AUTOMATIC else port.state
