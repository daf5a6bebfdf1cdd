"""What a guest takes over on the network that it is on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from atoll import store
from atoll.events import Emit, ignore
from atoll.paths import NetworkPaths
from atoll.vm.inheriting.found import found, proxies
from atoll.vm.inheriting.inheritance import Inheritance
from atoll.vm.network.records import DOMAIN, Network

__all__ = ["inherited", "open_ports"]

#: What a guest calls this host on the networks of Atoll's own, and the address that it has on QEMU's.
_HOST: Final = f"host.{DOMAIN}"
_USER_HOST, _USER_NETWORK = "10.0.2.2", "10.0.2.0/24"


def inherited(
    files: Sequence[Path], place: NetworkPaths | None, *, proxied: bool = True, emit: Emit = ignore
) -> Inheritance:
    """What a guest takes over of this host.

    Args:
        files: of certificates, that the settings name.
        place: of its network, which was used before; None for QEMU's.
        proxied: whether it takes over proxies: to one who is held to a policy they would be a way around it.
        emit: told of what is left out.

    Raises:
        ConfigError: as ``found.found``.
        StoreError: the network has no record, or a damaged one.
    """
    if place is None:
        host, network = _USER_HOST, _USER_NETWORK
    else:
        host, network = _HOST, store.read_record(place.record, Network).ipv4
    return found(files, host=host, network=network, domain=DOMAIN, proxied=proxied, emit=emit)


def open_ports() -> tuple[int, ...]:
    """Ports of this host's loopback where its proxies listen: guests that have those need them."""
    return proxies(os.environ, host=_HOST, network=_USER_NETWORK, domain=DOMAIN).ports
