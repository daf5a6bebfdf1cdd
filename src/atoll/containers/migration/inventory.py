"""What an engine holds: read by questions that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from atoll.containers.migration.remote import Remote
from atoll.errors import EngineError

__all__ = ["LABEL", "Container", "Image", "Inventory", "Network", "Other", "Volume", "image", "read"]

#: Marks containers and images that a migration makes for itself and takes away again: they do not count.
LABEL = "dev.atoll.migration"

#: Made by engines themselves.
_PREDEFINED = frozenset({"bridge", "host", "none", "docker_gwbridge"})

_UNTAGGED = "<none>"


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image.

    Attributes:
        id: of its engine: the digest of its configuration, or of its manifest.
        tags: names.
        digests: names by which registries know it.
        size: bytes.
        layers: digests of its layers, the lowest first.
        os: of its programs; ``architecture`` likewise.
        created: when it was made.
        config: what its containers get.
    """

    id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    layers: tuple[str, ...] = ()
    os: str = "linux"
    architecture: str = ""
    created: str = ""
    config: dict[str, Any] = {}


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume; ``size`` in bytes, -1 if the engine does not tell."""

    name: str
    driver: str = "local"
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    created: str = ""
    size: int = -1


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network that a user made; ``wanted`` is what makes it again (``POST /networks/create``)."""

    id: str
    name: str
    driver: str = "bridge"
    scope: str = "local"
    special: str = ""
    wanted: dict[str, Any] = {}

    @property
    def subnets(self) -> tuple[str, ...]:
        """Its ranges of addresses."""
        ranges = (self.wanted.get("IPAM") or {}).get("Config") or ()
        return tuple(one["Subnet"] for one in ranges if one.get("Subnet"))


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A container; ``image`` is an id, ``inspected`` all that the engine tells of it."""

    id: str
    name: str
    image: str
    inspected: dict[str, Any] = {}

    @property
    def state(self) -> str:
        """Such as running or exited."""
        return str((self.inspected.get("State") or {}).get("Status") or "")

    @property
    def host(self) -> dict[str, Any]:
        """What was asked of the host."""
        return self.inspected.get("HostConfig") or {}

    @property
    def mounts(self) -> tuple[dict[str, Any], ...]:
        """What is mounted in it."""
        return tuple(self.inspected.get("Mounts") or ())


class Other(msgspec.Struct, frozen=True):
    """Something else that an engine has: a swarm's service, a plugin."""

    kind: str
    name: str


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine holds.

    Attributes:
        id: of the engine.
        name: of its host.
        version: of the engine.
        architecture: of its machine, as in images.
        cpus: of its machine; 0 if unknown.
        runtimes: of containers; None if unknown.
        logs: drivers of logs; None if unknown.
        subnets: ranges of the networks that it made itself.
        others: what is never carried.
    """

    id: str
    name: str = ""
    version: str = ""
    architecture: str = ""
    cpus: int = 0
    runtimes: tuple[str, ...] | None = None
    logs: tuple[str, ...] | None = None
    subnets: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    volumes: tuple[Volume, ...] = ()
    networks: tuple[Network, ...] = ()
    containers: tuple[Container, ...] = ()
    others: tuple[Other, ...] = ()


async def read(remote: Remote, *, sizes: bool = False) -> Inventory:
    """What the engine holds now; ``sizes`` of volumes, too, for which it looks at each of their files.

    Raises:
        EngineError: it cannot be reached, or answers what cannot be understood.
    """
    try:
        return await _read(remote, sizes=sizes)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        message = f"{remote.name} describes itself in a way that is not understood: {error!r}"
        raise EngineError(message, code="answer") from error


async def _read(remote: Remote, *, sizes: bool) -> Inventory:
    info = await remote.ask("GET", "/info")
    version = await remote.ask("GET", "/version")
    networks = await remote.ask("GET", "/networks")
    predefined = [_network(one) for one in networks if one["Name"] in _PREDEFINED]
    return Inventory(
        id=str(info["ID"]),
        name=str(info.get("Name") or ""),
        version=str(info.get("ServerVersion") or ""),
        architecture=str(version.get("Arch") or ""),
        cpus=int(info.get("NCPU") or 0),
        runtimes=tuple(sorted(info.get("Runtimes") or ())),
        logs=tuple((info.get("Plugins") or {}).get("Log") or ()),
        subnets=tuple(subnet for one in predefined for subnet in one.subnets),
        images=tuple([one async for one in _each(remote, "/images/json", "/images/{}/json", image)]),
        volumes=await _volumes(remote, sizes=sizes),
        networks=tuple(
            sorted(
                (_network(one) for one in networks if one["Name"] not in _PREDEFINED),
                key=lambda one: one.name,
            )
        ),
        containers=tuple(
            [
                one
                async for one in _each(
                    remote, "/containers/json?all=1", "/containers/{}/json?size=1", _container
                )
            ]
        ),
        others=tuple([one async for one in _others(remote, info)]),
    )


async def _each(remote: Remote, listing: str, single: str, make: Any) -> Any:
    """All of one kind, in the order of their ids; what goes meanwhile is left out."""
    listed = await remote.ask("GET", listing)
    for number in sorted({str(one["Id"]) for one in listed}):
        try:
            found = await remote.ask("GET", single.format(number))
        except EngineError as error:
            if error.code != "engine.not_found":
                raise
        else:
            if LABEL not in ((found.get("Config") or {}).get("Labels") or {}):
                yield make(found)


def image(found: dict[str, Any]) -> Image:
    """An image as `GET /images/{name}/json` tells it."""
    config = found.get("Config") or found.get("ContainerConfig") or {}
    return Image(
        id=found["Id"],
        tags=tuple(sorted(tag for tag in found.get("RepoTags") or () if _UNTAGGED not in tag)),
        digests=tuple(sorted(name for name in found.get("RepoDigests") or () if _UNTAGGED not in name)),
        size=int(found.get("Size") or 0),
        layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
        os=str(found.get("Os") or "linux"),
        architecture=str(found.get("Architecture") or ""),
        created=str(found.get("Created") or ""),
        config=config,
    )


async def _volumes(remote: Remote, *, sizes: bool) -> tuple[Volume, ...]:
    listed = (await remote.ask("GET", "/volumes")).get("Volumes") or ()
    known: dict[str, int] = {}
    if sizes and listed:
        used = await remote.ask("GET", "/system/df", params={"type": "volume"})
        for one in used.get("Volumes") or ():
            known[one["Name"]] = int((one.get("UsageData") or {}).get("Size", -1))
    volumes = (
        Volume(
            name=one["Name"],
            driver=one.get("Driver") or "local",
            options=one.get("Options") or {},
            labels=one.get("Labels") or {},
            created=one.get("CreatedAt") or "",
            size=known.get(one["Name"], -1),
        )
        for one in listed
    )
    return tuple(sorted(volumes, key=lambda one: one.name))


def _network(found: dict[str, Any]) -> Network:
    address = found.get("IPAM") or {}
    ranges = [{key: value for key, value in one.items() if value} for one in address.get("Config") or ()]
    ipam = {"Driver": address.get("Driver") or "default", "Config": ranges}
    if address.get("Options"):
        ipam["Options"] = address["Options"]
    special = ""
    if found.get("Ingress"):
        special = "it is a swarm's"
    elif found.get("ConfigOnly") or (found.get("ConfigFrom") or {}).get("Network"):
        special = "it is or uses a configuration without a network"
    return Network(
        id=found["Id"],
        name=found["Name"],
        driver=found.get("Driver") or "bridge",
        scope=found.get("Scope") or "local",
        special=special,
        wanted={
            "Name": found["Name"],
            "Driver": found.get("Driver") or "bridge",
            "Internal": bool(found.get("Internal")),
            "Attachable": bool(found.get("Attachable")),
            "EnableIPv6": bool(found.get("EnableIPv6")),
            "IPAM": ipam,
            "Options": found.get("Options") or {},
            "Labels": found.get("Labels") or {},
        },
    )


def _container(found: dict[str, Any]) -> Container:
    return Container(
        id=found["Id"], name=str(found["Name"]).lstrip("/"), image=str(found["Image"]), inspected=found
    )


async def _others(remote: Remote, info: dict[str, Any]) -> Any:
    for one in await _optional(remote, "/plugins"):
        yield Other("plugin", str(one.get("Name") or one.get("Id")))
    swarm = info.get("Swarm") or {}
    if swarm.get("ControlAvailable"):
        for kind in ("service", "secret", "config"):
            for one in await _optional(remote, f"/{kind}s"):
                yield Other(f"swarm {kind}", str((one.get("Spec") or {}).get("Name") or one["ID"]))
    elif swarm.get("LocalNodeState") == "active":
        yield Other("swarm", str(swarm.get("NodeID")))


async def _optional(remote: Remote, path: str) -> Iterator[dict[str, Any]]:
    """A list that some engines do not have."""
    try:
        return iter(await remote.ask("GET", path) or ())
    except EngineError as error:
        if error.code == "engine.unreachable":
            raise
        return iter(())
