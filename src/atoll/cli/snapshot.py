"""``atoll snapshot``: what machines and sandboxes were, kept for good."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from atoll.cli.options import add_json
from atoll.cli.output import listener, print_json, print_table, quoted, settle, size
from atoll.cli.parts import running
from atoll.config import load
from atoll.errors import AtollError, UsageError
from atoll.machine import registry
from atoll.machine.machine import Machine
from atoll.machine.spec import check_name
from atoll.paths import Paths
from atoll.snapshot import catalog, pruning
from atoll.snapshot.catalog import Snapshot
from atoll.snapshot.manifest import Kind, Manifest, check_labels

__all__ = ["configure", "run"]

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


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
    _configure_moving(commands)
    diff = commands.add_parser("diff", help="list the files that changed between two snapshots")
    diff.add_argument("snapshot", metavar="SNAPSHOT", help="the first one, by its name or id")
    diff.add_argument(
        "other", nargs="?", metavar="OTHER", help="the second one (default: SNAPSHOT, after its parent)"
    )
    diff.add_argument("--exit-code", action="store_true", help="exit with 1 if a file changed")
    diff.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")
    add_json(diff, "the files, with what they were and are")
    diff.set_defaults(act=_diff)
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


def _configure_moving(commands: _Commands) -> None:
    export = commands.add_parser("export", help="write a snapshot to a file")
    export.add_argument("snapshot", metavar="SNAPSHOT", help="its name or id")
    export.add_argument("file", metavar="FILE|-", help="made, it must not exist; - is stdout")
    export.add_argument("--quiet", "-q", action="store_true", help="show no progress")
    add_json(export, "what was written")
    export.set_defaults(act=_export)
    take = commands.add_parser("import", help="have a snapshot that is in such a file be one of yours")
    take.add_argument("file", metavar="FILE|-", help="as `atoll snapshot export` made it; - is stdin")
    take.add_argument("--name", "-n", metavar="NEW", help="another name, with which it has another id, too")
    take.add_argument("--quiet", "-q", action="store_true", help="show no progress")
    add_json(take, "the snapshot")
    take.set_defaults(act=_import)


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
    owner = _id_of(paths, arguments.machine)
    found, begun = catalog.listed(paths, owner), catalog.begun(paths, owner)
    if arguments.json:
        print_json([*map(_described, found), *map(_announced, begun)])
    else:
        head = ("SNAPSHOT", "ID", "OF", "CREATED", "HAS", "OWN", "NOTE")
        here = _machines_here(paths)
        unfinished = [(one.name, "-", one.machine, _date(one), "-", "-", "creating") for one in begun]
        print_table(head, [*(_row(*one, here) for one in _tree(found)), *unfinished])
    return 0


def _machines_here(paths: Paths) -> set[str]:
    """Ids of the machines of this user: to these their snapshots can be restored in place."""
    return {entry.machine.spec.id for entry in registry.listed(paths) if entry.machine is not None}


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


def _row(depth: int, one: Snapshot, here: set[str]) -> tuple[str, ...]:
    manifest = one.manifest
    if manifest is None:
        return ("-", one.id, "-", "-", "-", "-", f"invalid: {one.error}")
    parts = ["disk"] if manifest.layers else []  # a sandbox's is in its memory
    has = ", ".join([*parts, f"{size(manifest.memory)} RAM"] if manifest.ram else parts)
    name = "  " * max(depth - 1, 0) + ("└ " if depth else "") + manifest.name
    gone = manifest.kind is Kind.MACHINE and manifest.machine_id not in here
    whose = f"{manifest.machine} (not here)" if gone else manifest.machine
    note = "".join(char if char.isprintable() else " " for char in manifest.description)
    return (name, one.id, whose, _date(manifest), has, size(one.stored), note)


def _date(manifest: Manifest) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.created))


def _announced(manifest: Manifest) -> dict[str, Any]:
    """A snapshot that is being made: it has no id yet."""
    fields = ("name", "kind", "machine", "machine_id", "parent", "created", "description", "labels")
    return {"state": "creating", **{field: getattr(manifest, field) for field in fields}}


def _described(one: Snapshot) -> dict[str, Any]:
    if one.manifest is None:
        return {"id": one.id, "state": "invalid", "error": str(one.error)}
    import msgspec

    return {
        "id": one.id,
        "state": "ready",
        "stored": one.stored,
        "directory": str(one.place.directory),
        "imported": one.imported,
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


def _export(arguments: argparse.Namespace) -> int:
    from atoll import transfer

    piped = arguments.file == "-"
    if piped and (arguments.json or sys.stdout.isatty()):
        message = "the snapshot itself goes to stdout"
        hint = "name a file, or redirect it to one, without --json"
        raise UsageError(message, code="archive", hint=hint)
    emit = listener(quiet=arguments.quiet or arguments.json)
    target = sys.stdout.buffer if piped else Path(arguments.file)
    try:
        made = transfer.write_archive(load().config.paths, arguments.snapshot, target, emit)
    finally:
        settle(emit)
    if arguments.json:
        print_json(made)
    elif not piped and not arguments.quiet:
        print(f"{made.id} {made.name}: {size(made.bytes)}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from atoll import transfer

    emit = listener(quiet=arguments.quiet or arguments.json)
    source = sys.stdin.buffer if arguments.file == "-" else Path(arguments.file)
    try:
        made = transfer.read_archive(load().config.paths, source, arguments.name, emit)
    finally:
        settle(emit)
    if arguments.json:
        print_json(_described(made))
    else:
        print(f"{made.id} {catalog.manifest_of(made).name}")
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from atoll.comparing import compare_snapshots

    emit = listener(verbose=arguments.verbose, quiet=arguments.json)
    try:
        found = running(compare_snapshots(arguments.snapshot, arguments.other, on_event=emit))
    finally:
        settle(emit)
    if arguments.json:
        import json

        import msgspec

        # Bytes of names that are no UTF-8 are lone surrogates, which this module writes as JSON has them.
        print(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        sys.stdout.write("".join(f"{one.change} {quoted(one.path)}\n" for one in found))
    return 1 if found and arguments.exit_code else 0


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
