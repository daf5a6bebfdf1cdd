"""What a machine took over of this host when it was started."""

from __future__ import annotations

import msgspec

from atoll.paths import VmPaths
from atoll.vm.inheriting.inheritance import Inheritance

__all__ = ["inherited"]


class _Setup(msgspec.Struct, frozen=True):
    inherited: Inheritance | None = None


class _Plan(msgspec.Struct, frozen=True):
    """As much of a ``BootPlan`` as matters here: this is read for each command."""

    setup: _Setup = _Setup()


def inherited(place: VmPaths) -> Inheritance:
    """It, by the machine's plan; nothing if it was never started, or its plan cannot be read."""
    try:
        plan = msgspec.json.decode(place.boot.read_bytes(), type=_Plan)
    except (OSError, msgspec.DecodeError):
        return Inheritance()
    return plan.setup.inherited or Inheritance()
