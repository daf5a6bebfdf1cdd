"""Changes to a machine that hold at once where it runs, and at its next starts in any case.

These are shares, sizes and egress.

It is recorded twice: in the spec, for the next start, and in the plan of the VM that runs, which counts when
the guest reboots. Nothing else of the plan is made anew: an ``edit`` waits for a start.
"""

from __future__ import annotations

import os

import msgspec

from atoll import store
from atoll.config import Config, override, parse_memory
from atoll.errors import UsageError
from atoll.machine.spec import MachineSpec, Share, check_guest_path
from atoll.paths import VmPaths
from atoll.vm import serving
from atoll.vm.bootplan import BootPlan

__all__ = [
    "LATER",
    "NOW",
    "is_held",
    "make_share",
    "parse_target",
    "replan",
    "sized",
    "with_share",
    "without_share",
]

#: How a change took effect.
NOW, LATER = "now", "at the next start"


def make_share(host: str | os.PathLike[str], guest: str, *, read_only: bool) -> Share:
    """A share of a directory that is there.

    Raises:
        UsageError: ``usage.mount``: there is no such directory, or that is no place in a guest.
        PreflightError: this host cannot share directories.
    """
    serving.check()
    path = os.path.abspath(os.path.expanduser(host))
    if not os.path.isdir(path):
        raise UsageError(f"there is no directory {path}", code="mount", hint="make it, or name another one")
    return Share(path, check_guest_path(guest), read_only)


def with_share(spec: MachineSpec, share: Share) -> MachineSpec:
    """``spec`` with one more share. Raises ``UsageError``: ``usage.mount``: its place is taken."""
    if any(known.guest == share.guest for known in spec.shares):
        hint = "take that away first, or choose another place"
        raise UsageError(f"{share.guest} is a share already", code="mount", hint=hint)
    return msgspec.structs.replace(spec, shares=(*spec.shares, share))


def without_share(spec: MachineSpec, guest: str) -> MachineSpec:
    """``spec`` without the share at ``guest``. Raises ``UsageError``: ``usage.mount``: there is none."""
    place = check_guest_path(guest)
    left = tuple(share for share in spec.shares if share.guest != place)
    if len(left) == len(spec.shares):
        listed = ", ".join(share.guest for share in spec.shares) or "it has none"
        raise UsageError(f"{place} is no share", code="mount", hint=f"its shares: {listed}")
    return msgspec.structs.replace(spec, shares=left)


def sized(config: Config, spec: MachineSpec, *, cpus: object, memory: object) -> MachineSpec:
    """``spec`` with so many vCPUs and so much memory; None leaves what is. Raises ``ConfigError``."""
    wishes = {"cpus": cpus, "memory": memory}
    settings = override(config, {name: value for name, value in wishes.items() if value is not None})
    return msgspec.structs.replace(
        spec,
        cpus=spec.cpus if cpus is None else settings.cpus,
        memory=spec.memory if memory is None else settings.memory,
    )


def is_held(place: VmPaths) -> bool:
    """Whether the VM that runs has a network that can hold it to a policy. Raises ``StoreError``."""
    return store.read_record(place.boot, BootPlan).attachment is not None


def parse_target(size: str | int) -> int:
    """What the balloon shall leave, bytes. Raises ``UsageError``: ``usage.memory``."""
    try:
        return size if isinstance(size, int) else parse_memory(size)
    except ValueError as error:
        raise UsageError(f"{size!r} is no size of memory", code="memory", hint=str(error)) from error


def replan(place: VmPaths, spec: MachineSpec) -> None:
    """Have the guest get what ``spec`` says of shares, sizes and egress when it reboots.

    Raises ``StoreError``.
    """
    plan = store.read_record(place.boot, BootPlan)
    setup = msgspec.structs.replace(plan.setup, shares=spec.shares)
    machine = msgspec.structs.replace(plan.machine, vcpus=spec.cpus, memory=spec.memory)
    attachment = plan.attachment
    if attachment is not None:
        attachment = msgspec.structs.replace(attachment, egress=spec.egress)
    changed = msgspec.structs.replace(
        plan, setup=setup, machine=machine, disk=spec.disk, attachment=attachment
    )
    store.write_record(place.boot, changed)
