"""Under which hosts and names a repository is to be found: its registry, and mirrors before it. Pure."""

from __future__ import annotations

import msgspec

from atoll.image.oci.reference import HUB, Reference
from atoll.registries import Registries, RegistrySettings, is_loopback

__all__ = ["Place", "api_host", "is_lenient", "own_place", "places_of", "said_of"]

#: The host behind the default registry's name.
_HUB_HOST = f"registry-1.{HUB}"


class Place(msgspec.Struct, frozen=True):
    """A repository at one host.

    Attributes:
        registry: ``HOST[:PORT]`` as the user says it, under which credentials are kept.
        repository: its name there.
    """

    registry: str
    repository: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}"

    def path(self, kind: str, last: str) -> str:
        """The path of a ``kind`` of thing in it, such as ``manifests`` or ``blobs``."""
        return f"/v2/{self.repository}/{kind}/{last}"

    def scope(self, actions: str = "pull") -> str:
        """What a token must allow for it (Docker's token specification)."""
        return f"repository:{self.repository}:{actions}"


def own_place(reference: Reference) -> Place:
    """The registry that a reference names."""
    return Place(reference.domain, reference.path)


def places_of(reference: Reference, registries: Registries) -> tuple[Place, ...]:
    """Where an image is asked for: mirrors in their order, then its own registry."""
    found = []
    for mirror in said_of(registries, reference.domain).mirrors:
        host, _, prefix = mirror.partition("/")
        found.append(Place(host, "/".join(filter(None, (prefix.strip("/"), reference.path)))))
    return (*found, own_place(reference))


def api_host(registry: str) -> str:
    """The host that answers for a registry."""
    return _HUB_HOST if registry == HUB else registry


def said_of(registries: Registries, host: str) -> RegistrySettings:
    """What is said of ``HOST:PORT``, or else of ``HOST``; of the registry, for the host behind its name."""
    host = HUB if host == _HUB_HOST and host not in registries else host
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return registries.get(host) or registries.get(name) or RegistrySettings()


def is_lenient(registries: Registries, host: str) -> bool:
    """Whether a host need not prove who it is."""
    said = said_of(registries, host)
    return is_loopback(host) and said.ca is None if said.insecure is None else said.insecure
