"""``atoll ls`` where nothing has to be thought about: it prints what the records say if they are surely true.

Loading the whole program takes several times as long as reading the records. So this looks at them with the
standard library alone, and leaves everything that is not plain to ``atoll.cli.listing``: options, settings,
records that are damaged or of another schema, and machines whose processes were killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import time

from atoll.cli.rows import HEAD, note, row, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["data_directory", "listing"]

_ACTIVE = {"starting", "running", "paused", "stopping"}
_SCHEMA = 1

#: As in ``atoll.store``, whose import would take longer than all of this.
_FLOCK = struct.Struct("hhqqi4x")


def data_directory() -> str | None:
    """Where machines are, if that is plain; None if the settings must be resolved."""
    given = os.environ.get("ATOLL_DATA_DIR")
    if given is not None:
        return given if given.startswith("/") else None
    home = os.environ.get("HOME", "")
    config = os.environ.get("XDG_CONFIG_HOME", "") or f"{home}/.config"
    files = ("/etc/atoll/config.toml", f"{config}/atoll/config.toml")
    if sys.platform != "linux" or not home.startswith("/") or any(map(os.path.exists, files)):
        return None
    base = os.environ.get("XDG_DATA_HOME", "")
    return f"{base if base.startswith('/') else f'{home}/.local/share'}/atoll"


def listing(data: str) -> str | None:
    """The table of the machines below ``data``; None if some machine is not plain."""
    try:
        names = sorted(name for name in os.listdir(f"{data}/machines") if not name.startswith("."))
    except FileNotFoundError:
        names = []
    rows = []
    for name in names:
        line = _row(name, f"{data}/machines/{name}")
        if line is None:
            return None
        rows.append(line)
    return table(HEAD, rows)


def _row(name: str, directory: str) -> tuple[str, ...] | None:
    try:
        spec, state = _record(f"{directory}/machine.json"), _record(f"{directory}/state.json")
        supervised = _is_held(f"{directory}/supervisor.lock")
        phase, cause, failure = state["phase"], state["cause"], state["failure"]
        if phase in _ACTIVE and not supervised:
            return None
        return row(
            name,
            phase,
            time.time() - state["since"],
            spec["cpus"],
            spec["memory"],
            spec["image"],
            note(
                cause, failure["message"] if failure else "", active=phase in _ACTIVE, supervised=supervised
            ),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _record(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        record: dict[str, Any] = json.loads(file.read())
    if record["schema"] != _SCHEMA:
        raise ValueError("another schema")
    return record


def _is_held(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        return bool(kind != fcntl.F_UNLCK)
    finally:
        os.close(fd)
