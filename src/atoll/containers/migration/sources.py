"""Where the sockets of other Docker engines are. Files are read, nothing is changed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from atoll.containers import context
from atoll.errors import UsageError
from atoll.image.local.engines import endpoint_of
from atoll.paths import Paths

__all__ = ["NAMES", "find"]

#: What a source may be called.
NAMES = ("docker", "colima", "orbstack", "docker-desktop")

_UNIX = "unix://"


def find(
    name: str, paths: Paths, home: Path, client: Path, environment: Mapping[str, str] = os.environ
) -> Path:
    """The socket of the source called ``name``.

    Args:
        name: of ``NAMES``, or a path, or ``unix://`` and one.
        paths: Atoll's: its own socket is no source.
        home: the user's.
        client: where the Docker client keeps its settings.
        environment: variables that move the sockets.

    Raises:
        UsageError: ``usage.source``: it is not there, or not reached by a socket of this host;
            ``usage.own_engine``: it is Atoll's own.
    """
    own = paths.docker.socket
    if name not in NAMES:
        place = Path(name.removeprefix(_UNIX))
        if "://" in name and not name.startswith(_UNIX):
            raise _elsewhere(name)
        if _same(place, own):
            message = "that socket is Atoll's own: there is nothing to migrate"
            raise UsageError(message, code="own_engine", hint=f"name {', '.join(NAMES)} or another socket")
        if not _is_socket(place):
            raise UsageError(f"{place} is no socket", code="source", hint=f"or name {', '.join(NAMES)}")
        return place
    looked = []
    for place in _places(name, paths, home, client, environment):
        if _same(place, own):
            continue
        if _is_socket(place):
            return place
        looked.append(str(place))
    message = f"{name} has no socket at {', '.join(looked)}"
    raise UsageError(message, code="source", hint=f"start {name}, or name the path of its socket")


def _places(
    name: str, paths: Paths, home: Path, client: Path, environment: Mapping[str, str]
) -> Iterator[Path]:
    """Where it may be, the likeliest first."""
    match name:
        case "docker":
            yield from _docker(paths, client, environment)
        case "colima":
            profile = environment.get("COLIMA_PROFILE") or "default"
            given = environment.get("COLIMA_HOME")
            settings = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
            for directory in (Path(given),) if given else (home / ".colima", settings / "colima"):
                yield directory / profile / "docker.sock"
        case "orbstack":
            yield home / ".orbstack/run/docker.sock"
        case _:
            yield home / ".docker/desktop/docker.sock"
            yield home / ".docker/run/docker.sock"


def _docker(paths: Paths, client: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """What the Docker client uses, or used before ``atoll docker enable``."""
    host = environment.get("DOCKER_HOST", "")
    chosen = environment.get("DOCKER_CONTEXT") or context.current(client)
    names = (chosen, context.former(paths)) if chosen == context.NAME else (chosen,)
    for endpoint in (host, *(endpoint_of(client, each) for each in names)):
        if endpoint.startswith(_UNIX):
            yield Path(endpoint.removeprefix(_UNIX))
        elif endpoint:
            raise _elsewhere(endpoint)
    yield Path("/var/run/docker.sock")
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "docker.sock"


def _elsewhere(endpoint: str) -> UsageError:
    hint = "run it on that host, or carry its socket here: ssh -L /tmp/docker.sock:/var/run/docker.sock HOST"
    return UsageError(f"{endpoint} is no socket of this host", code="source", hint=hint)


def _same(place: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return place.samefile(other)
    return place == other


def _is_socket(place: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(place.stat().st_mode)
    return False
