"""Reaching the process of a network: the one that is there, or a new one in the background."""

from __future__ import annotations

import os
import socket
import sys
import time

from atoll import store
from atoll.errors import NetworkError
from atoll.guest import wire
from atoll.guest.wire import FrameType, Hello
from atoll.hypervisor.port import connect
from atoll.paths import NetworkPaths
from atoll.vm.background import in_background
from atoll.vm.logs import tail
from atoll.vm.network.attachment import BUILT_IN
from atoll.vm.network.names import is_there, unknown

__all__ = ["ANSWER", "ATTEMPTS", "ensure", "gone", "reach", "spawn", "stuck"]

#: Attempts to reach a network's process: one that is found may be about to leave.
ATTEMPTS = 20

#: Seconds in which a process that runs answers.
ANSWER = 15.0


def reach(place: NetworkPaths) -> socket.socket | None:
    """A connection to the network's process; None if there is none."""
    try:
        return connect(place.control)
    except OSError:
        return None


def spawn(place: NetworkPaths) -> socket.socket:
    """A connection to a new process, which lives on in the background, without a terminal.

    If another one is there already, or it cannot serve, the connection ends, and its log says why.

    Raises:
        NetworkError: ``network.unknown``: nobody made that network.
        StoreError: its log cannot be written.
        ProcessError: it could not be started.
    """
    if not is_there(place):
        raise unknown(place)
    with store.refusing(place.directory):
        if place.directory.name in BUILT_IN:
            place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    data, name = place.directory.parent.parent, place.directory.name
    program = (sys.executable, "-P", "-m", "atoll.vm.network.serving", str(data), name)
    try:
        return in_background(program, cwd=place.directory, output=log)
    finally:
        os.close(log)


def ensure(place: NetworkPaths) -> None:
    """See to it that the network's process runs and answers; for some seconds it stays for who comes next.

    Raises:
        NetworkError: ``network.gone``: it does not; the message has the reason.
        StoreError, ProcessError: as ``spawn``.
    """
    for attempt in range(ATTEMPTS):
        found = reach(place)
        is_new = found is None
        with found or spawn(place) as sock:
            try:
                if _answers(sock):
                    return
            except TimeoutError:
                raise stuck(place) from None
        if is_new and not store.is_held(place.lock):
            break
        time.sleep(0.01 * (attempt + 1))
    raise gone(place)


def _answers(sock: socket.socket) -> bool:
    """Whether the other end greets (docs/reference/agent-protocol.md, section 3). Raises ``TimeoutError``."""
    sock.settimeout(ANSWER)
    hello = Hello(wire.VERSION, wire.VERSION, os.urandom(16)).encode()
    try:
        sock.sendall(wire.encode(FrameType.HELLO, 0, hello))
        return bool(sock.recv(1))
    except TimeoutError:
        raise
    except OSError:
        return False


def stuck(place: NetworkPaths) -> NetworkError:
    """The error of a network whose process is there and does not answer."""
    try:
        pid = place.lock.read_text()
    except OSError:
        pid = ""
    message = f"the network {place.directory.name} does not answer"
    hint = f"kill -9 {pid}, and another process takes its place" if pid.isdigit() else f"see {place.log}"
    return NetworkError(message, code="stuck", hint=hint)


def gone(place: NetworkPaths) -> NetworkError:
    """The error of a network that cannot be reached, with the reason."""
    if not is_there(place):
        return unknown(place)
    said = tail(place.log, 4096).decode(errors="replace").strip().splitlines()
    reason = said[-1].partition(" ")[2] if said else "it says nothing"
    message = f"the network {place.directory.name} cannot be reached: {reason}"
    return NetworkError(message, code="gone", hint=f"see {place.log}")
