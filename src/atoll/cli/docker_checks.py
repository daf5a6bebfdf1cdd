"""What `atoll doctor` looks at for `atoll docker`: the client, the socket, the engine. Nothing is started."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from atoll import process
from atoll.cli.checks import Check, Outcome
from atoll.config import Config
from atoll.containers import composing, context, guest, launching, sockets, tools, units
from atoll.containers.engine import IMAGE, NAME
from atoll.containers.listener import Status
from atoll.containers.root import emulated
from atoll.errors import AtollError, ImageError, ProcessError
from atoll.image import catalog
from atoll.image.foreign import FOREIGN, PACKAGE, PLATFORMS
from atoll.image.kernel import host_architecture
from atoll.machine import registry
from atoll.vm import serving

__all__ = ["CHECKS"]

#: Seconds for the client to say its version, and for a listener to answer.
_PATIENCE = 2.0

_BUILD = "atoll image build --force engine"
_ENABLE = "atoll docker enable"


def check_client(_: Config) -> Iterator[Check]:
    """The client, its plugins, and what engine it uses."""
    home = tools.client_home()
    program = process.find(tools.CLIENT.name)
    if program is None:
        yield Check("client", Outcome.NOTE, "Docker's client is not installed", f"`{_ENABLE}` installs it")
        return
    try:
        said = process.run([program, "--version"], timeout=_PATIENCE).stdout.decode(errors="replace").strip()
    except ProcessError as error:
        yield Check("client", Outcome.FAIL, f"{program}: {error.message}", "install Docker's client anew")
        return
    yield Check("client", Outcome.OK, f"{said} at {program}")
    lacking = [one.name for one in tools.missing(home) if one.plugin]
    if lacking:
        yield Check("plugins", Outcome.NOTE, f"without {', '.join(lacking)}", f"`{_ENABLE}` installs them")
    else:
        yield Check("plugins", Outcome.OK, ", ".join(one.name for one in tools.PLUGINS))


def check_context(config: Config) -> Iterator[Check]:
    """Which engine the client uses."""
    name, active = context.overridden(), context.current(tools.client_home())
    if name and os.environ[name] not in {context.NAME, f"unix://{config.paths.docker.socket}"}:
        finding = f"{name} is set to {os.environ[name]}, which goes before any context"
        yield Check("context", Outcome.NOTE, finding, f"unset {name}, to use Atoll's engine")
    elif name or active == context.NAME:
        yield Check("context", Outcome.OK, f"the client uses Atoll's engine, by {name or 'its context'}")
    else:
        fix = f'`{_ENABLE}`, or eval "$(atoll docker env)"'
        yield Check("context", Outcome.NOTE, f"the client uses the context {active}, not Atoll's", fix)


def check_socket(config: Config) -> Iterator[Check]:
    """The socket: its path, who may use it, who listens, and what that process knows."""
    place = config.paths.docker
    sockets.check_path(place.socket)
    try:
        mode = place.socket.lstat().st_mode
    except OSError:
        yield Check("socket", Outcome.NOTE, f"{place.socket} is not there", f"`{_ENABLE}` keeps it there")
    else:
        if not stat.S_ISSOCK(mode):
            yield Check("socket", Outcome.FAIL, f"{place.socket} is no socket", "move it away")
        elif mode & 0o077:
            finding = f"{place.socket} is open to others, who may then do all that its owner may"
            yield Check("socket", Outcome.FAIL, finding, f"chmod 600 {place.socket}")
        else:
            yield Check("socket", Outcome.OK, str(place.socket))
    yield from _listener(config, asyncio.run(_ask(config)))
    yield _manager()


async def _ask(config: Config) -> Status | None:
    async with asyncio.timeout(_PATIENCE):
        return await launching.status(config.paths.docker)


def _listener(config: Config, found: Status | None) -> Iterator[Check]:
    log = config.paths.docker.log
    if found is None:
        enabled = units.enabled(config)
        finding = "systemd starts it when the socket is used" if enabled else "none runs"
        fix = "" if enabled else "`atoll docker start`"
        yield Check("listener", Outcome.OK if enabled else Outcome.NOTE, finding, fix)
        return
    held = "socket of systemd" if found.inherited else "socket of its own, until this host restarts"
    clients = f"{found.connections} connections"
    if found.failure is not None:
        fix = f"see {log} and `atoll docker logs`"
        yield Check("listener", Outcome.FAIL, f"process {found.pid}: {found.failure.message}", fix)
    else:
        yield Check("listener", Outcome.OK, f"process {found.pid}, {held}, {clients}")
    for port in found.ports:
        if port.refused:
            finding = f"{port.publication} of {port.publication.container}: {port.refused}"
            yield Check("ports", Outcome.FAIL, finding, "end what has the port, or publish another one")
    for one in found.unshared:
        yield Check("mounts", Outcome.NOTE, str(one), "add it to docker_shares, then `atoll docker restart`")


def _manager() -> Check:
    """Whether the user's systemd runs, by the socket at which it takes orders."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if process.find("systemctl") and (Path(runtime) / "systemd/private").exists():
        return Check("systemd", Outcome.OK, "the user's systemd runs")
    finding = f"no systemd of this user runs: `{_ENABLE}` lasts until this host restarts"
    return Check("systemd", Outcome.NOTE, finding, "loginctl enable-linger, and log in again")


def check_engine(config: Config) -> Iterator[Check]:
    """The engine's image and its machine."""
    try:
        image = catalog.find(config.paths, IMAGE)
        catalog.require_programs(image.manifest)
    except ImageError as error:
        missing = error.code == "image.missing"
        finding = "not built yet; the first start does" if missing else error.message
        yield Check("engine-image", Outcome.NOTE if missing else Outcome.FAIL, finding, error.hint)
    else:
        yield Check("engine-image", Outcome.OK, f"{image.manifest.name}, with all its programs")
        yield _emulation(emulated(image.manifest))
    guest.service(composing.engine_settings(config))
    if not registry.exists(config.paths, NAME):
        yield Check("engine", Outcome.OK, "not made yet; the first use does")
        return
    machine = registry.find(config.paths, NAME)
    failure = machine.state.failure
    if failure is not None:
        fix = f"{failure.hint}; `atoll docker start` tries again".removeprefix("; ")
        yield Check("engine", Outcome.FAIL, f"{machine.state.phase}: {failure.message}", fix)
    else:
        yield Check("engine", Outcome.OK, f"{machine.state.phase}")


def _emulation(platforms: tuple[str, ...]) -> Check:
    wanted = PLATFORMS[FOREIGN[host_architecture()]]
    if wanted in platforms:
        return Check("emulation", Outcome.OK, f"{wanted} runs by qemu-user")
    finding = f"{wanted} does not run: the image lacks Debian's package {PACKAGE}"
    return Check("emulation", Outcome.NOTE, finding, f"{_BUILD}, and `atoll docker restart`")


def check_directories(config: Config) -> Iterator[Check]:
    """What is to be shared with the engine."""
    for path in config.docker_shares:
        if not path.is_dir():
            fix = "make it, or take it out of docker_shares"
            yield Check("docker-share", Outcome.NOTE, f"there is no directory {path}: it is not shared", fix)
    there = [str(path) for path in config.docker_shares if path.is_dir()]
    if not there:
        return
    try:
        serving.check()
    except AtollError as error:
        finding = f"the engine does not start with {', '.join(there)} to share: {error.message}"
        yield Check("docker-share", Outcome.NOTE, finding, f"{error.hint}; or set docker_shares to none")
    else:
        yield Check("docker-share", Outcome.OK, ", ".join(there))


#: In the order in which they are shown.
CHECKS = (check_client, check_context, check_socket, check_engine, check_directories)
