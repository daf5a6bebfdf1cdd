"""The program that listens at the Docker socket: ``python -m atoll.containers.serving DATA CACHE``.

In the foreground it says what happens on its standard error; with ``--client FD`` it goes into the
background, says it in its log, and serves that connection as one to its control socket.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec

from atoll import store
from atoll.config import Config, load
from atoll.containers.backend import Backend
from atoll.containers.control import control_server
from atoll.containers.hosting import NAME
from atoll.containers.listener import Listener, Status, Timing
from atoll.containers.naming import Naming
from atoll.containers.ports import Ports, Reached
from atoll.containers.sockets import bind, inherited
from atoll.errors import AtollError
from atoll.events import Emit, Event, PortClosed, PortOpened, PortRefused, Warned
from atoll.hypervisor.port import listen
from atoll.paths import DockerPaths
from atoll.vm.eventlog import EventLog
from atoll.vm.logs import LogStream, say
from atoll.vm.state import StateError

__all__ = ["BUSY", "ENGINE", "Opened", "Parts", "main", "serve"]

#: Exit status of a listener that found another one at its place.
BUSY = 75

#: What makes the engine, as ``--backend`` takes it: loaded when the listener has its lock.
ENGINE = "atoll.containers.composing:served"

#: Seconds in which clients may end when the listener is to.
GRACE = 10.0

#: Seconds between two looks whether the listener's directory is still there.
_LOOK = 2.0

Opened = Callable[[Config, Emit], Backend]


class Parts(NamedTuple):
    """What is behind a listener: the engine, and ports and names of its containers if it has any."""

    backend: Backend
    ports: Ports | None
    naming: Naming | None = None


def serve(
    place: DockerPaths,
    open_parts: Callable[[], Parts],
    timing: Timing,
    *,
    client: socket.socket | None = None,
    log: Callable[[str], None] = say,
) -> int:
    """Listen at the Docker socket until that is to end; the exit status.

    Args:
        place: where; the socket is a service manager's if one was passed to this process.
        open_parts: makes the engine's, on the event loop.
        timing: how long things may take.
        client: a connection that waits to be served, of whoever started this process.
        log: told in words what happens.

    Raises:
        StateError: ``state.listening``: another process listens.
        ConfigError, StoreError, UsageError: as ``bind`` and ``inherited``.
    """
    passed = inherited(os.environ, os.getpid())
    with ExitStack() as stack:
        if passed is not None:
            stack.callback(passed.close)
        with store.refusing(place.directory):
            place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = store.hold(place.lock)
        if lock is None:
            if client is not None:
                client.close()
            raise _listening(place)
        stack.callback(os.close, lock)
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        sock = passed
        if sock is None:
            bound = bind(place)
            stack.callback(bound.remove)
            sock = bound.sock
            return asyncio.run(_run(place, sock, open_parts, timing, client, lock, log, unname=bound.remove))
        return asyncio.run(_run(place, sock, open_parts, timing, client, lock, log, unname=None))


async def _run(
    place: DockerPaths,
    sock: socket.socket,
    open_parts: Callable[[], Parts],
    timing: Timing,
    client: socket.socket | None,
    lock: int,
    log: Callable[[str], None],
    *,
    unname: Callable[[], None] | None,
) -> int:
    ending: asyncio.Queue[tuple[float, bool]] = asyncio.Queue()
    path = str(place.socket) if unname is not None else str(sock.getsockname())
    backend, ports, naming = open_parts()
    rouse = ports.rouse if ports is not None else lambda: None
    listener = Listener(sock, backend, timing, log=log, on_ready=rouse)

    def status() -> Status:
        found = listener.status(pid=os.getpid(), path=path, inherited=unname is None)
        if ports is None:
            return found
        return msgspec.structs.replace(
            found,
            ports=ports.listed,
            names=dict(ports.names),
            unshared=ports.unshared,
            trouble=ports.trouble,
        )

    def stop(grace: float | None = None, engine: bool = False) -> None:
        ending.put_nowait((GRACE if grace is None else grace, engine))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    server = control_server(status, stop)
    watching = asyncio.create_task(_watch(lock, stop))
    try:
        server.listen(listen(place.control))
        if client is not None:
            server.add(client)
        log(f"listening at {path}")
        grace, engine = await ending.get()
        log("ending")
        if unname is not None:
            unname()
        closing = asyncio.create_task(listener.close(grace, last=unname is not None, engine=engine))
        again = asyncio.create_task(ending.get())
        await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not closing.done():  # it was asked for twice
            closing.cancel()
            await asyncio.wait({closing})
    finally:
        watching.cancel()
        try:
            if ports is not None:
                await ports.close()
            if naming is not None:
                await naming.close()
            await listener.close()
        finally:
            await server.close()
            place.control.unlink(missing_ok=True)
    return 0


async def _watch(lock: int, stop: Callable[[float], None]) -> None:
    """Have the listener end whose directory was removed: nobody finds its socket any more."""
    while os.fstat(lock).st_nlink:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(_LOOK)
    stop(0.0)


def _listening(place: DockerPaths) -> StateError:
    pid = ""
    with contextlib.suppress(OSError):
        pid = place.lock.read_text().strip()
    who = f"process {pid}" if pid.isdigit() else "another process"
    message = f"{who} listens at {place.socket} already"
    return StateError(message, code="listening", hint=f"kill {pid}" if pid.isdigit() else "")


def _teller(kept: EventLog) -> Emit:
    """Says what happens, and keeps what is worth it."""

    def tell(event: Event) -> None:
        match event:
            case Warned():
                say(f"{event.message}; {event.hint}" if event.hint else event.message)
                return
            case PortOpened():
                say(f"port {event.port} leads to {event.container}")
            case PortRefused():
                say(f"port {event.port} of {event.container}: {event.reason}")
            case PortClosed():
                say(f"port {event.port} is closed")
            case _:
                return
        kept.append(event)

    return tell


def _opener(name: str) -> Opened:
    module, _, attribute = name.partition(":")
    found: Opened = getattr(importlib.import_module(module), attribute)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m atoll.containers.serving", allow_abbrev=False)
    parser.add_argument("data", metavar="DATA", type=Path, help="Atoll's data directory")
    parser.add_argument("cache", metavar="CACHE", type=Path, help="Atoll's cache directory")
    parser.add_argument("--client", metavar="FD", type=int, help="go into the background, and serve this")
    parser.add_argument("--backend", metavar="MODULE:NAME", default=ENGINE, help="what makes the engine")
    for name, default in msgspec.structs.asdict(Timing()).items():
        parser.add_argument(f"--{name}", metavar="SECONDS", type=float, default=default)
    return parser


def main(words: Sequence[str]) -> int:
    """Listen as ``words`` say; the exit status."""
    arguments = _parser().parse_args(words)
    config = load({"data_dir": arguments.data, "cache_dir": arguments.cache}).config
    place = config.paths.docker
    timing = Timing(arguments.idle, arguments.start, arguments.suspend, arguments.dial)
    client = None if arguments.client is None else socket.socket(fileno=arguments.client)
    if client is not None:
        sys.stdout = sys.stderr = LogStream(place.log)

    tell = _teller(EventLog(config.data_dir))

    def parts() -> Parts:
        backend = _opener(arguments.backend)(config, tell)
        if not isinstance(backend, Reached):
            return Parts(backend, None)
        lan = config.docker_expose_ports_to_lan
        naming = Naming(config.paths)
        return Parts(backend, Ports(backend, NAME, lan=lan, emit=tell, named=naming.tell), naming)

    try:
        return serve(place, parts, timing, client=client)
    except AtollError as error:
        say(f"error[{error.code}]: {error.message}" + (f"; {error.hint}" if error.hint else ""))
        return BUSY if error.code == "state.listening" else error.exit_code


if __name__ == "__main__":
    if "--client" in sys.argv[1:] and os.fork():  # whoever started this need not reap what outlives it
        os._exit(0)
    sys.exit(main(sys.argv[1:]))
