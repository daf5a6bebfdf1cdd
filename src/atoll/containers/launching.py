"""Reaching the listener of the Docker socket: the one that is there, or a new one in the background."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import msgspec

from atoll import store
from atoll.config import Config
from atoll.containers.control import Control
from atoll.containers.listener import Status, Timing
from atoll.containers.sockets import check_path
from atoll.errors import ChannelError
from atoll.hypervisor.port import connect
from atoll.paths import DockerPaths
from atoll.vm.background import in_background
from atoll.vm.state import StateError

__all__ = ["program", "reach", "running", "spawn", "status", "stop"]

#: Attempts to reach a listener: one that is found may be about to leave.
_ATTEMPTS = 20

#: Seconds between two looks whether a listener has gone.
_LOOK = 0.02


def reach(place: DockerPaths) -> socket.socket | None:
    """A connection to the listener's control socket; None if nobody listens."""
    try:
        return connect(place.control)
    except OSError:
        return None


def spawn(config: Config, timing: Timing, *, backend: str = "") -> socket.socket:
    """A connection to a new listener, which lives on in the background, without a terminal.

    If another one is there already, or it cannot listen, the connection ends, and its log says why.

    Args:
        config: says where it listens.
        timing: how long things may take.
        backend: what makes the engine, ``MODULE:NAME``; Docker's by default.

    Raises:
        ConfigError: ``config.socket``: the socket's path is too long.
        StoreError: its log cannot be written.
        ProcessError: it could not be started.
    """
    place = config.paths.docker
    check_path(place.socket)
    with store.refusing(place.directory):
        place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return in_background(program(config, timing, backend=backend), cwd=place.directory, output=log)
    finally:
        os.close(log)


def program(config: Config, timing: Timing, *, backend: str = "") -> tuple[str, ...]:
    """The command that listens in the foreground."""
    options = [f"--{name}={limit:g}" for name, limit in msgspec.structs.asdict(timing).items()]
    if backend:
        options.append(f"--backend={backend}")
    words = (sys.executable, "-P", "-m", "atoll.containers.serving")
    return (*words, str(config.data_dir), str(config.cache_dir), *options)


async def running(config: Config, timing: Timing, *, backend: str = "") -> Status:
    """What the listener does that is there, or else a new one; arguments as for ``spawn``.

    Raises:
        StateError: ``state.listener``: it cannot be reached; its log says why.
        ConfigError, StoreError, ProcessError: as ``spawn``.
    """
    place = config.paths.docker
    for attempt in range(_ATTEMPTS):
        sock = reach(place)
        if sock is None:
            sock = await asyncio.to_thread(spawn, config, timing, backend=backend)
        found = await _ask(sock)
        if found is not None and not found.closing:
            return found
        await asyncio.sleep(0.01 * (attempt + 1))
    raise StateError(
        "the Docker socket's listener cannot be reached", code="listener", hint=f"see {place.log}"
    )


async def status(place: DockerPaths) -> Status | None:
    """What the listener does; None if there is none."""
    sock = reach(place)
    return None if sock is None else await _ask(sock)


async def stop(place: DockerPaths, *, grace: float | None = None) -> bool:
    """End the listener and wait for that; whether there was one.

    Args:
        place: where it listens.
        grace: seconds that clients get; None for as many as it gives by itself.
    """
    sock = reach(place)
    if sock is None:
        return False
    control = Control(sock)
    try:
        await control.stop(grace)
    except ChannelError:
        return False
    finally:
        control.close()
    while store.is_held(place.lock):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(_LOOK)
    return True


async def _ask(sock: socket.socket) -> Status | None:
    control = Control(sock)
    try:
        return await control.status()
    except ChannelError:
        return None
    finally:
        control.close()
