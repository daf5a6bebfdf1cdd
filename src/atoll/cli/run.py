"""``atoll run``: one command in a fresh VM.

What happens while the command runs is in ``atoll.cli.session``.
"""

from __future__ import annotations

import argparse
import os

from atoll import runtime
from atoll.cli.options import add_vm_options, parse_environment, resolve
from atoll.cli.output import JsonLines, listener
from atoll.errors import UsageError

__all__ = ["configure", "run", "seconds"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.usage = "atoll run [OPTIONS] IMAGE [--] [COMMAND [ARGUMENT ...]]"
    add_vm_options(parser)
    parser.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable"
    )
    parser.add_argument("--workdir", "-w", metavar="DIR", help="directory in which the command starts")
    parser.add_argument("--user", "-u", metavar="USER[:GROUP]", help="who runs the command (default root)")
    parser.add_argument(
        "--timeout", metavar="SECONDS", help="end the command after this time, with status 124"
    )
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "--tty", "-t", action="store_true", default=None, help="give the command a terminal"
    )
    terminal.add_argument("--no-tty", "-T", action="store_false", dest="tty", help="give it pipes")
    parser.add_argument("--json", action="store_true", help="print events and output as JSON lines")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")
    parser.add_argument("--quiet", "-q", action="store_true", help="show no progress")
    parser.add_argument("image", metavar="IMAGE", help="such as debian, or debian:bookworm")
    parser.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: the image's shell"
    )


def run(arguments: argparse.Namespace) -> int:
    """Boot, run, remove; the command's exit status, or 128 plus the signal that ended it."""
    config = resolve(arguments).config
    timeout = seconds(arguments.timeout)
    environment = parse_environment(arguments.env)
    emit = listener(json=arguments.json, verbose=arguments.verbose, quiet=arguments.quiet)
    spawned = runtime.launch(config, runtime.new_name(), arguments.image, emit=emit)
    # The guest boots from here on, while the event loop and all that needs it are loaded.
    import asyncio

    from atoll.cli.session import Session
    from atoll.image import catalog
    from atoll.sandbox.sandbox import Sandbox

    tty = arguments.tty
    if tty is None:
        tty = os.isatty(0) and os.isatty(1) and not arguments.json
    box = Sandbox(
        arguments.image,
        env=environment,
        workdir=arguments.workdir,
        user=arguments.user,
        config=config,
        on_event=emit,
        spawned=spawned,
    )
    events = emit if isinstance(emit, JsonLines) else None
    command = tuple(arguments.argv) or (catalog.find(config.paths, arguments.image).manifest.shell,)
    session = Session(box=box, begin=box.open, argv=command, tty=bool(tty), events=events, timeout=timeout)
    return asyncio.run(session.run())


def seconds(text: str | None) -> float | None:
    """The limit for a command. Raises ``UsageError``."""
    if text is None:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UsageError(
            f"--timeout {text}: no time", code="timeout", hint="write seconds, such as 30 or 0.5"
        )
    return limit
