"""The Docker socket as units of the user's systemd: it is always there, its listener when it is used."""

from __future__ import annotations

import sys
from pathlib import Path

from atoll import store
from atoll.config import Config
from atoll.containers.launching import program
from atoll.containers.listener import Timing
from atoll.containers.sockets import check_path
from atoll.errors import PreflightError
from atoll.events import Emit, ignore
from atoll.machine.autostart import quoted, systemd_refusal, tell_systemd, unit_directory

__all__ = ["disable", "enable", "enabled", "service_unit", "socket_unit", "unit_paths"]

#: No machine's unit has such a name (``atoll.machine.autostart``).
_NAME = "atoll.docker"


def socket_unit(path: Path) -> str:
    """The unit of the socket at ``path`` (systemd.socket(5))."""
    lines = [
        "[Unit]",
        "Description=Docker socket of Atoll",
        "",
        "[Socket]",
        f"ListenStream={_plain(path)}",
        "SocketMode=0600",
        "DirectoryMode=0700",
        "Backlog=4096",
        "RemoveOnStop=true",
        "",
        "[Install]",
        "WantedBy=sockets.target",
    ]
    return "\n".join(lines) + "\n"


def service_unit(command: tuple[str, ...]) -> str:
    """The unit of the listener, which runs ``command`` (systemd.service(5)).

    Only its own process is ended with it: the engine's, which it may have started, goes on.
    """
    words = " ".join(quoted(word).replace("$", "$$") for word in command)
    lines = [
        "[Unit]",
        "Description=Docker socket of Atoll, its listener",
        f"Requires={_NAME}.socket",
        f"After={_NAME}.socket",
        "",
        "[Service]",
        f"ExecStart={words}",
        "KillMode=process",
        "TimeoutStopSec=60",
        "Restart=on-failure",
        "RestartPreventExitStatus=75",
    ]
    return "\n".join(lines) + "\n"


def _plain(path: Path) -> str:
    """A path in a setting that takes the rest of its line: no quotes, but specifiers (systemd.unit(5)).

    Raises:
        PreflightError: there is no way to write it down.
    """
    text = str(path)
    if text != text.strip() or any(character < " " for character in text) or text.endswith("\\"):
        message = f"{text!r} cannot be written into a unit of systemd"
        raise PreflightError(message, hint="choose another directory with ATOLL_DATA_DIR")
    return text.replace("%", "%%")


def unit_paths() -> tuple[Path, Path]:
    """Where the units are kept: the socket's, and its listener's."""
    place = unit_directory()
    return place / f"{_NAME}.socket", place / f"{_NAME}.service"


def enable(config: Config, timing: Timing, *, backend: str = "") -> Path:
    """Have systemd hold the socket from now on, and with each session; the socket's unit.

    A listener in the background is ended before (``launching.stop``): there is but one socket.

    Raises:
        PreflightError: no systemd of this user's runs, or the path cannot be told to it; no unit is left.
        ConfigError: ``config.socket``: the socket's path is too long.
        StoreError: the units cannot be written.
    """
    check_path(config.paths.docker.socket)
    unit = socket_unit(config.paths.docker.socket)
    problem = systemd_refusal() if sys.platform == "linux" else "this host has none"
    if problem:
        raise _absent(problem)
    socket_path, service_path = unit_paths()
    store.write_file(service_path, service_unit(program(config, timing, backend=backend)).encode())
    store.write_file(socket_path, unit.encode())
    if problem := systemd_refusal(["enable", "--now", socket_path.name]):
        socket_path.unlink(missing_ok=True)
        service_path.unlink(missing_ok=True)
        raise _absent(problem)
    return socket_path


def _absent(problem: str) -> PreflightError:
    hint = "`atoll docker start` brings it back then"
    return PreflightError(f"systemd does not hold it: {problem}", hint=hint)


def disable(emit: Emit = ignore) -> bool:
    """Undo ``enable``: the socket goes, and its listener; whether there was something to undo."""
    socket_path, service_path = unit_paths()
    if not socket_path.exists() and not service_path.exists():
        return False
    tell_systemd(["disable", "--now", socket_path.name, service_path.name], emit)
    socket_path.unlink(missing_ok=True)
    service_path.unlink(missing_ok=True)
    return True


def enabled(config: Config) -> bool:
    """Whether systemd holds the socket of this data directory: another one may have units, too."""
    path, _ = unit_paths()
    try:
        return f"\nListenStream={_plain(config.paths.docker.socket)}\n" in path.read_text()
    except (OSError, PreflightError):
        return False
