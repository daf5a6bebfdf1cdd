"""Directories that containers are given, and that are not this host's although it may seem so. Pure.

Docker makes a directory that is to be mounted and is not there. The engine's machine has this host's shared
directories at their own paths, and all others are its own: there the container sees an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

import msgspec

from atoll.containers.publishing import Container

__all__ = ["Unshared", "unshared"]

#: What is the machine's own wherever an engine runs, and what containers are given of it on purpose.
_OF_THE_MACHINE = tuple(
    map(
        PurePosixPath,
        (
            *("/dev", "/proc", "/run", "/sys", "/var/run"),
            *("/lib/modules", "/usr/lib/modules", "/var/lib/containerd", "/var/lib/docker"),
        ),
    )
)

#: So many at most, since a guest could tell of any number.
_MOST = 256


class Unshared(msgspec.Struct, frozen=True, order=True):
    """A directory or file that a container has from the machine, where its user may have meant this host.

    Attributes:
        source: its path.
        container: who has it.
    """

    source: str
    container: str

    def __str__(self) -> str:
        return f"{self.source} in {self.container} is the engine's own, not this host's: no share has it"


def unshared(containers: Iterable[Container], shared: Iterable[str]) -> tuple[Unshared, ...]:
    """What the user of ``containers`` should know of, in order; ``shared`` are paths that are this host's."""
    known = (*map(PurePosixPath, shared), *_OF_THE_MACHINE)
    found = {
        Unshared(mount.source, one.name)
        for one in containers
        for mount in one.mounts
        if mount.type == "bind" and mount.source != "/"
        if not any(PurePosixPath(mount.source).is_relative_to(place) for place in known)
    }
    return tuple(sorted(found)[:_MOST])
