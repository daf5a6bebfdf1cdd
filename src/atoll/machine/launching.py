"""Reaching the supervisor of a machine: the one that is there, or a new one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from atoll import process
from atoll.errors import ProcessError, StoreError
from atoll.hypervisor.port import connect
from atoll.paths import VmPaths

__all__ = ["in_background", "reach", "summon"]

#: Seconds in which a program that forks into the background has done so.
_FORK_WAIT = 10.0


def reach(place: VmPaths) -> socket.socket | None:
    """A connection to the machine's supervisor; None if it has none."""
    try:
        return connect(place.control)
    except OSError:
        return None


def summon(place: VmPaths) -> socket.socket:
    """A connection to a new supervisor, which adopts the machine's VM if one runs.

    It lives on in the background, without a terminal. If another one is there already, the connection ends.

    Raises:
        StoreError: its log cannot be written.
        ProcessError: it could not be started.
    """
    try:
        place.logs.mkdir(mode=0o700, exist_ok=True)
        log = os.open(place.log("supervisor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if not place.directory.exists():  # it was removed meanwhile
            raise StoreError(f"there is no machine {place.directory.name}", code="missing") from error
        raise StoreError(f"cannot write {place.logs}: {error.strerror}", code="unwritable") from error
    try:
        return in_background([*_program(), str(place.directory)], cwd=place.directory, output=log)
    except ProcessError as error:
        raise ProcessError("the supervisor did not start", hint=f"see {place.log('supervisor')}") from error
    finally:
        os.close(log)


def in_background(program: Sequence[str], *, cwd: Path, output: int) -> socket.socket:
    """Start a program that goes into the background by itself, and serves ``--client FD``; that connection.

    Args:
        program: with its arguments.
        cwd: its working directory.
        output: descriptor for what it writes.

    Raises:
        ProcessError: it could not be started.
    """
    ours, theirs = socket.socketpair()
    try:
        child = process.spawn(
            [*program, "--client", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            output=output,
            cwd=cwd,
            die_with_parent=False,
        )
        started = child.wait(_FORK_WAIT) == 0
        child.close()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    if not started:
        ours.close()
        raise ProcessError(f"{program[0]} did not go into the background", argv=tuple(program))
    return ours


def _program() -> list[str]:
    return [sys.executable, "-P", "-m", "atoll.machine.supervise"]
