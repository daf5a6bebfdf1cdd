"""Machines that start with their user's session: a systemd user unit, or a launchd agent on macOS."""

from __future__ import annotations

import os
import plistlib
import sys
from collections.abc import Sequence
from pathlib import Path

from atoll import process, store
from atoll.config import Config
from atoll.errors import ProcessError
from atoll.events import Emit, Warned, ignore

__all__ = [
    "disable",
    "enable",
    "enabled",
    "is_own",
    "launchd_plist",
    "quoted",
    "systemd_refusal",
    "systemd_unit",
    "tell_systemd",
    "unit_directory",
    "unit_path",
]


def systemd_unit(name: str, program: tuple[str, ...], variables: dict[str, str]) -> str:
    """The unit for the machine ``name`` (systemd.service(5))."""
    # Only in commands are variables expanded (systemd.exec(5), Environment=).
    command = " ".join(quoted(word).replace("$", "$$") for word in (*program, "supervise", name))
    lines = [
        "[Unit]",
        f"Description=Atoll machine {name}",
        "",
        "[Service]",
        *(f"Environment={quoted(f'{variable}={value}')}" for variable, value in sorted(variables.items())),
        f"ExecStart={command}",
        "KillMode=mixed",
        "TimeoutStopSec=60",
        "Restart=on-failure",
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def quoted(word: str) -> str:
    """One word of a unit's setting: C-style escapes, no specifiers (systemd.syntax(7), systemd.unit(5))."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return '"' + escaped.replace("%", "%%") + '"'


def launchd_plist(name: str, program: tuple[str, ...], variables: dict[str, str]) -> bytes:
    """The agent for the machine ``name`` (launchd.plist(5))."""
    return plistlib.dumps(
        {
            "Label": f"atoll.{name}",
            "ProgramArguments": [*program, "supervise", name],
            "EnvironmentVariables": variables,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
        }
    )


def unit_path(name: str) -> Path:
    """Where the unit of a machine is kept."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"atoll.{name}.plist"
    return unit_directory() / f"atoll-{name}.service"


def unit_directory() -> Path:
    """Where the units of the user's systemd are kept (systemd.unit(5))."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    return root / "systemd" / "user"


def enabled() -> list[str]:
    """The machines that have a unit."""
    place = unit_path("x").parent
    prefix, suffix = unit_path("\0").name.split("\0")
    if not place.is_dir():
        return []
    names = (
        file.name for file in place.iterdir() if file.name.startswith(prefix) and file.name.endswith(suffix)
    )
    return sorted(name.removeprefix(prefix).removesuffix(suffix) for name in names)


def enable(config: Config, name: str, emit: Emit = ignore) -> Path:
    """Have the machine start with its user's session. Raises ``StoreError`` if the unit cannot be written."""
    program = (sys.executable, "-P", "-m", "atoll")
    variables = {"ATOLL_DATA_DIR": str(config.data_dir), "ATOLL_CACHE_DIR": str(config.cache_dir)}
    path = unit_path(name)
    if sys.platform == "darwin":
        store.write_file(path, launchd_plist(name, program, variables))
        return path
    store.write_file(path, systemd_unit(name, program, variables).encode())
    tell_systemd(["enable", path.name], emit)
    return path


def disable(name: str, emit: Emit = ignore) -> bool:
    """Undo ``enable``; whether there was something to undo."""
    path = unit_path(name)
    if not path.exists():
        return False
    if sys.platform != "darwin":
        tell_systemd(["disable", path.name], emit)
    path.unlink(missing_ok=True)
    return True


def is_own(config: Config, name: str) -> bool:
    """Whether the unit of this name is for a machine here: other data directories may have the name, too."""
    path = unit_path(name)
    if not path.exists():
        return False
    if sys.platform == "darwin":
        variables: dict[str, str] = plistlib.loads(path.read_bytes())["EnvironmentVariables"]
        return variables.get("ATOLL_DATA_DIR") == str(config.data_dir)
    return quoted(f"ATOLL_DATA_DIR={config.data_dir}") in path.read_text()


def tell_systemd(words: list[str], emit: Emit) -> None:
    """Tell the user's systemd; where none runs, say what is left to do."""
    if problem := systemd_refusal(words):
        emit(Warned(message=f"systemd was not told: {problem}", hint=f"systemctl --user {' '.join(words)}"))


def systemd_refusal(words: Sequence[str] = ()) -> str:
    """Have the user's systemd read its units again, and tell it ``words``; empty, or why it did not."""
    program = process.find("systemctl")
    if program is None:
        return "systemctl is not installed"
    try:
        process.run([program, "--user", "daemon-reload"])
        if words:
            process.run([program, "--user", *words])
    except ProcessError as error:
        return error.message
    return ""
