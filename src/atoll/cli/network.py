"""``atoll network``: networks of machines and sandboxes."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from atoll.cli.network_audit import add_log, add_stats
from atoll.cli.network_shape import add_shape
from atoll.cli.options import add_json
from atoll.cli.output import print_json, print_table
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import UsageError
from atoll.vm.network import catalog
from atoll.vm.network.attachment import DEFAULT, MTU
from atoll.vm.network.catalog import Activity, NetworkInfo, Wish

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for add in (_add_create, _add_looks, _add_remove, _add_moves, add_log, add_stats, add_shape):
        add(commands)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _add_create(commands: Any) -> None:
    create = commands.add_parser("create", help="make a network")
    create.add_argument("name", metavar="NAME", help="lower-case letters, digits and dashes")
    create.add_argument(
        "--subnet", default="", metavar="CIDR", help="its addresses (default the first free 10.N.0.0/24)"
    )
    create.add_argument(
        "--subnet6", default="", metavar="CIDR", help="its prefix of IPv6, 64 bits (default a random one)"
    )
    create.add_argument("--isolated", action="store_true", help="its guests do not see one another")
    create.add_argument(
        "--internal", action="store_true", help="it leads nowhere but to ports of this host that were opened"
    )
    create.add_argument("--mtu", metavar="N", help=f"bytes of the largest packet (default {MTU})")
    add_json(create, "the network")
    create.set_defaults(act=_create)


def _add_looks(commands: Any) -> None:
    listing = commands.add_parser("ls", help="list networks")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    inspect = commands.add_parser(
        "inspect", help="show all about a network, with the cards that are plugged in"
    )
    inspect.add_argument("network", metavar="NAME")
    add_json(inspect, "it")
    inspect.set_defaults(act=_inspect)


def _add_remove(commands: Any) -> None:
    remove = commands.add_parser("rm", help="remove networks on which no machine is")
    remove.add_argument("networks", nargs="+", metavar="NAME")
    remove.set_defaults(act=_remove)


def _add_moves(commands: Any) -> None:
    about = (
        "A machine is on one network at a time: it leaves the one where it was, also while it runs. It gets "
        "another address then, and its open connections are reset."
    )
    connect = commands.add_parser("connect", help="move a machine to a network", description=about)
    connect.add_argument("network", metavar="NETWORK")
    connect.add_argument("machine", metavar="MACHINE")
    connect.set_defaults(act=_connect)
    disconnect = commands.add_parser(
        "disconnect", help=f"move a machine back to the network {DEFAULT}", description=about
    )
    disconnect.add_argument("machine", metavar="MACHINE")
    disconnect.set_defaults(act=_connect, network=DEFAULT)


def _create(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    wish = Wish(
        subnet=arguments.subnet,
        subnet_6=arguments.subnet6,
        isolated=arguments.isolated,
        internal=arguments.internal,
        mtu=_number(arguments.mtu),
    )
    catalog.create(paths, arguments.name, wish)
    made = catalog.find(paths, arguments.name)
    if arguments.json:
        print_json(made)
    else:
        print(f"{made.name}: {made.ipv4}, {made.ipv6}")
    return 0


def _number(text: str | None) -> int:
    if text is None:
        return MTU
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise UsageError(f"--mtu {text}: no size", code="mtu", hint="write a number of bytes, such as 1500")
    return int(text)


def _list(arguments: argparse.Namespace) -> int:
    listed = catalog.listed(load().config.paths)
    if arguments.json:
        print_json(listed)
        return 0
    rows = [
        (
            one.name,
            one.ipv4 or "-",
            one.ipv6 or "-",
            _yes(one.outside),
            _yes(one.shared),
            str(len(one.cards)),
            _process(one),
        )
        for one in listed
    ]
    print_table(("NAME", "IPV4", "IPV6", "OUTSIDE", "SHARED", "CARDS", "PROCESS"), rows)
    for one in listed:
        if one.problem:
            print(f"{one.name}: {one.problem}" + (f" ({one.hint})" if one.hint else ""))
    return 0


def _yes(wanted: bool) -> str:
    return "yes" if wanted else "no"


def _process(one: NetworkInfo) -> str:
    return f"{one.activity} ({one.pid})" if one.pid else str(one.activity)


def _inspect(arguments: argparse.Namespace) -> int:
    one = catalog.find(load().config.paths, arguments.network)
    if arguments.json:
        print_json(one)
        return 0
    rows = [
        ("IPv4", one.ipv4 or "-"),
        ("IPv6", one.ipv6 or "drawn at its first use"),
        ("leads outside", _yes(one.outside)),
        ("guests see one another", _yes(one.shared)),
        ("largest packet", f"{one.mtu} bytes"),
        ("process", _process(one)),
    ]
    if one.activity is Activity.BROKEN:
        rows = [("process", _process(one))]
    print_table(("NETWORK", one.name), rows)
    if one.problem:
        print(one.problem + (f" ({one.hint})" if one.hint else ""))
    if one.cards:
        print()
        cards = [(card.hostname or "-", card.address, card.address6, card.mac) for card in one.cards]
        print_table(("GUEST", "IPV4", "IPV6", "MAC"), cards)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from atoll.machine.networks import users_of

    paths = load().config.paths
    for name in dict.fromkeys(arguments.networks):
        catalog.remove(paths, name, functools.partial(users_of, paths, name))
        print(name)
    return 0


def _connect(arguments: argparse.Namespace) -> int:
    from atoll.machine.machine import Machine

    async def act() -> str:
        async with Machine(arguments.machine) as machine:
            return await machine.join_network(arguments.network)

    print(f"{arguments.machine}: on {arguments.network}, {running(act())}")
    return 0
