"""How the content of a volume is reached, and which volumes have none. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

import msgspec

from atoll.containers.migration.inventory import Container, Volume
from atoll.containers.migration.translating import Place

__all__ = ["Via", "is_definition", "losses", "obstacle", "via"]

#: Files that an engine mounts into each container that has run.
_OWN_FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class Via(msgspec.Struct, frozen=True):
    """A container at the source, and the path at which it has the volume; ``running`` if it may write."""

    container: str
    path: str
    running: bool = False


def is_definition(volume: Volume) -> bool:
    """Whether it has no content of its own: it names a device, a directory or a server that has."""
    return bool(volume.options.get("device") or volume.options.get("type"))


def obstacle(volume: Volume, place: Place) -> tuple[str, str] | None:
    """Why it cannot be at the target, a code and words; None if it can."""
    if volume.driver != "local":
        return "driver", f"its driver is {volume.driver}"
    device = volume.options.get("device", "")
    binds = "bind" in volume.options.get("o", "").split(",")
    if binds and device not in place.present:
        return "bind_missing", f"it stands for {device}, which this host does not have"
    if binds and not place.reaches(device):
        return "bind_unshared", f"it stands for {device}, which is not shared: see the setting docker_shares"
    if not binds and device.startswith("/dev/"):
        return "device", f"it stands for the device {device} of its host"
    if not is_definition(volume) and volume.options:
        return "options", "its options limit its size, which this engine's storage cannot"
    return None


def losses(volume: Volume, *, running: bool) -> tuple[str, ...]:
    """What of it is not carried."""
    if is_definition(volume):
        return ("what is in it lies elsewhere, and stays there",)
    return ("a container writes to it meanwhile: what changes while it is read",) if running else ()


def via(name: str, containers: Iterable[Container]) -> Via | None:
    """Through which container a volume is read: it shows all of it and nothing else; stopped ones first."""
    found = []
    for container in containers:
        limited = {
            str(one.get("Target"))
            for one in container.host.get("Mounts") or ()
            if (one.get("VolumeOptions") or {}).get("Subpath")
        }
        places = [_clean(one.get("Destination")) for one in container.mounts]
        for one in container.mounts:
            place = _clean(one.get("Destination"))
            if one.get("Type") != "volume" or one.get("Name") != name or place in limited:
                continue
            if not any(other.startswith(f"{place}/") for other in (*places, *_tmpfs(container), *_OWN_FILES)):
                found.append(Via(container.id, place, container.state in {"running", "restarting"}))
    return min(found, key=lambda one: (one.running, one.container), default=None)


def _tmpfs(container: Container) -> tuple[str, ...]:
    return tuple(map(_clean, container.host.get("Tmpfs") or ()))


def _clean(path: object) -> str:
    return posixpath.normpath(str(path))
