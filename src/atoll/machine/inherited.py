"""What commands in a machine get of its image, and of what it took over of this host when it was started."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from atoll.guest.commands import Defaults
from atoll.image.oci.command import environment_of, workdir_of
from atoll.image.oci.runconfig import RunConfig
from atoll.paths import VmPaths
from atoll.vm.inheriting.inheritance import Inheritance

__all__ = ["defaults", "inherited"]

T = TypeVar("T")


class _Setup(msgspec.Struct, frozen=True):
    inherited: Inheritance | None = None


class _Plan(msgspec.Struct, frozen=True):
    """As much of a ``BootPlan`` as matters here: this is read for each command."""

    setup: _Setup = _Setup()


class _Image(msgspec.Struct, frozen=True):
    """Likewise of an ``ImageManifest``."""

    run: RunConfig | None = None


def inherited(place: VmPaths) -> Inheritance:
    """What it took over, by its plan; nothing if it was never started, or its plan cannot be read."""
    return _read(place.boot, _Plan()).setup.inherited or Inheritance()


def defaults(place: VmPaths) -> Defaults:
    """What its image says of commands, but not whose they are: a machine is its owner's."""
    run = _read(place.image, _Image()).run
    if run is None:
        return Defaults()
    return Defaults(env=environment_of(run), workdir=workdir_of(run) if run.working_dir else None)


def _read(path: Path, default: T) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(default))
    except (OSError, msgspec.DecodeError):
        return default
