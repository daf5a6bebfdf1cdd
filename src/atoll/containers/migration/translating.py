"""A container as one engine describes it, and what makes it again at another. Pure.

Field names are of the Docker Engine API 1.45: `GET /containers/{id}/json` and `POST /containers/create`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from atoll.containers.migration.inventory import Container, Inventory

__all__ = ["Place", "bind_sources", "body", "losses", "obstacles", "partners", "volumes"]

#: Sockets of an engine: in Atoll's machine its own is at these places.
_ENGINE_SOCKETS = frozenset({"/var/run/docker.sock", "/run/docker.sock"})

#: Networks without an address of the container's own.
_BARE = frozenset({"host", "none"})
_DEFAULT_NETWORKS = frozenset({"default", "bridge", "", *_BARE})

_SHARING = ("NetworkMode", "PidMode", "IpcMode")
_OF_CONTAINER = "container:"


class Place(msgspec.Struct, frozen=True):
    """What of this host containers at the target can have.

    Attributes:
        shares: directories that they see at the same path.
        present: paths that exist, of those that ``bind_sources`` names.
    """

    shares: tuple[str, ...] = ()
    present: frozenset[str] = frozenset()

    def reaches(self, path: str) -> bool:
        """Whether a path is below a shared directory."""
        return any(path == share or path.startswith(share.rstrip("/") + "/") for share in self.shares)


def bind_sources(container: Container) -> tuple[str, ...]:
    """The host's paths that are mounted in it."""
    binds = (str(bind).partition(":")[0] for bind in container.host.get("Binds") or ())
    mounts = (
        str(one.get("Source"))
        for one in container.host.get("Mounts") or ()
        if one.get("Type") in {"bind", "npipe"}
    )
    return tuple(sorted({*(path for path in binds if path.startswith("/")), *mounts}))


def volumes(container: Container) -> tuple[str, ...]:
    """The names of its volumes."""
    return tuple(sorted({str(one["Name"]) for one in container.mounts if one.get("Type") == "volume"}))


def partners(container: Container, names: Mapping[str, str]) -> tuple[str, ...]:
    """Containers, by name, that must be there before it; ``names`` are all containers' by their ids."""
    found = set()
    for key in _SHARING:
        mode = str(container.host.get(key) or "")
        if mode.startswith(_OF_CONTAINER):
            found.add(_partner(mode.removeprefix(_OF_CONTAINER), names))
    for one in container.host.get("VolumesFrom") or ():
        found.add(_partner(str(one).partition(":")[0], names))
    for one in container.host.get("Links") or ():
        found.add(_partner(str(one).partition(":")[0].lstrip("/"), names))
    return tuple(sorted(found))


def _partner(given: str, names: Mapping[str, str]) -> str:
    """A container's name, out of its name or its id or the beginning of it."""
    if given in names.values():
        return given
    return next((name for number, name in names.items() if given and number.startswith(given)), given)


def obstacles(container: Container, target: Inventory, place: Place) -> Iterator[tuple[str, str]]:
    """Why it cannot be at the target: a code and words for each reason."""
    labels = (container.inspected.get("Config") or {}).get("Labels") or {}
    if "com.docker.swarm.service.id" in labels:
        yield "swarm", "it is a task of a swarm's service"
    for path in bind_sources(container):
        if path in _ENGINE_SOCKETS:
            continue
        if path not in place.present:
            yield "bind_missing", f"it mounts {path}, which this host does not have"
        elif not place.reaches(path):
            yield "bind_unshared", f"it mounts {path}, which is not shared: see the setting docker_shares"
    yield from _hardware(container.host, target)
    yield from _engine(container.host, target)


def _hardware(host: dict[str, Any], target: Inventory) -> Iterator[tuple[str, str]]:
    if host.get("DeviceRequests"):
        yield "gpu", "it wants GPUs, and the machine has none"
    for device in host.get("Devices") or ():
        yield "device", f"it wants the device {device.get('PathOnHost')} of its host"
    cpus = int(host.get("NanoCpus") or 0) / 1e9
    if target.cpus and cpus > target.cpus:
        yield "cpus", f"it wants {cpus:g} CPUs and the machine has {target.cpus}: see the setting docker_cpus"


def _engine(host: dict[str, Any], target: Inventory) -> Iterator[tuple[str, str]]:
    runtime = host.get("Runtime") or "runc"
    if target.runtimes is not None and runtime not in target.runtimes:
        yield "runtime", f"its runtime is {runtime}"
    log = (host.get("LogConfig") or {}).get("Type") or "json-file"
    if log == "journald" or (target.logs is not None and log not in target.logs):
        yield "log_driver", f"its log driver is {log}"
    if host.get("StorageOpt"):
        yield "storage", "it limits its own file system, which this engine's storage cannot"
    if (host.get("VolumeDriver") or "local") != "local":
        yield "volume_driver", f"its volumes are made by {host['VolumeDriver']}"
    for option in host.get("SecurityOpt") or ():
        name, _, profile = str(option).replace(":", "=", 1).partition("=")
        if name == "apparmor" and profile not in {"unconfined", "docker-default"}:
            yield "apparmor", f"its AppArmor profile {profile} is its host's"


def losses(container: Container, *, start: bool) -> Iterator[str]:
    """What of a container that is carried is not."""
    changed = int(container.inspected.get("SizeRw") or 0)
    if changed:
        yield f"{changed} bytes that it wrote to its own file system, beside volumes"
    running = container.state in {"running", "paused", "restarting"}
    if running:
        yield "what its processes have in memory: " + ("they begin anew" if start else "it is not started")
    if running and container.host.get("Tmpfs"):
        yield "what is in its tmpfs"
    if start and running and container.host.get("PortBindings"):
        yield "its ports, as long as the source's container has them on this host"


def body(container: Container, names: Mapping[str, str], networks: Mapping[str, str]) -> dict[str, Any]:
    """What makes it at the target, all but its image.

    Args:
        container: as the source describes it.
        names: of all containers there, by their ids.
        networks: names of networks, by their ids.
    """
    config = copy.deepcopy(container.inspected.get("Config") or {})
    host = copy.deepcopy(container.host)
    host["NetworkMode"] = networks.get(str(host.get("NetworkMode")), host.get("NetworkMode") or "default")
    for key in _SHARING:
        mode = str(host.get(key) or "")
        if mode.startswith(_OF_CONTAINER):
            host[key] = _OF_CONTAINER + _partner(mode.removeprefix(_OF_CONTAINER), names)
    _rename_partners(host, names)
    _keep_volumes(container, host)
    host.pop("ContainerIDFile", None)
    _hostname(container, config, str(host["NetworkMode"]))
    mac = config.pop("MacAddress", "") or ""
    ends = _ends(container, str(host["NetworkMode"]), mac)
    return {
        **config,
        "HostConfig": host,
        **({"NetworkingConfig": {"EndpointsConfig": ends}} if ends else {}),
    }


def _rename_partners(host: dict[str, Any], names: Mapping[str, str]) -> None:
    """Links read ``/other:/this/alias`` where they are told, and ``other:alias`` where they are asked for."""
    if host.get("VolumesFrom"):
        parted = (str(one).partition(":") for one in host["VolumesFrom"])
        host["VolumesFrom"] = [_partner(given, names) + colon + mode for given, colon, mode in parted]
    if host.get("Links"):
        linked = (str(one).partition(":") for one in host["Links"])
        host["Links"] = [
            f"{_partner(given.lstrip('/'), names)}:{alias.rpartition('/')[2]}" for given, _, alias in linked
        ]


def _keep_volumes(container: Container, host: dict[str, Any]) -> None:
    """Name volumes that had been made without one: the target would make others."""
    mounts = {str(one.get("Target")): one for one in host.get("Mounts") or ()}
    bound = {str(bind).split(":")[1] for bind in host.get("Binds") or () if ":" in str(bind)}
    added = []
    for one in container.mounts:
        place = str(one.get("Destination"))
        if one.get("Type") != "volume" or place in bound or host.get("VolumesFrom"):
            continue
        if place in mounts:
            mounts[place]["Source"] = one["Name"]
        else:
            added.append(
                {
                    "Type": "volume",
                    "Source": one["Name"],
                    "Target": place,
                    "ReadOnly": not one.get("RW", True),
                }
            )
    if added:
        host["Mounts"] = [*(host.get("Mounts") or ()), *added]


def _hostname(container: Container, config: dict[str, Any], mode: str) -> None:
    """An engine names a container after its id unless it is told otherwise, or it has its host's name."""
    shared = mode == "host" or mode.startswith(_OF_CONTAINER) or container.host.get("UTSMode") == "host"
    if shared or config.get("Hostname") == container.id[:12]:
        config.pop("Hostname", None)
    if shared:
        config.pop("Domainname", None)
    if mode.startswith(_OF_CONTAINER):
        config.pop("ExposedPorts", None)


def _ends(container: Container, mode: str, mac: str) -> dict[str, Any]:
    """Its ends in networks, without what engines give by themselves."""
    if mode in _BARE or mode.startswith(_OF_CONTAINER):
        return {}
    found = (container.inspected.get("NetworkSettings") or {}).get("Networks") or {}
    ends: dict[str, Any] = {}
    for name, end in found.items():
        wanted = {
            "IPAMConfig": end.get("IPAMConfig") or None,
            "DriverOpts": end.get("DriverOpts") or None,
        }
        if name not in _DEFAULT_NETWORKS:
            wanted["Aliases"] = [one for one in end.get("Aliases") or () if one != container.id[:12]]
            links = (str(one).partition(":") for one in end.get("Links") or ())
            wanted["Links"] = [f"{given.lstrip('/')}:{alias.rpartition('/')[2]}" for given, _, alias in links]
        if mac and name in {mode, "bridge" if mode == "default" else mode}:
            wanted["MacAddress"] = mac
        ends[name] = {key: value for key, value in wanted.items() if value}
    return {} if ends == {"bridge": {}} else ends
