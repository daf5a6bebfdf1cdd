"""The Docker socket itself: made here, in the place of a killed listener's, or a service manager's.

Whoever holds the listener's lock may do so; whether somebody answers at the socket is never asked.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path

from atoll import store
from atoll.errors import ConfigError, StoreError, UsageError
from atoll.hypervisor.port import SUN_PATH, at_directory
from atoll.paths import DockerPaths

__all__ = ["Bound", "bind", "check_path", "inherited"]

#: Clients that may wait to be accepted: Go's dialler does not wait for room (listen(2)).
BACKLOG = 4096

#: The first descriptor that a service manager passes (sd_listen_fds(3)).
_FIRST = 3


class Bound:
    """A listening socket at a path, of this process.

    Attributes:
        sock: the socket.
        path: where it is.
    """

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.sock = sock
        self.path = path
        self._status = os.lstat(path)

    def remove(self) -> None:
        """Take its name away, unless it is another's by now."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self.path), self._status):
                self.path.unlink()


def check_path(path: Path) -> None:
    """Raise ``ConfigError``, ``config.socket``, if programs could not connect to a socket at ``path``."""
    length = len(os.fsencode(path))
    if length > SUN_PATH:
        message = f"{path} is too long for a socket: {length} of at most {SUN_PATH} bytes"
        raise ConfigError(message, code="socket", hint="set ATOLL_DATA_DIR to a shorter path")


def bind(place: DockerPaths) -> Bound:
    """Listen at the Docker socket's path; its owner's only. The caller holds the listener's lock.

    It is made aside and renamed: no client ever finds a socket at which nobody will listen.

    Raises:
        ConfigError: ``config.socket``: the path is too long.
        StoreError: it cannot be made; ``store.already_exists``: what is there is no socket.
    """
    check_path(place.socket)
    aside = place.directory / place.socket.name
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with store.refusing(place.socket):
            if place.socket.exists() and not stat.S_ISSOCK(place.socket.stat().st_mode):
                message = f"{place.socket} is no socket"
                raise StoreError(message, code="already_exists", hint="move it away")  # noqa: TRY301
            aside.unlink(missing_ok=True)
            at_directory(aside, sock.bind)
            aside.chmod(0o600)
            sock.listen(BACKLOG)
            aside.rename(place.socket)
            return Bound(sock, place.socket)
    except BaseException:
        sock.close()
        raise


def inherited(environment: MutableMapping[str, str], pid: int) -> socket.socket | None:
    """The listening socket that a service manager passed to the process ``pid``; None if there is none.

    What says so is removed from ``environment``: children must not take it for theirs (sd_listen_fds(3)).

    Raises:
        UsageError: ``usage.activation``: it is no listening unix stream socket, or not one.
    """
    told, count, _ = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if told != str(pid) or not count.isdigit() or not int(count):
        return None
    hint = "the unit of the socket needs one ListenStream="
    if int(count) != 1:
        raise UsageError(f"{count} sockets were passed instead of one", code="activation", hint=hint)
    try:
        os.set_inheritable(_FIRST, False)
        sock = socket.socket(fileno=_FIRST)
    except OSError as error:
        message = f"descriptor {_FIRST} is no socket: {error.strerror}"
        raise UsageError(message, code="activation", hint=hint) from error
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not listens:
        sock.close()
        message = "what was passed is no listening unix stream socket"
        raise UsageError(message, code="activation", hint=hint)
    return sock
