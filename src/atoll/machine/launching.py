"""Reaching the supervisor of a machine: the one that is there, or a new one."""

from __future__ import annotations

import os
import socket
import sys

from atoll.errors import ProcessError, StoreError
from atoll.hypervisor.port import connect
from atoll.paths import VmPaths
from atoll.vm.background import in_background

__all__ = ["reach", "summon"]


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


def _program() -> list[str]:
    return [sys.executable, "-P", "-m", "atoll.machine.supervise"]
