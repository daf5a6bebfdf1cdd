"""``atoll network shape``: a worse link to a machine than there is, for tests."""

from __future__ import annotations

import argparse
from typing import TypeAlias

from atoll.cli.options import add_json
from atoll.cli.output import print_json, print_table
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import UsageError
from atoll.machine import registry
from atoll.machine.lines import network_of
from atoll.network.shapewords import in_words, parse_shape
from atoll.vm.network.shape import Lanes, ShapeRequest, ask_shape, shape_order

__all__ = ["add_shape"]

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name

_WISHES = ("latency", "jitter", "loss", "rate")


def add_shape(commands: _Commands) -> None:
    """Add ``atoll network shape``."""
    parser = commands.add_parser("shape", help="make a machine's link slow or lossy, or show how it is")
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("--latency", metavar="TIME", help="time that each frame takes, such as 50ms")
    parser.add_argument("--jitter", metavar="TIME", help="by how much that differs at most, such as 5ms")
    parser.add_argument("--loss", metavar="PART", help="frames that are lost, such as 1%%")
    parser.add_argument("--rate", metavar="RATE", help="bits in a second, such as 10Mbit")
    parser.add_argument(
        "--direction", choices=("in", "out", "both"), default="both", help="to the machine, or from it"
    )
    parser.add_argument("--off", action="store_true", help="let the link be as it is")
    add_json(parser, "how the link is")
    parser.set_defaults(act=_shape)


def _shape(arguments: argparse.Namespace) -> int:
    wishes = {name: getattr(arguments, name) for name in _WISHES}
    is_wish = any(wish is not None for wish in wishes.values())
    if is_wish and arguments.off:
        raise UsageError("--off goes without what else is wished", code="shape", hint="leave --off out")
    shape = parse_shape(**wishes)
    config = load().config
    machine = registry.find(config.paths, arguments.machine)
    owner = machine.spec.id
    order = ShapeRequest(owner=owner)
    if is_wish or arguments.off:
        order = shape_order(owner, shape, arguments.direction)
    lanes = running(ask_shape(network_of(config, machine), arguments.machine, order))
    if arguments.json:
        print_json(lanes)
    elif order == ShapeRequest(owner=owner):
        _show(lanes)
    return 0


def _show(lanes: Lanes) -> None:
    rows = [
        (name, in_words(lane.shape), str(lane.passed), str(lane.lost), str(lane.dropped))
        if lane is not None
        else (name, "as it is", "", "", "")
        for name, lane in (("in", lanes.inward), ("out", lanes.outward))
    ]
    print_table(("DIRECTION", "LINK", "PASSED", "LOST", "DROPPED"), rows)
