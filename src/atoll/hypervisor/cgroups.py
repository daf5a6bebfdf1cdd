"""Which control groups a hypervisor's process can be put into, and what they bound: cgroups(7), without I/O.

A cgroup belongs to somebody: below one that a service manager or a container's engine keeps for its own
purposes, nobody else makes any, even if root could. It may be done below the root of a hierarchy, below a
cgroup that was given to this process's user, and below one that is marked as delegated (``Delegate=`` in
systemd.resource-control(5)).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from atoll.hypervisor.model import Machine

__all__ = ["ENTRY", "Bounds", "Facts", "Home", "bounds_of", "homes", "judge", "limit_files", "name", "owner"]

_MIB = 1 << 20

#: What is bounded, by the names of the kernel's controllers.
_CONTROLLERS = ("memory", "pids")

_LIMIT_FILES = {
    (1, "memory"): "memory.limit_in_bytes",
    (1, "pids"): "pids.max",
    (2, "memory"): "memory.max",
    (2, "pids"): "pids.max",
}

#: The file by which a process with one thread enters, by the hierarchy's version. In version 1 ``tasks``
#: spares it a lock of all processes, for which ``cgroup.procs`` may wait many milliseconds.
ENTRY = {1: "tasks", 2: "cgroup.procs"}

#: Bytes for QEMU itself: translated code takes up to 1 GiB (QEMU's tcg/region.c), and all else together about
#: 200 MiB in a VM that boots.
_OVERHEAD = 1536 * _MIB

#: Tasks for QEMU beside its vCPUs: a pool for disks has up to 64 threads (util/thread-pool.c).
_TASKS = 256


class Bounds(msgspec.Struct, frozen=True):
    """What a process may take of the host: ``memory`` in bytes, ``tasks`` as a number of threads."""

    memory: int
    tasks: int


class Home(msgspec.Struct, frozen=True):
    """The cgroup of this process in one hierarchy.

    Attributes:
        version: of the hierarchy: 1 or 2.
        path: of the cgroup within the hierarchy, as far as this process sees it.
        directory: where it is mounted.
        controllers: those wanted that are in this hierarchy; in version 2, that may be.
    """

    version: int
    path: str
    directory: Path
    controllers: tuple[str, ...]


class Facts(msgspec.Struct, frozen=True):
    """What decides whether a cgroup may be made below another one.

    Attributes:
        writable: its directory can be written.
        superuser: by root, who can write whatever belongs to others.
        delegated: it is marked as given to those in it.
        passed_on: controllers that those below it have (version 2, ``cgroup.subtree_control``).
    """

    writable: bool
    superuser: bool
    delegated: bool
    passed_on: frozenset[str] = frozenset()


def bounds_of(machine: Machine) -> Bounds:
    """What the hypervisor of ``machine`` never needs: a bound for one that runs wild, not for its guest.

    The guest's memory counts twice: a copy of a running VM is written by its hypervisor, into memory.
    """
    memory = max(machine.memory, machine.max_memory)
    return Bounds(2 * memory + _OVERHEAD, _TASKS + max(machine.vcpus, machine.max_vcpus))


def homes(memberships: str, mounts: str) -> tuple[Home, ...]:
    """The cgroups of a process that have a controller which is wanted.

    Args:
        memberships: its ``/proc/PID/cgroup`` (cgroups(7)).
        mounts: its ``/proc/PID/mountinfo`` (proc(5)).
    """
    mounted = tuple(_mounts(mounts))
    found: dict[Path, Home] = {}
    left = list(_CONTROLLERS)
    unified = ""
    for line in memberships.splitlines():
        number, _, rest = line.partition(":")
        listed, _, path = rest.partition(":")
        if number == "0" and not listed:
            unified = path
        for controller in [one for one in left if one in listed.split(",")]:
            left.remove(controller)
            directory = _directory(mounted, "cgroup", controller, path)
            if directory is not None:
                with_it = found[directory].controllers if directory in found else ()
                found[directory] = Home(1, path, directory, (*with_it, controller))
    directory = _directory(mounted, "cgroup2", "", unified) if unified and left else None
    if directory is not None:
        found[directory] = Home(2, unified, directory, tuple(left))
    return tuple(found.values())


class _Mount(msgspec.Struct, frozen=True):
    """A mount of a hierarchy: what of it is seen, where, and the options by which it is known."""

    kind: str
    root: str
    point: str
    options: frozenset[str]


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        where, _, what = line.partition(" - ")
        fields, source = where.split(" "), what.split(" ")
        if len(fields) >= 6 and len(source) >= 3 and source[0] in {"cgroup", "cgroup2"}:
            root, point = _unescape(fields[3]), _unescape(fields[4])
            yield _Mount(source[0], root, point, frozenset(source[2].split(",")))


def _unescape(text: str) -> str:
    r"""Spaces, tabs, newlines and backslashes are written as ``\040`` and the like."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _directory(mounts: tuple[_Mount, ...], kind: str, controller: str, path: str) -> Path | None:
    """Where the cgroup ``path`` of the hierarchy with ``controller`` is mounted."""
    if not path.startswith("/") or ".." in path.split("/"):  # outside of what this process may see
        return None
    for mount in mounts:
        root = mount.root.rstrip("/")
        fits = mount.kind == kind and (not controller or controller in mount.options)
        if fits and (path == root or path.startswith(root + "/")):
            return Path(mount.point + path[len(root) :].rstrip("/"))
    return None


def judge(home: Home, facts: Facts) -> tuple[tuple[str, ...], str]:
    """The controllers that a cgroup below ``home`` can have, and why it cannot have the others."""
    whose = f"the cgroup {home.path}"
    if not facts.writable:
        return (), f"{whose} cannot be written"
    if facts.superuser and home.path != "/" and not facts.delegated:
        return (), f"{whose} is another program's, and not delegated"
    if home.version == 1:
        return home.controllers, ""
    usable = tuple(controller for controller in home.controllers if controller in facts.passed_on)
    return usable, "" if usable == home.controllers else f"{whose} does not pass it on"


def limit_files(home: Home, bounds: Bounds) -> tuple[tuple[str, str], ...]:
    """The files of a cgroup below ``home`` that set ``bounds``, and what is written to each."""
    values = {"memory": bounds.memory, "pids": bounds.tasks}
    return tuple((_LIMIT_FILES[home.version, one], f"{values[one]}") for one in home.controllers)


def name(pid: int, started: int, vm: str) -> str:
    """What the cgroup of ``vm`` is called, whose owner is the process ``pid`` that began at ``started``."""
    return f"atoll-{pid}-{started}-{vm}"


def owner(directory: str) -> tuple[int, int] | None:
    """Pid and start of the process whose cgroup is called ``directory``; None if it is none of ours."""
    found = re.match(r"atoll-(\d{1,10})-(\d{1,20})-", directory, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None
