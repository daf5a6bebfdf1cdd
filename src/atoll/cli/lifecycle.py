"""``atoll start``, ``stop``, ``restart``, ``pause``, ``resume``, ``suspend``, ``wait`` and ``rm``."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence

from atoll.cli.output import listener, print_json, settle
from atoll.cli.parts import Part, running
from atoll.config import Config, load
from atoll.errors import AtollError, UsageError
from atoll.machine import autostart as units
from atoll.machine import ssh
from atoll.machine.machine import Machine
from atoll.vm.messages import Stopped
from atoll.vm.state import Phase, StateError

__all__ = ["pause", "remove", "restart", "resume", "start", "stop", "suspend", "wait"]

_Act = Callable[[Machine], Awaitable[object]]


def _names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machines", nargs="+", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 86_400:
        raise UsageError(
            f"--timeout {text}: no time", code="timeout", hint="write seconds, such as 30 or 0.5"
        )
    return seconds


def _ending(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", "-f", action="store_true", help="do not ask the guest")
    parser.add_argument(
        "--timeout", default="30", metavar="SECONDS", help="time for the guest to end in order (default 30)"
    )


def _for_each(arguments: argparse.Namespace, act: _Act) -> int:
    """Do it to each machine; all are tried, the first error is the command's."""
    config = load().config
    emit = listener(verbose=arguments.verbose, quiet=arguments.json)
    outcomes: list[dict[str, object]] = []
    failed: list[AtollError] = []
    for name in dict.fromkeys(arguments.machines):
        try:
            running(_one(Machine(name, config=config, on_event=emit), act))
            phase = _phase(config, name)
            outcomes.append({"name": name, "ok": True, "phase": phase})
            settle(emit, f"{name}: {phase}")
        except KeyboardInterrupt:
            settle(emit, f"{name}: {_phase(config, name)}; its supervisor goes on with it")
            raise
        except AtollError as error:
            settle(emit)
            failed.append(error)
            outcomes.append({"name": name, "ok": False, "code": error.code, "message": error.message})
    if arguments.json:
        print_json(outcomes)
    from atoll.cli.main import report

    for other in failed[1:]:
        report(other)
    if failed:
        raise failed[0]
    return 0


def _phase(config: Config, name: str) -> str:
    try:
        return Machine(name, config=config).state.phase
    except AtollError:
        return "removed"


async def _one(machine: Machine, act: _Act) -> None:
    async with machine:
        await act(machine)


def _configure_stop(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    _ending(parser)


def _run_stop(arguments: argparse.Namespace) -> int:
    timeout = _seconds(arguments.timeout)

    async def act(machine: Machine) -> None:
        outcome = await machine.stop(force=arguments.force, timeout=timeout)
        if not arguments.json:
            _say_how(machine.name, outcome)

    return _for_each(arguments, act)


def _say_how(name: str, outcome: Stopped) -> None:
    """Say what had to be done where asking the agent was not enough."""
    import sys

    for step in outcome.steps:
        if not step.ended:
            why = step.error or f"nothing happened within {step.elapsed:.0f} s"
            print(f"{name}: {step.how}: {why}", file=sys.stderr)


def _configure_start(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument(
        "--discard", action="store_true", help="boot a suspended machine from its disk; its RAM is lost"
    )


def _run_start(arguments: argparse.Namespace) -> int:
    return _for_each(arguments, lambda machine: machine.start(discard=arguments.discard))


def _run_suspend(arguments: argparse.Namespace) -> int:
    return _for_each(arguments, lambda machine: machine.suspend())


def _run_restart(arguments: argparse.Namespace) -> int:
    timeout = _seconds(arguments.timeout)
    return _for_each(arguments, lambda machine: machine.restart(force=arguments.force, timeout=timeout))


def _run_pause(arguments: argparse.Namespace) -> int:
    return _for_each(arguments, lambda machine: machine.pause())


def _run_resume(arguments: argparse.Namespace) -> int:
    return _for_each(arguments, lambda machine: machine.resume())


def _configure_remove(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("--force", "-f", action="store_true", help="also while it runs")


def _run_remove(arguments: argparse.Namespace) -> int:
    config = load().config

    async def act(machine: Machine) -> None:
        await machine.remove(force=arguments.force)
        ssh.forget_keys(config.paths, machine.name)
        if units.is_own(config, machine.name):
            units.disable(machine.name)

    return _for_each(arguments, act)


def _configure_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="NAME")
    parser.add_argument(
        "--for",
        dest="phases",
        action="append",
        choices=[str(phase) for phase in Phase],
        help="what to wait for (default: at rest)",
    )
    parser.add_argument("--timeout", metavar="SECONDS", help="give up after this time, with status 124")


def _run_wait(arguments: argparse.Namespace) -> int:
    timeout = None if arguments.timeout is None else _seconds(arguments.timeout)
    phases: Sequence[Phase] = [Phase(phase) for phase in arguments.phases or ()]

    async def act() -> str:
        async with Machine(arguments.machine) as machine:
            return (await machine.wait(*phases, timeout=timeout)).phase

    try:
        print(running(act()))
    except TimeoutError:
        from atoll.cli.main import report

        message = f"{arguments.machine} did not get there within {arguments.timeout} s"
        report(
            StateError(message, code="timeout", hint=f"`atoll events {arguments.machine}` shows what it did")
        )
        return 124
    return 0


start = Part(_configure_start, _run_start)
suspend = Part(_names, _run_suspend)
stop = Part(_configure_stop, _run_stop)
restart = Part(_configure_stop, _run_restart)
pause = Part(_names, _run_pause)
resume = Part(_names, _run_resume)
remove = Part(_configure_remove, _run_remove)
wait = Part(_configure_wait, _run_wait)
