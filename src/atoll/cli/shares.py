"""``atoll mount`` and ``atoll umount``: directories of the host in a machine."""

from __future__ import annotations

import argparse

from atoll.cli.output import print_json, print_table
from atoll.cli.parts import Part, running
from atoll.config import load
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.machine.spec import parse_share

__all__ = ["mount", "umount"]


def _configure_mount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument(
        "share", nargs="?", metavar="HOST:GUEST[:ro]", help="what to share (default: list what is)"
    )
    parser.add_argument("--json", action="store_true", help="print the machine's shares as JSON")


def _run_mount(arguments: argparse.Namespace) -> int:
    if arguments.share is not None:
        share = parse_share(arguments.share)

        async def act() -> None:
            async with Machine(arguments.machine) as machine:
                await machine.share(share.host, share.guest, read_only=share.read_only)

        running(act())
    if arguments.share is None or arguments.json:
        _show(arguments.machine, json=arguments.json)
    return 0


def _show(name: str, *, json: bool) -> None:
    shares = registry.find(load().config.paths, name).spec.shares
    if json:
        print_json(shares)
        return
    rows = [(share.host, share.guest, "read-only" if share.read_only else "") for share in shares]
    print_table(("HOST", "GUEST", "ACCESS"), rows)


def _configure_umount(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument("guest", metavar="GUEST", help="where the share is in the machine")


def _run_umount(arguments: argparse.Namespace) -> int:
    async def act() -> None:
        async with Machine(arguments.machine) as machine:
            await machine.unshare(arguments.guest)

    running(act())
    return 0


mount = Part(_configure_mount, _run_mount)
umount = Part(_configure_umount, _run_umount)
