"""The Docker client and its plugins on this host: found, or taken from Debian's packages without root."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from atoll import process, store
from atoll.errors import ImageError, PreflightError
from atoll.events import Emit, ignore, task
from atoll.paths import Paths

__all__ = [
    "CLIENT",
    "PLUGINS",
    "Tool",
    "client",
    "client_home",
    "install",
    "missing",
    "plugin_places",
    "remove",
]

#: Where the client looks beside the user's own directories (docker/cli, cli-plugins/manager, on Unix).
_PLACES = (
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
)

#: Debian's suite whose packages serve: they want no more than the C library of the suite before it.
_SUITE = "trixie"

_TASK = "tools"


class Tool(msgspec.Struct, frozen=True):
    """A program of a package.

    Attributes:
        name: what it is called.
        package: which has it.
        file: path in the package.
        plugin: it is one of the client, not a program of its own.
    """

    name: str
    package: str
    file: str
    plugin: bool = True


CLIENT = Tool("docker", "docker-cli", "usr/bin/docker", plugin=False)
PLUGINS = tuple(
    Tool(f"docker-{name}", f"docker-{name}", f"usr/libexec/docker/cli-plugins/docker-{name}")
    for name in ("buildx", "compose")
)


def client_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the Docker client keeps its settings. Raises ``PreflightError``: this user has no home."""
    given = environment.get("DOCKER_CONFIG", "")
    if given:
        return Path(given)
    try:
        return Path.home() / ".docker"
    except RuntimeError:
        raise PreflightError("this user has no home directory", hint="set HOME, or DOCKER_CONFIG") from None


def plugin_places(home: Path) -> tuple[Path, ...]:
    """Directories in which the client looks for plugins; ``home`` as of ``client_home``."""
    extra: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        settings = json.loads((home / "config.json").read_bytes())
        if isinstance(settings, dict) and isinstance(settings.get("cliPluginsExtraDirs"), list):
            extra = [str(place) for place in settings["cliPluginsExtraDirs"]]
    return tuple(map(Path, (*extra, str(home / "cli-plugins"), *_PLACES)))


def client() -> str:
    """The Docker client. Raises ``PreflightError``: there is none."""
    return process.require("docker", hint="`atoll docker enable` installs it")


def missing(home: Path) -> tuple[Tool, ...]:
    """What this host lacks of the client and its plugins."""
    places = plugin_places(home)
    lacking = [one for one in PLUGINS if not any(os.access(place / one.name, os.X_OK) for place in places)]
    return (*(() if process.find(CLIENT.name) else (CLIENT,)), *lacking)


def install(
    paths: Paths, tools: Sequence[Tool], home: Path, programs: Path, *, emit: Emit = ignore
) -> tuple[Path, ...]:
    """Take programs from Debian's packages, for this user; the links by which they are found.

    Args:
        paths: where they are kept.
        tools: of ``missing``.
        home: of ``client_home``.
        programs: a directory for programs that are no plugins, such as ``~/.local/bin``.
        emit: told of progress.

    Raises:
        PreflightError: this host has no apt.
        ImageError: ``image.apt``: they cannot be fetched; ``image.package``.
        StoreError: they cannot be written.
    """
    if not tools:
        return ()
    names = ", ".join(one.package for one in tools)
    links = []
    with task(emit, _TASK, f"Fetching {names}"), store.lock(paths.tools / ".lock"):
        for one, file in zip(tools, _fetched(paths, tools, emit), strict=True):
            link = (home / "cli-plugins" if one.plugin else programs) / one.name
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(link, file)
            links.append(link)
    return tuple(links)


def _fetched(paths: Paths, tools: Sequence[Tool], emit: Emit) -> list[Path]:
    """The programs, in directories of Atoll's own that are named after their packages."""
    from atoll.image import apt, architectures, kernel  # noqa: PLC0415 - only where something is missing

    architecture = architectures.PACKAGED[kernel.host_architecture()]
    files = []
    with apt.suite_state(paths.cache, architecture, _SUITE, doing=_TASK, emit=emit) as state:
        for one in tools:
            package = apt.show(state, one.package, architecture)
            if package is None:
                raise apt.lacking(one.package, architecture)
            place = paths.tools / package.file.removesuffix(".deb")
            if not (place / one.name).exists():
                archive = apt.fetch(package, state, paths.downloads, doing=_TASK, emit=emit)
                with store.staging(paths.tools, place.name) as staged:
                    _unpack(archive, one, staged)
                    store.publish(staged, place)
                archive.unlink(missing_ok=True)  # nobody builds with it again
            files.append(place / one.name)
    return files


def _unpack(archive: Path, tool: Tool, staged: Path) -> None:
    from atoll.image import deb  # noqa: PLC0415 - only where something is missing

    if not deb.unpack(archive, staged, wanted=tool.file.__eq__):
        message = f"{archive.name} has no {tool.file}"
        raise ImageError(message, code="package", hint="install the plugin by hand")
    (staged / tool.file).rename(staged / tool.name)
    (staged / tool.name).chmod(0o755)
    store.remove_tree(staged / Path(tool.file).parts[0])


def _link(link: Path, target: Path) -> None:
    """Make or change a symbolic link in one step."""
    with store.refusing(link):
        partial = link.with_name(f".{link.name}-{os.urandom(4).hex()}")
        partial.symlink_to(target)
        partial.replace(link)
        store.sync_directory(link.parent)


def remove(paths: Paths, home: Path, programs: Path) -> None:
    """Take back what ``install`` put there, and nothing else. Raises ``StoreError``."""
    for one in (CLIENT, *PLUGINS):
        link = (home / "cli-plugins" if one.plugin else programs) / one.name
        with contextlib.suppress(OSError):
            if Path(os.readlink(link)).is_relative_to(paths.tools):
                link.unlink()
    store.remove_tree(paths.tools)
