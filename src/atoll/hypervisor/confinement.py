"""A control group for each throw-away VM, where one may be made; see ``atoll.hypervisor.cgroups``."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

import msgspec

from atoll import process
from atoll.hypervisor.cgroups import ENTRY, Bounds, Facts, Home, homes, judge, limit_files, name, owner

__all__ = ["Confinement", "Survey", "confine", "survey", "sweep"]


class Survey(msgspec.Struct, frozen=True):
    """Where this process may make cgroups.

    Attributes:
        homes: below which, with the controllers that those below them have.
        refusals: for each controller that cannot be had in a hierarchy that is there, why.
    """

    homes: tuple[Home, ...]
    refusals: tuple[tuple[str, str], ...]


class Confinement:
    """The cgroups of one VM.

    Attributes:
        directories: one for each hierarchy.
        entries: files by which a process enters them.
    """

    def __init__(self, made: dict[Path, Path]) -> None:
        self.directories = tuple(made)
        self.entries = tuple(made.values())

    def remove(self) -> None:
        """Remove them, once the process has ended. Removing twice is fine."""
        for directory in self.directories:
            with contextlib.suppress(OSError):  # the next launch sweeps it
                directory.rmdir()


def survey() -> Survey:
    """Where this process may make cgroups, found out once."""
    return _survey(os.getpid())


@functools.cache
def _survey(pid: int) -> Survey:
    """Once per process: a fork may have entered another cgroup."""
    assert pid == os.getpid()
    try:
        memberships = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux
        return Survey((), ())
    usable, refusals = [], []
    for home in homes(memberships, mounts):
        controllers, reason = judge(home, _facts(home))
        refusals += [(one, reason) for one in home.controllers if one not in controllers]
        if controllers:
            usable.append(msgspec.structs.replace(home, controllers=controllers))
    return Survey(tuple(usable), tuple(refusals))


def _facts(home: Home) -> Facts:
    passed_on: list[str] = []
    if home.version == 2:
        with contextlib.suppress(OSError):
            passed_on = (home.directory / "cgroup.subtree_control").read_text(encoding="ascii").split()
    return Facts(
        writable=os.access(home.directory, os.W_OK | os.X_OK),
        superuser=os.geteuid() == 0,
        delegated=any(_mark(home.directory, kind) == b"1" for kind in ("user", "trusted")),
        passed_on=frozenset(passed_on),
    )


def _mark(directory: Path, kind: str) -> bytes:
    """The mark of what is delegated: systemd's docs/CGROUP_DELEGATION.md."""
    try:
        return os.getxattr(directory, f"{kind}.delegate")
    except OSError:
        return b""


def confine(vm: str, bounds: Bounds) -> Confinement | None:
    """Make cgroups for ``vm``, and sweep those of programs that were killed; None where none may be made."""
    sweep()
    pid = os.getpid()
    made = {}
    for home in survey().homes:
        directory = _make(home, name(pid, _started(pid), vm), bounds)
        if directory is not None:
            made[directory] = directory / ENTRY[home.version]
    return Confinement(made) if made else None


@functools.cache
def _started(pid: int) -> int:
    itself = process.identify(pid)
    assert itself is not None
    return itself.started


def _make(home: Home, called: str, bounds: Bounds) -> Path | None:
    """None if it cannot be made after all: there may be too many, or this process's own was removed."""
    number = 1
    while True:
        directory = home.directory / (called if number == 1 else f"{called}.{number}")
        try:
            directory.mkdir()
            break
        except FileExistsError:  # of another VM of that name
            number += 1
        except OSError:
            return None
    try:
        for file, value in limit_files(home, bounds):
            (directory / file).write_text(value, encoding="ascii")
    except OSError:
        directory.rmdir()
        return None
    return directory


def sweep() -> None:
    """Remove the cgroups beside which this process makes its own and whose owners have ended.

    The kernel refuses it as long as a process is in one.
    """
    pid = os.getpid()
    for home in survey().homes:
        alive = {(pid, _started(pid)): True}
        for entry in _listed(home.directory):
            whose = owner(entry)
            if whose is not None and whose not in alive:
                now = process.identify(whose[0])
                alive[whose] = now is not None and now.started == whose[1]
            if whose is not None and not alive[whose]:
                with contextlib.suppress(OSError):
                    os.rmdir(home.directory / entry)


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
