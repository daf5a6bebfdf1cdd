"""Starting the daemon that serves a directory of the host to a guest, with no more rights than it needs."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
from pathlib import Path

from atoll import process
from atoll.errors import PreflightError
from atoll.hypervisor.port import connect, listen
from atoll.hypervisor.qemu import virtiofs
from atoll.hypervisor.qemu.virtiofs import Daemon, Flavour, Range
from atoll.paths import VmPaths
from atoll.process import Process
from atoll.vm.bootplan import Share

__all__ = ["check", "serve", "serve_at"]

_SUBUID, _SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


def check() -> Daemon:
    """What serves shares on this host.

    Raises:
        PreflightError: virtiofsd is not installed, or this user cannot run it.
    """
    daemon = virtiofs.find()
    if os.geteuid() != 0:
        _maps(daemon, 0, 0)
    return daemon


def serve(place: VmPaths, name: str, share: Share, owner: tuple[int, int]) -> tuple[Process, socket.socket]:
    """``serve_at`` for a machine: with a socket of that name in its directory ``place``, and its own log."""
    log = os.open(place.log("shares"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return serve_at(place.socket(name), log, share, owner)
    finally:
        os.close(log)


def serve_at(path: Path, log: int, share: Share, owner: tuple[int, int]) -> tuple[Process, socket.socket]:
    """Start a daemon; it, and the connection to it.

    It is connected to before it runs, and ends when the connection is closed: should this process be killed
    at any moment no daemon is left.

    Args:
        path: of the socket, which is gone when this returns.
        log: descriptor to which the daemon writes.
        share: what is served.
        owner: the user and the group in the guest who shall be this user.

    Raises:
        PreflightError: virtiofsd is not installed, or this user cannot run it.
        ProcessError, StoreError: it could not be started.
    """
    daemon = virtiofs.find()
    users, groups = ((), ()) if os.geteuid() == 0 else _maps(daemon, *owner)
    with listen(path) as listener:
        sock = connect(path)
        path.unlink()
        command = virtiofs.enclosed(
            virtiofs.serve(daemon, share.host, listener.fileno()),
            share.host,
            read_only=share.read_only,
            users=users,
            groups=groups,
        )
        return process.spawn(
            command, pass_fds=[listener.fileno()], output=log, cwd=Path("/"), die_with_parent=False
        ), sock


def _maps(daemon: Daemon, user: int, group: int) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Which numbers of the guest are which of the host's, for users and for groups."""
    own_user, own_group = os.getuid(), os.getgid()
    users: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    if process.find("newuidmap") and process.find("newgidmap"):
        with contextlib.suppress(OSError, KeyError):
            name = pwd.getpwuid(own_user).pw_name
            users = virtiofs.parse_ranges(_SUBUID.read_text(), name, own_user)
            groups = virtiofs.parse_ranges(_SUBGID.read_text(), name, own_user)
    if users and groups:
        return virtiofs.map_ids(own_user, user, users), virtiofs.map_ids(own_group, group, groups)
    if daemon.flavour is Flavour.C and os.getgroups():
        message = "this user has no numbers for the users of a guest: /etc/subuid and /etc/subgid have none"
        hint = "apt install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
        raise PreflightError(message, hint=hint)
    return virtiofs.map_ids(own_user, 0, ()), virtiofs.map_ids(own_group, 0, ())
