"""``atoll snapshot``: what machines and sandboxes were, kept for good."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from atoll.cli.options import add_json
from atoll.cli.output import listener, print_json, print_table, settle, size
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import AtollError, UsageError
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.machine.spec import check_name
from atoll.paths import Paths
from atoll.snapshot import catalog, pruning
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import check_labels

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = commands.add_parser("create", help="keep what a machine is now")
    create.add_argument("machine", metavar="NAME")
    create.add_argument("--name", "-n", metavar="SNAPSHOT", help="what to call it (default: the time)")
    create.add_argument("--description", default="", metavar="TEXT", help="what is said of it")
    create.add_argument(
        "--label", dest="labels", action="append", default=[], metavar="KEY=VALUE", help="may be repeated"
    )
    create.add_argument("--disk-only", action="store_true", help="leave out RAM and devices")
    create.add_argument("--no-pause", action="store_true", help="have it go on while its RAM is copied")
    create.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")
    add_json(create, "the snapshot")
    create.set_defaults(act=_create)
    listing = commands.add_parser("ls", help="list snapshots of machines and sandboxes as a tree")
    listing.add_argument("machine", nargs="?", metavar="NAME", help="of this machine only")
    add_json(listing, "the list")
    listing.set_defaults(act=_list)
    inspect = commands.add_parser("inspect", help="show all about a snapshot")
    inspect.add_argument("snapshot", metavar="SNAPSHOT")
    add_json(inspect, "it; also the default")
    inspect.set_defaults(act=_inspect)
    restore = commands.add_parser("restore", help="go back to a snapshot, or on from it as another machine")
    restore.add_argument("machine", nargs="?", metavar="NAME", help="the machine that goes back")
    restore.add_argument("machine_snapshot", metavar="SNAPSHOT", help="its name or id")
    restore.add_argument("--as", dest="name", metavar="NEW", help="make another machine of it")
    restore.add_argument("--disk-only", action="store_true", help="take the disk alone; it is at rest then")
    restore.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")
    restore.set_defaults(act=_restore)
    remove = commands.add_parser("rm", help="remove snapshots; others are not affected")
    remove.add_argument("snapshots", nargs="+", metavar="SNAPSHOT", help="name or id")
    remove.set_defaults(act=_remove)
    prune = commands.add_parser("prune", help="remove old snapshots")
    prune.add_argument("machine", nargs="?", metavar="NAME", help="of this machine only")
    prune.add_argument("--keep", type=int, metavar="N", help="keep the newest N of each machine or sandbox")
    prune.add_argument("--older-than", metavar="AGE", help="remove what is older, such as 12h, 7d or 4w")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed")
    prune.set_defaults(act=_prune)
    verify = commands.add_parser("verify", help="compare every byte with what was written")
    verify.add_argument("snapshots", nargs="*", metavar="SNAPSHOT", help="name or id (default: all)")
    add_json(verify, "the outcome")
    verify.set_defaults(act=_verify)


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _create(arguments: argparse.Namespace) -> int:
    labels = check_labels(arguments.labels)
    emit = listener(verbose=arguments.verbose, quiet=arguments.json)

    async def act() -> Snapshot:
        async with Machine(arguments.machine, on_event=emit) as machine:
            return await machine.snapshot(
                arguments.name,
                description=arguments.description,
                labels=labels,
                disk_only=arguments.disk_only,
                pause=not arguments.no_pause,
            )

    try:
        made = running(act())
    finally:
        settle(emit)
    if arguments.json:
        print_json(_described(made))
    else:
        assert made.manifest is not None
        print(f"{made.id} {made.manifest.name}")
    return 0


def _id_of(paths: Paths, machine: str | None) -> str | None:
    return registry.find(paths, machine).spec.id if machine is not None else None


def _list(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    found = catalog.listed(paths, _id_of(paths, arguments.machine))
    if arguments.json:
        print_json([_described(one) for one in found])
    else:
        head = ("SNAPSHOT", "ID", "OF", "CREATED", "HAS", "OWN", "NOTE")
        print_table(head, [_row(*one) for one in _tree(found)])
    return 0


def _tree(found: Sequence[Snapshot]) -> list[tuple[int, Snapshot]]:
    """Each below the one from which its machine or sandbox had gone on, with its depth."""
    ids = {one.id for one in found}
    below: dict[str, list[Snapshot]] = {}
    for one in found:
        parent = one.manifest.parent if one.manifest is not None else ""
        below.setdefault(parent if parent in ids else "", []).append(one)
    rows: list[tuple[int, Snapshot]] = []
    waiting = [(0, one) for one in reversed(below.get("", []))]
    while waiting:
        depth, one = waiting.pop()
        rows.append((depth, one))
        waiting += [(depth + 1, child) for child in reversed(below.get(one.id, []))]
    return rows


def _row(depth: int, one: Snapshot) -> tuple[str, ...]:
    manifest = one.manifest
    if manifest is None:
        return ("-", one.id, "-", "-", "-", "-", f"invalid: {one.error}")
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))
    parts = ["disk"] if manifest.layers else []  # a sandbox's is in its memory
    has = ", ".join([*parts, f"{size(manifest.memory)} RAM"] if manifest.ram else parts)
    name = "  " * max(depth - 1, 0) + ("└ " if depth else "") + manifest.name
    return (name, one.id, manifest.machine, date, has, size(one.stored), manifest.description)


def _described(one: Snapshot) -> dict[str, Any]:
    if one.manifest is None:
        return {"id": one.id, "state": "invalid", "error": str(one.error)}
    import msgspec

    return {
        "id": one.id,
        "state": "ready",
        "stored": one.stored,
        "directory": str(one.place.directory),
        **msgspec.to_builtins(one.manifest),
    }


def _inspect(arguments: argparse.Namespace) -> int:
    print_json(_described(catalog.find(load().config.paths, arguments.snapshot)))
    return 0


def _restore(arguments: argparse.Namespace) -> int:
    if (arguments.name is None) == (arguments.machine is None):
        hint = "`atoll snapshot restore NAME SNAPSHOT`, or `atoll snapshot restore --as NEW SNAPSHOT`"
        raise UsageError("name the machine that goes back, or a new one", code="snapshot", hint=hint)
    emit = listener(verbose=arguments.verbose)

    async def act() -> str:
        if arguments.name is not None:
            new = await Machine.from_snapshot(
                check_name(arguments.name),
                arguments.machine_snapshot,
                disk_only=arguments.disk_only,
                on_event=emit,
            )
            async with new:
                return new.state.phase
        async with Machine(arguments.machine, on_event=emit) as machine:
            return (await machine.restore(arguments.machine_snapshot, disk_only=arguments.disk_only)).phase

    phase = ""
    try:
        phase = running(act())
    finally:
        settle(emit, f"{arguments.name or arguments.machine}: {phase}" if phase else "")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    for one in [catalog.find(paths, reference, broken=True) for reference in arguments.snapshots]:
        catalog.remove(paths, one.id)
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    if arguments.keep is None and arguments.older_than is None:
        raise UsageError("nothing to prune by", code="snapshot", hint="give --keep or --older-than")
    if arguments.keep is not None and arguments.keep < 0:
        message = f"--keep {arguments.keep}: that is no number of snapshots"
        raise UsageError(message, code="snapshot", hint="write 0 or more")
    age = None if arguments.older_than is None else pruning.parse_age(arguments.older_than)
    every = catalog.listed(paths, _id_of(paths, arguments.machine))
    for one in pruning.plan(every, keep=arguments.keep, older_than=age, now=time.time()):
        assert one.manifest is not None
        print(f"{one.id} {one.manifest.machine} {one.manifest.name}")
        if not arguments.dry_run:
            catalog.remove(paths, one.id)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    paths = load().config.paths
    chosen = [catalog.find(paths, reference, broken=True) for reference in arguments.snapshots]
    outcomes = [(one, _fault(one)) for one in chosen or catalog.listed(paths)]
    if arguments.json:
        print_json([{"id": one.id, "ok": not fault, "error": fault} for one, fault in outcomes])
    else:
        names = [one.manifest.name if one.manifest is not None else "-" for one, _ in outcomes]
        rows = [(one.id, name, fault or "good") for (one, fault), name in zip(outcomes, names, strict=True)]
        print_table(("ID", "SNAPSHOT", "STATE"), rows)
    return 1 if any(fault for _, fault in outcomes) else 0


def _fault(one: Snapshot) -> str:
    try:
        catalog.verify(one)
    except AtollError as error:
        return error.message
    return ""
