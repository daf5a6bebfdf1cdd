"""Which networks there are, by their names. Quick to load: starts need it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from atoll.errors import NetworkError, UsageError
from atoll.paths import NetworkPaths, Paths
from atoll.vm.network.attachment import BUILT_IN

__all__ = ["check_name", "is_there", "known", "require", "unknown"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

#: Words that say something else where a network's name may stand.
_KEPT = {"own", "slirp", "none", "yes", "no"}


def check_name(name: str) -> str:
    """A network's name. Raises ``UsageError``: ``usage.network``: it is malformed, or says something else."""
    if not _NAME.fullmatch(name):
        hint = "use at most 63 lower-case letters, digits and dashes, as lab-1"
        raise UsageError(f"{name!r} is no name for a network", code="network", hint=hint)
    if name in _KEPT:
        message = f"a network cannot be called {name}: that says something else where networks are named"
        raise UsageError(message, code="network", hint="choose another name")
    return name


def require(paths: Paths, name: str) -> NetworkPaths:
    """The place of a network that there is, or will be at its first use.

    Raises:
        UsageError: as ``check_name``.
        NetworkError: ``network.unknown``.
    """
    place = paths.network(check_name(name))
    if not is_there(place):
        raise unknown(place)
    return place


def is_there(place: NetworkPaths) -> bool:
    """Whether that network was made, or is made at its first use."""
    return place.directory.name in BUILT_IN or place.record.exists()


def known(networks: Path) -> tuple[str, ...]:
    """The names of the networks in that directory, with those that are made at their first use."""
    try:
        with os.scandir(networks) as entries:
            found = {entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        found = set()
    return (*BUILT_IN, *sorted(found - set(BUILT_IN)))


def unknown(place: NetworkPaths) -> NetworkError:
    """The error of a network that nobody made."""
    name = place.directory.name
    listed = ", ".join(known(place.directory.parent))
    hint = f"there are {listed}; `atoll network create {name}` makes it"
    return NetworkError(f"there is no network {name}", code="unknown", hint=hint)
