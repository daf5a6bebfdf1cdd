"""``atoll dns``: the names of machines, on their networks and on this host."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from atoll import process, store
from atoll.cli.options import add_json
from atoll.cli.output import print_json, print_table
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import AtollError, NetworkError, UsageError
from atoll.machine import naming
from atoll.machine.machine import Machine
from atoll.paths import NetworkPaths
from atoll.vm.network import hostsetup, names
from atoll.vm.network.attachment import DEFAULT
from atoll.vm.network.hostnames import ADDRESS, HostListener
from atoll.vm.network.naming import Answered, NamesTold, Tables
from atoll.vm.network.ports import holder
from atoll.vm.network.records import DOMAIN

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = commands.add_parser("show", help="list networks with their names")
    show.add_argument("--network", metavar="NAME", help="this one only")
    add_json(show, "them")
    show.set_defaults(act=_show)
    test = commands.add_parser("test", help="ask a network's name server as a guest does")
    test.add_argument("name", metavar="NAME", help="what is asked for; an address asks for its name")
    test.add_argument("--network", metavar="NAME", default=DEFAULT, help=f"whose (default {DEFAULT})")
    test.add_argument("--type", "-t", metavar="TYPE", default="A", help="of the records (default A)")
    add_json(test, "the answer")
    test.set_defaults(act=_test)
    alias = commands.add_parser("alias", help="give machines further names")
    actions = alias.add_subparsers(dest="change", metavar="CHANGE", required=True)
    for change, what in (("add", "give a machine a further name"), ("rm", "take one away")):
        one = actions.add_parser(change, help=what)
        one.add_argument("machine", metavar="NAME")
        one.add_argument("aliases", nargs="+", metavar="ALIAS")
    alias.set_defaults(act=_alias)
    _configure_host(commands)


def _configure_host(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    install = commands.add_parser("install", help="have this host's programs find machines by their names")
    install.add_argument("--network", metavar="NAME", default=DEFAULT, help=f"whose (default {DEFAULT})")
    install.add_argument(
        "--port", metavar="N", type=_port, help=f"of {ADDRESS}, to answer at (default {hostsetup.PORT})"
    )
    install.add_argument(
        "--listen-only", action="store_true", help="answer there, and leave this host's name server alone"
    )
    install.add_argument("--dry-run", action="store_true", help="print what root would do, and do nothing")
    install.set_defaults(act=_install)
    uninstall = commands.add_parser("uninstall", help="undo that")
    uninstall.add_argument("--dry-run", action="store_true", help="print what root would do, and do nothing")
    uninstall.set_defaults(act=_uninstall)
    status = commands.add_parser("status", help="show whether this host's programs find machines")
    add_json(status, "it")
    status.set_defaults(act=_status)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65_536:
        raise argparse.ArgumentTypeError("ports are 1 to 65535")
    return int(text)


def _place(name: str) -> NetworkPaths:
    return names.require(load().config.paths, name)


# What there is.


def _show(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    wanted = (
        naming.networks(paths) if arguments.network is None else (_place(arguments.network).directory.name,)
    )
    found = [(name, running(naming.read(paths.network(name)))) for name in wanted]
    if arguments.json:
        print_json([_described(name, read) for name, read in found])
        return 0
    if not found:
        print("no machine has been on a network yet")
    for name, read in found:
        _print_network(name, read)
    return 0


def _described(name: str, read: tuple[NamesTold, Tables] | None) -> dict[str, Any]:
    import msgspec

    if read is None:
        return {"network": name, "running": False}
    told, tables = read
    names = [{**msgspec.to_builtins(one), "count": len(one.owners)} for one in tables.names]
    return {
        "network": name,
        "running": True,
        **msgspec.to_builtins(told),
        "search": [told.domain],
        "names": names,
        "reverse": {one.address: one.name for one in tables.reverse},
    }


def _print_network(name: str, read: tuple[NamesTold, Tables] | None) -> None:
    if read is None:
        print(f"{name}: nobody is on it")
        return
    told, tables = read
    print(f"{name}: answers at {' and '.join(told.resolvers)}, looks for short names in {told.domain}")
    print(f"{'':{len(name)}}  asks {', '.join(told.upstreams)} for others")
    if told.listens:
        print(f"{'':{len(name)}}  answers this host's programs at {told.listens}")
    reverse = {one.address: one.name for one in tables.reverse}
    rows = []
    for one in tables.names:
        kind = "alias" if one.alias else ""
        shared = f"{len(one.owners)} have it" if len(one.owners) > 1 else ""
        called = all(reverse.get(address) == one.name for address in one.addresses)
        back = "reverse" if called else ""
        remark = ", ".join(filter(None, (kind, shared, back)))
        rows.append((one.name, " ".join(one.addresses), " ".join(one.owners), remark))
    print_table(("NAME", "ADDRESSES", "OF", ""), rows)


# Questions.


def _test(arguments: argparse.Namespace) -> int:
    import dnslib

    name, kind = arguments.name.rstrip(".") or ".", arguments.type.upper()
    with contextlib.suppress(ValueError):
        name, kind = ip_address(name).reverse_pointer, "PTR"
    number = {text: number for number, text in dnslib.QTYPE.forward.items()}.get(kind)
    if number is None:
        hint = "such as A, AAAA, PTR, MX, TXT or SRV"
        raise UsageError(f"{arguments.type!r} is no type of records", code="dns_type", hint=hint)
    try:
        query = dnslib.DNSRecord.question(name, kind).pack()
    except (dnslib.DNSError, UnicodeError) as error:
        hint = "use labels of at most 63 letters, with dots between"
        raise UsageError(f"{arguments.name!r} is no name", code="dns_name", hint=hint) from error
    (answered,), told = running(naming.answer(_place(arguments.network), bytes(query)))
    read = dnslib.DNSRecord.parse(answered.message)
    outcome = dnslib.RCODE.get(read.header.rcode)
    records = [
        (str(rr.rname).rstrip("."), rr.ttl, dnslib.QTYPE.get(rr.rtype), str(rr.rdata)) for rr in read.rr
    ]
    hint = "" if records else _hint(name, outcome, answered, told)
    if arguments.json:
        keys = ("name", "ttl", "type", "data")
        print_json(
            {
                "name": name,
                "type": kind,
                "network": arguments.network,
                "outcome": outcome,
                "records": [dict(zip(keys, record, strict=True)) for record in records],
                "origin": answered.origin,
                "upstream": answered.upstream,
                "seconds": answered.seconds,
                "hint": hint,
            }
        )
    else:
        for record in records:
            print("  ".join(map(str, record)))
        print(
            f"{outcome}{'' if records else ', no records'}: {_source(answered)},"
            f" {answered.seconds * 1e3:.1f} ms"
        )
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return 0 if records else 1


def _source(answered: Answered) -> str:
    match answered.origin:
        case "network":
            return "known to the network itself"
        case "host":
            return "in this host's /etc/hosts"
        case "cache":
            return f"kept of what {answered.upstream or 'a name server'} said before"
        case "upstream":
            return f"asked {answered.upstream}" if answered.upstream else "no name server has answered"
        case _:
            return "refused"


def _hint(name: str, outcome: str, answered: Answered, told: NamesTold) -> str:
    """What to do about an answer without records."""
    if outcome == "SERVFAIL":
        servers = ", ".join(told.upstreams)
        return f"none of this host's name servers has an answer ({servers}): see /etc/resolv.conf"
    if answered.origin == "refusal":
        return "the network does not answer that: it is no ordinary question, or a rule forbids it"
    if name == told.domain or name.endswith(f".{told.domain}") or answered.origin == "network":
        if outcome == "NXDOMAIN":
            return "no machine that runs is called so on this network: `atoll dns show` lists the names"
        return "the name is there, and has no records of this type: try `--type AAAA`"
    if outcome == "NXDOMAIN":
        return "the name does not exist outside, and no machine is called so: `atoll dns show` lists those"
    return "the name has no records of this type; addresses of private networks are left out on purpose"


def _alias(arguments: argparse.Namespace) -> int:
    async def act() -> None:
        async with Machine(arguments.machine) as machine:
            for alias in arguments.aliases:
                await (machine.add_alias if arguments.change == "add" else machine.remove_alias)(alias)

    running(act())
    return 0


# This host's programs.


def _install(arguments: argparse.Namespace) -> int:
    place = _place(arguments.network)
    port = arguments.port or _recorded(place) or hostsetup.PORT
    steps = () if arguments.listen_only else hostsetup.plan(hostsetup.server_of(), DOMAIN, port)
    if arguments.dry_run:
        print(hostsetup.script(steps), end="")
        return 0
    if _recorded(place) != port:
        _require_free(port)
    store.write_record(place.resolver, HostListener(port=port))
    told = running(naming.listen(place))
    if told is not None and told.refused:
        raise NetworkError(
            f"names cannot be answered: {told.refused}", code="port", hint="choose another --port"
        )
    return _as_root(steps, "install")


def _uninstall(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    steps = hostsetup.undo(hostsetup.installed())
    if arguments.dry_run:
        print(hostsetup.script(steps), end="")
        return 0
    for name in naming.networks(paths):
        place = paths.network(name)
        if place.resolver.exists():
            with store.refusing(place.resolver):
                place.resolver.unlink(missing_ok=True)
            running(naming.listen(place))
    return _as_root(steps, "uninstall")


def _as_root(steps: tuple[hostsetup.Step, ...], action: str) -> int:
    """Do what only root may, or print it for root's shell."""
    if not steps:
        return 0
    if os.geteuid() == 0:
        hostsetup.carry_out(steps, process.run)
        return 0
    print(hostsetup.script(steps), end="")
    print(f"the rest is root's to do: `atoll dns {action} | sudo sh`", file=sys.stderr)
    return 0


def _recorded(place: NetworkPaths) -> int:
    """The port at which a network is to answer; 0 for none."""
    try:
        return store.read_record(place.resolver, HostListener).port if place.resolver.exists() else 0
    except AtollError:
        return 0


def _require_free(port: int) -> None:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
                probe.bind((ADDRESS, port))
    except OSError as error:
        who = holder(ADDRESS, port, "tcp") or holder(ADDRESS, port, "udp")
        message = f"port {port} of {ADDRESS}: {error.strerror}" + (f", by {who}" if who else "")
        raise NetworkError(message, code="port", hint="choose another with `--port`") from error


def _status(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    listed = []
    for name in naming.networks(paths):
        place = paths.network(name)
        if port := _recorded(place):
            read = running(naming.read(place))
            listens = read[0].listens if read is not None else ""
            refused = read[0].refused if read is not None else "nobody is on the network"
            listed.append({"network": name, "port": port, "listens": listens, "refused": refused})
    files = hostsetup.installed()
    works = bool(listed) and _resolves(f"host.{DOMAIN}")
    try:
        server = hostsetup.server_of().name
    except NetworkError:
        server = ""
    found = {
        "networks": listed,
        "server": server,
        "files": [str(one.path) for one in files],
        "works": works,
    }
    if arguments.json:
        print_json(found)
    else:
        _print_status(found)
    return 0 if works else 1


def _print_status(found: dict[str, Any]) -> None:
    if not found["networks"]:
        print("not installed: `atoll dns install`")
    for one in found["networks"]:
        state = f"answers at {one['listens']}" if one["listens"] else f"does not answer: {one['refused']}"
        print(f"network {one['network']}: {state}")
    server = found["server"] or "neither systemd-resolved nor dnsmasq"
    print(f"this host asks: {server}")
    for path in found["files"]:
        print(f"its file of ours: {Path(path)}")
    if found["networks"]:
        works = "this host's programs find" if found["works"] else "this host's programs do not find"
        print(f"{works} host.{DOMAIN}")


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False
