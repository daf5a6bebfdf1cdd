"""``atoll migrate``: what another Docker engine of this host has, brought to Atoll's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.cli.options import add_json
from atoll.cli.output import (
    agree,
    listener,
    print_json,
    print_table,
    quoted,
    require_terminal,
    settle,
    size,
)
from atoll.cli.parts import running
from atoll.errors import PreflightError, UsageError

if TYPE_CHECKING:
    from atoll.config import Config
    from atoll.containers.migration.carrying import Outcome
    from atoll.containers.migration.inventory import Inventory
    from atoll.containers.migration.plans import Plan, Wishes
    from atoll.containers.migration.session import Ends
    from atoll.events import Emit

__all__ = ["configure", "run"]

#: What ``--only`` takes, and the kinds of items.
_ONLY = {"images": "image", "volumes": "volume", "networks": "network", "containers": "container"}

#: Seconds in which the engine must answer once its image is here.
_PATIENCE = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    command = commands.add_parser("from", help="bring over what another Docker engine has")
    command.add_argument(
        "engine", metavar="SOURCE", help="docker, colima, orbstack, docker-desktop, or the path of a socket"
    )
    command.add_argument("--dry-run", "-n", action="store_true", help="show the plan, and do nothing")
    command.add_argument(
        "--only", metavar="KINDS", help="such as images,volumes (default: with networks,containers)"
    )
    command.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only what is called so, such as 'web*', with all that it needs; may be given again",
    )
    command.add_argument("--no-start", action="store_true", help="start no container")
    command.add_argument(
        "--helper",
        action="store_true",
        help="make a container at the source for each volume that none mounts, and remove it",
    )
    command.add_argument("--yes", "-y", action="store_true", help="do not ask")
    add_json(command, "the plan, and what came of it,")


def run(arguments: argparse.Namespace) -> int:
    """Plan, ask, carry."""
    from atoll.config import load
    from atoll.containers import composing, tools
    from atoll.containers.migration import sources
    from atoll.containers.migration.session import Ends

    config = load().config
    wishes = _wishes(arguments)
    try:
        home = Path.home()
    except RuntimeError:
        raise PreflightError("this user has no home directory", hint="set HOME") from None
    ends = Ends(
        source=sources.find(arguments.engine, config.paths, home, tools.client_home()),
        target=config.paths.docker.socket,
        journals=config.paths.migrations,
        shares=tuple(share.guest for share in composing.engine_settings(config).shares),
    )
    if not arguments.dry_run and not arguments.yes:
        require_terminal("--yes does not ask; --dry-run shows the plan")
    emit = listener(quiet=arguments.json)
    try:
        return running(_migrate(config, ends, wishes, emit, arguments))
    finally:
        settle(emit)


def _wishes(arguments: argparse.Namespace) -> Wishes:
    from atoll.containers.migration.plans import Kind, Wishes

    chosen = frozenset(Kind)
    if arguments.only is not None:
        words = [word.strip() for word in arguments.only.split(",")]
        wrong = next((word for word in words if word not in _ONLY), None)
        if wrong is not None:
            hint = f"name some of {','.join(_ONLY)}"
            raise UsageError(f"--only {wrong}: there is no such kind", code="arguments", hint=hint)
        chosen = frozenset(Kind(_ONLY[word]) for word in words)
    return Wishes(
        kinds=chosen,
        names=tuple(arguments.name),
        start=not arguments.no_start,
        helper=arguments.helper,
    )


async def _migrate(
    config: Config, ends: Ends, wishes: Wishes, emit: Emit, arguments: argparse.Namespace
) -> int:
    from atoll.containers import composing, launching
    from atoll.containers.migration import session

    engine = composing.engine(config, emit)
    try:
        absent = (await engine.status()).phase == "absent"
        if absent and arguments.dry_run:
            found, plan = await session.outline(ends, wishes, cpus=engine.settings.cpus)
            _show(found, plan, None, json=arguments.json)
            return 0
        await engine.ensure_ready(_PATIENCE)
        await launching.running(config, composing.timing(config))
    finally:
        await engine.close()
    async with session.migrate(ends, wishes, emit=emit) as (found, plan, carrier):
        if arguments.dry_run or not arguments.json:
            _show(found, plan, None, json=arguments.json)
        if arguments.dry_run:
            return 0
        if not arguments.yes and plan.steps:
            question = "Carry this over? The source stays as it is."
            agree(question, hint="--yes does not ask", refused="nothing was carried")
        outcome = await carrier.carry(plan)
    if arguments.json:
        _show(found, plan, outcome, json=True)
    else:
        settle(emit)
        print(f"carried {outcome.carried}, {size(outcome.bytes)} read; {len(outcome.failures)} failed")
        for one in outcome.failures:
            print(f"error[{one.code}]: {one.kind} {one.name}: {one.message}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _show(found: Inventory, plan: Plan, outcome: Outcome | None, *, json: bool) -> None:
    if json:
        told: dict[str, Any] = {
            "source": {"id": found.id, "name": found.name, "version": found.version},
            "size": plan.size,
            "items": plan.items,
            "outcome": outcome,
        }
        print_json(told)
        return
    rows = [
        (
            one.verdict.value,
            one.kind.value,
            quoted(one.name),
            size(one.size) if one.size > 0 else "",
            quoted(
                "; ".join((*(why.text for why in one.reasons), *(f"without {loss}" for loss in one.losses)))
            ),
        )
        for one in sorted(plan.items, key=lambda one: one.verdict.value)
    ]
    print_table(("", "KIND", "NAME", "SIZE", ""), rows)
    counts = {"carry": 0, "there": 0, "left": 0, "refused": 0}
    for one in plan.items:
        counts[one.verdict.value] += 1
    print(
        f"{counts['carry']} to carry ({size(plan.size)}), {counts['there']} there already, "
        f"{counts['left']} cannot be carried, {counts['refused']} refused"
    )
