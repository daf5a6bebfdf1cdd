"""Networks and the machines on them."""

from __future__ import annotations

import contextlib

from msgspec.structs import replace

from atoll import runtime, store
from atoll.config import Config
from atoll.errors import StoreError
from atoll.machine import registry
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.paths import Paths
from atoll.vm.bootplan import BootPlan
from atoll.vm.network.attachment import DEFAULT
from atoll.vm.state import Phase, StateError

__all__ = ["on_network", "require_movable", "users_of"]

#: In which a machine has a card that cannot be moved now.
_BUSY = (Phase.PAUSED, Phase.STARTING, Phase.STOPPING)


def on_network(config: Config, spec: MachineSpec, network: str) -> MachineSpec:
    """``spec`` on the network of that name. Raises as ``runtime.named_network``."""
    _, lan = runtime.named_network(config, network)
    return replace(spec, network=True, slirp=False, lan=lan if lan != DEFAULT else "")


def require_movable(machine: Named) -> None:
    """See that a machine is at rest, or runs. Raises ``StateError``: ``state.active``."""
    if machine.state.phase in _BUSY:
        message = f"{machine.name} is {machine.state.phase}: it cannot be moved to another network"
        raise StateError(
            message, code="active", hint=f"try it again when `atoll wait {machine.name}` says so"
        )


def users_of(paths: Paths, network: str) -> tuple[str, ...]:
    """Machines that are on a network, or will be when they are started."""
    machines = (entry.machine for entry in registry.listed(paths) if entry.machine is not None)
    return tuple(one.name for one in machines if network in _networks_of(one))


def _networks_of(machine: Named) -> set[str]:
    """What it was asked to be on, and where it is: an ``edit`` waits for its next start."""
    found = {machine.spec.on}
    if machine.state.active:
        with contextlib.suppress(StoreError):
            plan = store.read_record(machine.place.boot, BootPlan)
            found |= {plan.attachment.network.name} if plan.attachment is not None else set()
    return found
