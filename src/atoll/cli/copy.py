"""``atoll cp``: files and trees between the host and a machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from atoll.cli.output import listener, print_json, size
from atoll.cli.parts import running
from atoll.errors import UsageError
from atoll.guest.copying import Copied
from atoll.machine.machine import Machine

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "atoll cp [OPTIONS] SOURCE NAME:TARGET | NAME:SOURCE TARGET"
    parser.add_argument("source", metavar="SOURCE", help="PATH, or NAME:PATH in a machine")
    parser.add_argument("target", metavar="TARGET", help="likewise; one of the two is in a machine")
    parser.add_argument("--archive", "-a", action="store_true", help="keep owners and all modes")
    parser.add_argument("--user", "-u", metavar="USER", help="who owns what is written in the machine")
    parser.add_argument("--json", action="store_true", help="print what was copied as JSON")
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")


def run(arguments: argparse.Namespace) -> int:
    """Copy."""
    source, target = _side(arguments.source), _side(arguments.target)
    if (source[0] is None) is (target[0] is None):
        message = "one of SOURCE and TARGET must be in a machine"
        raise UsageError(message, code="cp", hint="write NAME:PATH for it, and ./a:b for a file with a colon")
    copied = running(_copy(arguments, source, target))
    if arguments.json:
        print_json(copied)
    elif not arguments.quiet:
        print(f"{copied.entries} copied, {size(copied.bytes)} in {copied.elapsed:.1f} s")
    return 0


def _side(text: str) -> tuple[str | None, str]:
    """The machine, if the path is in one, and the path."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and "/" not in name else (None, text)


async def _copy(
    arguments: argparse.Namespace, source: tuple[str | None, str], target: tuple[str | None, str]
) -> Copied:
    emit = listener(quiet=arguments.quiet or arguments.json)
    async with Machine(source[0] or target[0] or "", on_event=emit) as machine:
        if target[0] is not None:
            return await machine.copy_in(
                Path(source[1]), target[1], archive=arguments.archive, user=arguments.user
            )
        return await machine.copy_out(source[1], Path(target[1]), archive=arguments.archive)
