"""This host as the engine sees it: the names that lead to it, and what ``localhost`` in the settings means.

Settings are the host's, so its own loopback is meant by them: a registry or a proxy that listens there. In
the guest that is another address, which QEMU's user network leads to the host's 127.0.0.1.
"""

from __future__ import annotations

import ipaddress
import re

from atoll.errors import ConfigError
from atoll.vm.bootplan import user_network

__all__ = ["ADDRESS", "NAME", "NAMES", "NAMING", "address_inside", "registry_inside"]

#: The engine's machine.
NAME = "docker"

#: Where the guest reaches this host.
ADDRESS = user_network("").gateway

#: What it is called there; the first is also Docker Desktop's name for it.
NAMES = ("host.docker.internal", "host.atoll.internal")

#: For the guest's shell; may be run again.
NAMING = f"""\
for name in {" ".join(NAMES)}; do
    grep -q "[[:space:]]$name\\$" /etc/hosts || echo "{ADDRESS} $name" >> /etc/hosts
done
"""

_URL = re.compile(r"(?P<before>[a-z]+://(?:[^/@]*@)?)(?P<host>\[[^]/]*\]|[^/:?#]*)(?P<after>.*)", re.DOTALL)
_REGISTRY = re.compile(r"(?P<host>\[[^]/]*\]|[^/:]*)(?P<after>(?::[0-9]*)?)")


def address_inside(address: str) -> str:
    """An address (URL) of the settings as it is in the guest: that of ``localhost`` is this host's.

    Raises:
        ConfigError: ``config.engine``: it is of the loopback network, but not where the guest reaches it.
    """
    found = _URL.fullmatch(address)
    return address if found is None else f"{found['before']}{_inside(found['host'], address)}{found['after']}"


def registry_inside(registry: str) -> tuple[str, ...]:
    """The same for a registry, ``HOST[:PORT]``, by each name; a network (CIDR) stays. Raises as there."""
    found = _REGISTRY.fullmatch(registry)
    if found is None or _inside(found["host"], registry) == found["host"]:
        return (registry,)
    return tuple(f"{name}{found['after']}" for name in NAMES)


def _inside(host: str, meant: str) -> str:
    if host.lower() in {"localhost", "127.0.0.1"}:
        return NAMES[0]
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host
    if loopback:
        hint = "have it listen at 127.0.0.1, and write localhost"
        raise ConfigError(f"{meant}: the engine cannot reach {host} of this host", code="engine", hint=hint)
    return host
