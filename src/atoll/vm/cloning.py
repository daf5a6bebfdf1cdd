"""Who a clone is: pure, but for the clock and the random numbers that it is given."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import msgspec

from atoll.guest.messages import CloneBegin
from atoll.hypervisor.model import Machine
from atoll.vm.identity import new_mac

__all__ = ["copied_identity", "identity_of", "new_identity", "renamed", "renewed_identity"]

#: What tells one machine from its copy.
_OWN = ("hostname", "machine_id")

#: Bytes of seed: as much as the guest's generator takes in at once, and as much again.
_SEED = 64


def new_identity(machine: Machine, *, growth: int = 0) -> CloneBegin:
    """A sandbox: nothing of it is its sibling's. It will have ``growth`` bytes of memory more at once."""
    return CloneBegin(
        realtime=time.time_ns(),
        seed=os.urandom(_SEED),
        mac=new_mac() if machine.mac else "",
        hostname=machine.name,
        machine_id=os.urandom(16).hex(),
        growth=growth,
    )


def renewed_identity() -> CloneBegin:
    """A guest that stood still: it is who it was, at another time."""
    return CloneBegin(realtime=time.time_ns(), seed=os.urandom(_SEED))


def identity_of(machine: Machine) -> CloneBegin:
    """A machine that goes on from a boot that is held: what else its kernel's command line would tell it."""
    return msgspec.structs.replace(renewed_identity(), mac=machine.mac, **_told(machine))


def copied_identity(machine: Machine) -> CloneBegin:
    """A machine that goes on where another one was: it has its root, and another name."""
    told = {name: value for name, value in _told(machine).items() if name in _OWN}
    return msgspec.structs.replace(renewed_identity(), mac=machine.mac, **told)


def renamed(machine: Machine, own: Mapping[str, str]) -> Machine:
    """``machine`` with a kernel's command line that tells of another identity."""
    said = tuple(
        item for item in machine.cmdline if item.partition("=")[0].removeprefix("atoll.") not in _OWN
    )
    return msgspec.structs.replace(
        machine, cmdline=(*said, *(f"atoll.{name}={own[name]}" for name in _OWN if name in own))
    )


def _told(machine: Machine) -> dict[str, str]:
    """What the kernel's command line tells the agent."""
    ours = (item.removeprefix("atoll.") for item in machine.cmdline if item.startswith("atoll."))
    return dict(item.split("=", 1) for item in ours)
