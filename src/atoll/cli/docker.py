"""``atoll docker``: Docker's engine in a machine, and its socket on this host."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from atoll import process
from atoll.cli.options import add_json
from atoll.cli.output import agree, listener, print_json, print_table, settle, size
from atoll.cli.parts import running
from atoll.config import Config, load
from atoll.containers import api, composing, context, launching, pruning, tools, units
from atoll.containers.engine import Engine, EngineStatus
from atoll.containers.listener import Status
from atoll.containers.ports import Port
from atoll.errors import AtollError, PreflightError
from atoll.events import Emit, Warned
from atoll.vm.state import StateError

__all__ = ["configure", "run"]

#: Exit status of ``status`` for an engine that is not there (as of `systemctl status`), and for a fault.
_AT_REST, _FAULT = 3, 1

#: For who is asked.
_HINT = "--force does not ask"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, act: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what)
        command.set_defaults(act=act)
        return command

    start = add("start", _start, "have the engine answer, and its socket be there")
    start.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="(default: 120)")
    start.add_argument("--verbose", "-v", action="store_true", help="show the stages and their times")
    stop = add("stop", _stop, "end containers, engine and socket")
    stop.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="then by force (default: 60)"
    )
    add("restart", _restart, "stop and start it, with the settings as they are now").add_argument(
        "--verbose", "-v", action="store_true", help="show the stages and their times"
    )
    add_json(add("status", _status, "show what the engine does"), "it")
    enable = add("enable", _enable, "have the socket always be there, and Docker's client use it")
    enable.add_argument("--no-context", action="store_true", help="leave Docker's client as it is")
    add("disable", _disable, "undo what `enable` did; images and containers stay")
    env = add("env", _env, "print what has one shell's Docker client use the engine, for `eval`")
    env.add_argument("--shell", metavar="SHELL", help="sh, bash, zsh, fish or csh (default: $SHELL)")
    add_json(add("ports", _ports, "list the ports that containers publish on this host"), "the list")
    logs = add("logs", _logs, "print what the engine's programs wrote")
    logs.add_argument("--lines", "-n", type=int, default=200, metavar="N", help="of each (default: 200)")
    add_json(add("df", _df, "show what images, containers and volumes take"), "it")
    prune = add("prune", _prune, "remove what no container uses, and give its space back to this host")
    prune.add_argument(
        "--all", "-a", action="store_true", help="all images without a container, not only nameless"
    )
    prune.add_argument("--volumes", action="store_true", help="volumes that no container uses, too")
    prune.add_argument("--force", "-f", action="store_true", help="do not ask")
    reset = add("reset", _reset, "remove the engine with all images, containers and volumes")
    reset.add_argument("--force", "-f", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    status: int = arguments.act(arguments)
    return status


def _with_engine(
    work: Callable[[Engine, Config], Awaitable[None]],
    *,
    verbose: bool = False,
    quiet: bool = False,
    said: str = "",
) -> None:
    """Do ``work`` with the engine, and say ``said`` to those who watch."""
    config = load().config
    emit = listener(verbose=verbose, quiet=quiet)

    async def act() -> None:
        engine = composing.engine(config, emit)
        try:
            await work(engine, config)
        finally:
            await engine.close()

    done = False
    try:
        running(act())
        done = True
    finally:
        settle(emit, said if done else "")


async def _up(engine: Engine, config: Config, timeout: float) -> None:  # noqa: ASYNC109 - the engine's
    """Have the engine answer, and the listener know of it."""
    await engine.ensure_ready(timeout)
    try:
        await _rouse(config.paths.docker.socket)
    except StateError:  # systemd would have started one: there is but one socket
        await launching.running(config, composing.timing(config))
        await _rouse(config.paths.docker.socket)


async def _rouse(sock: Path) -> None:
    """Ask what any client asks first: the listener sees that the engine is there, and follows it."""
    try:
        reader, writer = await asyncio.open_unix_connection(sock)
    except OSError as error:
        message = f"nobody listens at {sock}: {error.strerror}"
        raise StateError(message, code="listener", hint="see `atoll docker status`") from error
    try:
        writer.write(api.request("GET", "/_ping"))
        api.body_of(await reader.read(), "/_ping")
    finally:
        writer.close()


def _start(arguments: argparse.Namespace) -> int:
    sock = load().config.paths.docker.socket

    async def work(engine: Engine, config: Config) -> None:
        await _up(engine, config, arguments.timeout)

    _with_engine(work, verbose=arguments.verbose, said=f"Docker's engine answers at {sock}")
    if context.current(tools.client_home()) == context.NAME and not context.overridden():
        return 0
    print('eval "$(atoll docker env)"  # this shell; `atoll docker enable` for all', file=sys.stderr)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    async def work(engine: Engine, config: Config) -> None:
        async def end() -> None:
            await engine.stop(arguments.timeout)

        if units.enabled(config):
            await end()
        else:
            await launching.stop(config.paths.docker, grace=arguments.timeout, meanwhile=end)

    _with_engine(work, said="Docker's engine has stopped")
    return 0


def _restart(arguments: argparse.Namespace) -> int:
    async def work(engine: Engine, config: Config) -> None:
        await engine.check()
        await launching.stop(config.paths.docker, meanwhile=engine.stop)
        if units.enabled(config):
            with contextlib.suppress(PreflightError):  # then it is as if it were not
                await asyncio.to_thread(units.enable, config, composing.timing(config))
        await _up(engine, config, 120.0)

    _with_engine(work, verbose=arguments.verbose, said="Docker's engine answers again")
    return 0


class _Found(msgspec.Struct, frozen=True):
    """What ``status`` tells."""

    engine: EngineStatus
    socket: str
    listener: Status | None
    enabled: bool
    context: str
    overridden: str

    @property
    def refused(self) -> list[Port]:
        """Ports that containers publish, and that are not to be had."""
        return [port for port in self.listener.ports if port.refused] if self.listener is not None else []

    @property
    def faulty(self) -> bool:
        """Whether something is not as it should be."""
        listening = self.listener
        failed = listening is not None and (listening.failure is not None or listening.trouble)
        return bool(self.refused or failed)


def _status(arguments: argparse.Namespace) -> int:
    told: list[_Found] = []

    async def work(engine: Engine, config: Config) -> None:
        told.append(
            _Found(
                engine=await engine.status(),
                socket=str(config.paths.docker.socket),
                listener=await launching.status(config.paths.docker),
                enabled=units.enabled(config),
                context=context.current(tools.client_home()),
                overridden=context.overridden(),
            )
        )

    _with_engine(work, quiet=True)
    [found] = told
    if arguments.json:
        print_json(found)
    else:
        print_table(("", ""), [*_rows_of_engine(found.engine), *_rows_of_socket(found)])
    if found.faulty:
        return _FAULT
    return 0 if found.engine.phase in {"running", "suspended"} else _AT_REST


def _rows_of_engine(engine: EngineStatus) -> Iterator[tuple[str, str]]:
    yield "engine", f"{engine.phase}{', answers' if engine.ready else ''}"
    if engine.phase != "absent":
        yield "size", f"{engine.cpus} vCPUs, {size(engine.memory)}, disk {size(engine.disk)}"
        yield "image", engine.image
        emulated = ", ".join(engine.emulated)
        yield "emulates", emulated or "nothing; `atoll image build --force engine` brings it"
    if engine.pending:
        yield "settings", "changed: `atoll docker restart` applies them"


def _rows_of_socket(found: _Found) -> Iterator[tuple[str, str]]:
    listening = found.listener
    how = "systemd holds it" if found.enabled else "nobody listens; `atoll docker start`"
    if listening is not None:
        how = f"process {listening.pid}, {listening.connections} connections"
        if listening.failure is not None:
            yield "failed", listening.failure.message
    yield "socket", found.socket
    yield "listener", how
    yield "context", found.context + (f" (but {found.overridden} is set)" if found.overridden else "")
    for port in found.refused:
        yield "port", f"{port.publication} of {port.publication.container} is refused: {port.refused}"
    if listening is not None:
        if listening.trouble:
            yield "ports", f"are not followed: {listening.trouble}"
        yield from (("not shared", str(one)) for one in listening.unshared)


def _enable(arguments: argparse.Namespace) -> int:
    config = load().config
    emit = listener()
    sock = config.paths.docker.socket
    try:
        running(_hold(config, emit))
        if not arguments.no_context:
            home = tools.client_home()
            tools.install(config.paths, tools.missing(home), home, Path.home() / ".local/bin", emit=emit)
            context.activate(config.paths, tools.client(), home, sock)
            if name := context.overridden():
                emit(Warned(message=f"{name} is set and goes before the context", hint=f"unset {name}"))
    finally:
        settle(emit)
    print(f"unix://{sock}")
    return 0


async def _hold(config: Config, emit: Emit) -> None:
    """Have somebody hold the socket from now on: systemd, or a listener in the background."""
    try:
        await launching.stop(config.paths.docker)
        await asyncio.to_thread(units.enable, config, composing.timing(config))
    except AtollError as error:
        if not isinstance(error, PreflightError):
            raise
        message = f"the socket is there until this host restarts: {error.message}"
        emit(Warned(message=message, hint=error.hint))
        await launching.running(config, composing.timing(config))


def _disable(_: argparse.Namespace) -> int:
    config = load().config
    emit = listener()
    home = tools.client_home()
    try:
        if process.find(tools.CLIENT.name):
            print(context.deactivate(config.paths, tools.client(), home))
        units.disable(emit)
        running(launching.stop(config.paths.docker))
        tools.remove(config.paths, home, Path.home() / ".local/bin")
    finally:
        settle(emit)
    return 0


def _env(arguments: argparse.Namespace) -> int:
    shell = arguments.shell or os.environ.get("SHELL") or "sh"
    sys.stdout.write(context.environment(load().config.paths.docker.socket, shell))
    return 0


def _ports(arguments: argparse.Namespace) -> int:
    found = running(launching.status(load().config.paths.docker))
    ports = found.ports if found is not None else ()
    if arguments.json:
        print_json(ports)
    else:
        rows = [
            (
                str(one.publication),
                one.publication.container,
                str(one.publication.private),
                one.refused or "open",
            )
            for one in ports
        ]
        print_table(("PORT", "CONTAINER", "ITS PORT", "STATE"), rows)
    return _FAULT if any(one.refused for one in ports) else 0


def _logs(arguments: argparse.Namespace) -> int:
    said: list[str] = []

    async def work(engine: Engine, _: Config) -> None:
        said.append(await engine.logs(arguments.lines))

    _with_engine(work, quiet=True)
    sys.stdout.write(said[0])
    return 0


def _df(arguments: argparse.Namespace) -> int:
    found: list[pruning.Usage] = []

    async def work(engine: Engine, config: Config) -> None:
        await _up(engine, config, 120.0)
        found.append(await pruning.usage(engine))

    _with_engine(work, quiet=arguments.json)
    if arguments.json:
        print_json(found[0])
        return 0
    rows = [(part.name, str(part.count), size(part.size), size(part.unused)) for part in found[0].parts]
    print_table(("OF", "NUMBER", "SIZE", "UNUSED"), rows)
    print(f"on this host: {size(found[0].host)} of {size(found[0].disk)}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    what = "all images without a container" if arguments.all else "nameless images"
    volumes = ", unused volumes" if arguments.volumes else ""
    if not arguments.force:
        question = f"Remove stopped containers, unused networks, {what}{volumes} and the build cache?"
        agree(question, hint=_HINT, refused="nothing was removed")
    given: list[pruning.Pruned] = []

    async def work(engine: Engine, config: Config) -> None:
        await _up(engine, config, 120.0)
        given.append(await pruning.prune(engine, every=arguments.all, volumes=arguments.volumes))

    _with_engine(work)
    print(f"removed {size(given[0].removed)}; this host got {size(given[0].given_back)} back")
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    if not arguments.force:
        question = "Remove the engine with all its images, containers and volumes?"
        agree(question, hint=_HINT, refused="nothing was removed")

    async def work(engine: Engine, config: Config) -> None:
        await launching.stop(config.paths.docker, grace=0.0)
        await engine.reset()

    _with_engine(work, said="Docker's engine is gone")
    return 0
