"""``atoll exec`` and ``atoll shell``: commands in a running machine."""

from __future__ import annotations

import argparse
import os

from atoll.cli.options import parse_environment
from atoll.cli.output import JsonLines, listener, settle
from atoll.cli.parts import Part, running
from atoll.cli.run import seconds
from atoll.cli.session import Session
from atoll.config import load
from atoll.machine.machine import Machine

__all__ = ["execute", "shell"]


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env", "-e", action="append", default=[], metavar="NAME[=VALUE]", help="set a variable"
    )
    parser.add_argument("--workdir", "-w", metavar="DIR", help="directory in which it starts")
    parser.add_argument("--user", "-u", metavar="USER[:GROUP]", help="who runs it")
    parser.add_argument("--start", action="store_true", help="start the machine if it is not running")


def _configure_exec(parser: argparse.ArgumentParser) -> None:
    parser.usage = "atoll exec [OPTIONS] NAME [--] [COMMAND [ARGUMENT ...]]"
    _common(parser)
    parser.add_argument(
        "--timeout", metavar="SECONDS", help="end the command after this time, with status 124"
    )
    terminal = parser.add_mutually_exclusive_group()
    terminal.add_argument(
        "--tty", "-t", action="store_true", default=None, help="give the command a terminal"
    )
    terminal.add_argument("--no-tty", "-T", action="store_false", dest="tty", help="give it pipes")
    parser.add_argument("--json", action="store_true", help="print events and output as JSON lines")
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument(
        "argv", nargs=argparse.REMAINDER, metavar="COMMAND", help="default: the image's shell"
    )


def _run_exec(arguments: argparse.Namespace) -> int:
    tty = arguments.tty
    if tty is None:
        tty = os.isatty(0) and os.isatty(1) and not arguments.json
    command = tuple(arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv)
    return running(_session(arguments, command, tty=bool(tty), timeout=seconds(arguments.timeout)))


def _configure_shell(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    parser.add_argument("machine", metavar="NAME")
    parser.set_defaults(json=False)


def _run_shell(arguments: argparse.Namespace) -> int:
    return running(_session(arguments, (), tty=os.isatty(0) and os.isatty(1), timeout=None))


async def _session(
    arguments: argparse.Namespace,
    command: tuple[str, ...],
    *,
    tty: bool,
    timeout: float | None,  # noqa: ASYNC109 - it ends the command in the guest
) -> int:
    emit = listener(json=arguments.json)
    machine = Machine(arguments.machine, config=load().config, on_event=emit)
    machine.prefer(env=parse_environment(arguments.env), workdir=arguments.workdir, user=arguments.user)

    async def begin() -> None:
        if arguments.start and not machine.state.active:
            try:
                await machine.start()
            finally:
                settle(emit)
        await machine.connect()

    session = Session(
        box=machine,
        begin=begin,
        argv=command or (machine.shell, "-l"),
        tty=tty,
        events=emit if isinstance(emit, JsonLines) else None,
        timeout=timeout,
    )
    return await session.run()


execute = Part(_configure_exec, _run_exec)
shell = Part(_configure_shell, _run_shell)
