"""What containers publish: ports of this host, and names. Pure; the engine's answers are not trusted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import msgspec

from atoll.errors import EngineError
from atoll.vm.network.hostnames import on_host
from atoll.vm.network.naming import Service

__all__ = ["DOMAIN", "Container", "Mount", "Publication", "decode", "names", "publications", "services"]

#: Where names of containers and of machines live: ICANN keeps ``internal`` for private use.
DOMAIN = "atoll.internal"

#: So many ports at most, since a guest could ask for each there is.
_MOST = 1024

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

_Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class _Published(msgspec.Struct, frozen=True, rename="pascal"):
    private_port: _Port
    type: str
    public_port: _Port = 0
    ip: str = msgspec.field(name="IP", default="")


class Mount(msgspec.Struct, frozen=True, rename="pascal"):
    """What is mounted into a container: of the type ``bind`` a path of the machine's."""

    type: str = ""
    source: str = ""


class _Endpoint(msgspec.Struct, frozen=True):
    four: str = msgspec.field(name="IPAddress", default="")
    six: str = msgspec.field(name="GlobalIPv6Address", default="")


class _Settings(msgspec.Struct, frozen=True):
    networks: dict[str, _Endpoint] | None = msgspec.field(name="Networks", default=None)


class Container(msgspec.Struct, frozen=True):
    """One that runs, as ``GET /containers/json`` tells it (Docker Engine API 1.45)."""

    id: str = msgspec.field(name="Id")
    names: tuple[str, ...] = msgspec.field(name="Names", default=())
    ports: tuple[_Published, ...] = msgspec.field(name="Ports", default=())
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    settings: _Settings = msgspec.field(name="NetworkSettings", default=_Settings())
    mounts: tuple[Mount, ...] = msgspec.field(name="Mounts", default=())

    @property
    def name(self) -> str:
        """What it is called; its id if it has no name."""
        return next((name.lstrip("/") for name in self.names), self.id[:12])

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the guest reaches it: of its networks in the order of their names, IPv4 first."""
        endpoints = [endpoint for _, endpoint in sorted((self.settings.networks or {}).items())]
        given = [*(one.four for one in endpoints), *(one.six for one in endpoints)]
        return tuple(address for address in given if _is_address(address))


class Publication(msgspec.Struct, frozen=True, order=True):
    """A port of this host that leads to one of a container.

    Attributes:
        protocol: ``tcp`` or ``udp``.
        host: address of this host.
        port: of this host.
        address: of the container, as the guest reaches it.
        private: the container's port.
        container: its name.
    """

    protocol: str
    host: str
    port: int
    address: str
    private: int
    container: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.protocol}"


def decode(answer: bytes) -> tuple[Container, ...]:
    """The containers that run. Raises ``EngineError``: ``engine.answer``: that is no such list."""
    try:
        return msgspec.json.decode(answer, type=tuple[Container, ...])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineError(f"dockerd's list of containers: {error}", code="answer") from error


def publications(containers: Iterable[Container], *, lan: bool) -> tuple[Publication, ...]:
    """The ports of this host that are wanted, without repetition, in order.

    Args:
        containers: those that run.
        lan: a port for which the user named no address is for other hosts, too.
    """
    found = {
        (port.type, host, port.public_port): Publication(
            port.type, host, port.public_port, one.addresses[0], port.private_port, one.name
        )
        for one in containers
        for port in one.ports
        if port.public_port and port.private_port and port.type in {"tcp", "udp"} and one.addresses
        for host in [_host(port.ip, lan=lan)]
        if host
    }
    return tuple(sorted(found.values())[:_MOST])


def _host(given: str, *, lan: bool) -> str:
    """On which address to listen for what the engine listens for on ``given``; empty if that is none."""
    try:
        address = ipaddress.ip_address(given or "0.0.0.0")  # noqa: S104 - what an empty one means
    except ValueError:
        return ""
    if not address.is_unspecified or lan:
        return str(address)
    return "127.0.0.1" if address.version == 4 else "::1"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def names(containers: Iterable[Container]) -> Mapping[str, tuple[str, ...]]:
    """The names of containers and of Compose's services, and the addresses behind each.

    A service has those of all its containers: the name goes with the last one.
    """
    found: dict[str, set[str]] = {}
    for one in containers:
        for name in _called(one):
            found.setdefault(f"{name}.{DOMAIN}", set()).update(one.addresses)
    return {name: tuple(sorted(found[name])) for name in sorted(found) if found[name]}


def services(containers: Iterable[Container], *, machine: str, lan: bool) -> tuple[Service, ...]:
    """The same names for other machines, which reach what a container publishes at the engine's machine.

    Each name is there with the machine's behind it, too, where no other can be in its way.

    Args:
        containers: those that run.
        machine: the engine's, which has the containers.
        lan: as for ``publications``.
    """
    found: dict[str, set[str]] = {}
    for one in containers:
        hosts = {publication.host for publication in publications([one], lan=lan)}
        for name in _called(one):
            for each in (name, f"{name}.{machine}"):
                found.setdefault(each, set()).update(hosts)
    reached = {name: tuple(sorted(map(_reached_at, hosts))) for name, hosts in found.items()}
    return tuple(Service(name, reached[name]) for name in sorted(reached)[:_MOST])


def _called(one: Container) -> Iterator[str]:
    """What a container is called, and the service of Compose that it is of."""
    labels = one.labels or {}
    service, project = (labels.get(f"com.docker.compose.{key}", "") for key in ("service", "project"))
    for parts in ((one.name,), (service, project)):
        words = [part.lower().replace("_", "-") for part in parts]
        if all(_LABEL.fullmatch(word) for word in words):
            yield ".".join(words)


def _reached_at(host: str) -> str:
    """Where a program of this host connects to what listens at ``host``."""
    return str(on_host(host))
