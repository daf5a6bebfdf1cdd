"""``atoll builder``: the machine in which images are built."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

import msgspec

from atoll.building.builder import Builder
from atoll.cli.options import add_json
from atoll.cli.output import listener, print_json, settle, size
from atoll.cli.parts import running
from atoll.config import load

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    status = commands.add_parser("status", help="show what it is and takes")
    add_json(status, "it")
    status.set_defaults(act=_status)
    stop = commands.add_parser("stop", help="end it; what it keeps stays")
    stop.set_defaults(act=_stop)
    remove = commands.add_parser("rm", help="remove it with all that it keeps; the next build makes another")
    remove.set_defaults(act=_remove)
    prune = commands.add_parser("prune", help="remove all that it keeps of builds, and give its space back")
    prune.set_defaults(act=_prune)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _with_builder(work: Callable[[Builder], Awaitable[str]]) -> int:
    emit = listener()

    async def act() -> str:
        builder = Builder(load().config, on_event=emit)
        try:
            return await work(builder)
        finally:
            await builder.close()

    said = running(act())
    settle(emit)
    print(said)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    found = Builder(load().config).status()
    if arguments.json:
        print_json(msgspec.structs.asdict(found))
        return 0
    print(f"machine  {found.phase}")
    if found.cpus:
        print(f"cpus     {found.cpus}")
        print(f"memory   {size(found.memory)}")
        print(f"disk     {size(found.used)} of {size(found.disk)}")
    return 0


def _stop(_: argparse.Namespace) -> int:
    async def work(builder: Builder) -> str:
        await builder.stop()
        return "the builder is at rest"

    return _with_builder(work)


def _remove(_: argparse.Namespace) -> int:
    async def work(builder: Builder) -> str:
        await builder.remove()
        return "the builder is removed"

    return _with_builder(work)


def _prune(_: argparse.Namespace) -> int:
    async def work(builder: Builder) -> str:
        return f"{size(await builder.prune())} are free now"

    return _with_builder(work)
