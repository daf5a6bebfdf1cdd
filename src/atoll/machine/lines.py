"""Captures and shapes of the link to a machine."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.config import Config
from atoll.errors import UsageError
from atoll.machine.planning import attachment_of
from atoll.machine.registry import Named
from atoll.network import pcapng
from atoll.paths import NetworkPaths
from atoll.vm.network.capture import Frames

__all__ = ["frames_of", "network_of"]


def network_of(config: Config, machine: Named) -> NetworkPaths:
    """The network that a machine's card is plugged into when it runs."""
    return NetworkPaths(attachment_of(config, machine.place.directory.name, machine.spec).network)


def frames_of(
    config: Config, machines: Sequence[Named], *, snap: int = pcapng.LARGEST, count: int = 0
) -> Frames:
    """What passes at the cards of machines, to be captured.

    Raises:
        UsageError: ``usage.capture``: they are on different networks, or ``snap`` cannot be.
    """
    networks = {network_of(config, machine) for machine in machines}
    if len(networks) > 1:
        hint = "capture each network's by themselves; mergecap(1) makes one file of several"
        raise UsageError("the machines are on different networks", code="capture", hint=hint)
    owners = [(machine.spec.id, machine.place.directory.name) for machine in machines]
    return Frames(networks.pop(), owners, snap=snap, count=count)
