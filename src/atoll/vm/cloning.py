"""Who a clone is: pure, but for the clock and the random numbers that it is given."""

from __future__ import annotations

import os
import time

import msgspec

from atoll.guest.messages import CloneBegin
from atoll.hypervisor.model import Machine
from atoll.vm.identity import new_mac

__all__ = ["identity_of", "new_identity", "renewed_identity"]

#: Bytes of seed: as much as the guest's generator takes in at once, and as much again.
_SEED = 64


def new_identity(machine: Machine, *, growth: int = 0) -> CloneBegin:
    """A sandbox: nothing of it is its sibling's. It will have ``growth`` bytes of memory more at once."""
    return CloneBegin(
        realtime=time.time_ns(),
        seed=os.urandom(_SEED),
        mac=new_mac() if machine.network is not None else "",
        hostname=machine.name,
        machine_id=os.urandom(16).hex(),
        growth=growth,
    )


def renewed_identity() -> CloneBegin:
    """A guest that stood still: it is who it was, at another time."""
    return CloneBegin(realtime=time.time_ns(), seed=os.urandom(_SEED))


def identity_of(machine: Machine) -> CloneBegin:
    """A machine that goes on from a boot that is held: what else its kernel's command line would tell it."""
    ours = (item.removeprefix("atoll.") for item in machine.cmdline if item.startswith("atoll."))
    told = dict(item.split("=", 1) for item in ours)
    mac = machine.network.mac if machine.network is not None else ""
    return msgspec.structs.replace(renewed_identity(), mac=mac, **told)
