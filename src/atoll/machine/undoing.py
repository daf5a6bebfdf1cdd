"""The way back while a machine's disk is replaced: what it was, kept aside until the change has held.

Whatever is killed meanwhile, the next start finds either the disk that was, or a machine that has come up
with the new one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.machine.registry import Named
from atoll.paths import VmPaths
from atoll.vm.branching import finish_branch, link_into, link_layers
from atoll.vm.chain import Layer

__all__ = ["forget", "keep", "settle", "undo"]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that was.

    Attributes:
        layers: its frozen files, the lowest first.
        size: bytes.
        at: seconds since the epoch when it was kept.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    layers: tuple[Layer, ...]
    size: int
    at: float


def keep(place: VmPaths, layers: tuple[Layer, ...], size: int) -> None:
    """Keep the disk that has these frozen files, and nothing above them. Raises ``StoreError``."""
    forget(place)
    with store.staging(place.directory, place.before.name) as staged:
        link_layers(place, layers, VmPaths(staged))
        kept = _Kept(layers=layers, size=size, at=time.time())
        store.write_record(_record(VmPaths(staged)), kept)
        store.publish(staged, place.before)


def undo(place: VmPaths) -> None:
    """Give the machine the disk that was kept; nothing happens if none was. Raises ``StoreError``."""
    before = VmPaths(place.before)
    if not place.before.exists():
        return
    kept = store.read_record(_record(before), _Kept)
    link_into(before, kept.layers, place, kept.size)
    finish_branch(place)
    forget(place)


def forget(place: VmPaths) -> None:
    """Keep it no longer."""
    doomed = place.directory / f".before-{os.urandom(4).hex()}"
    try:
        place.before.rename(doomed)
    except FileNotFoundError:
        return
    store.sync_directory(place.directory)
    store.remove_tree(doomed)


def settle(machine: Named) -> bool:
    """Bring a change to its end that was cut off, of a machine at rest; whether it was undone."""
    place = machine.place
    try:
        kept = store.read_record(_record(VmPaths(place.before)), _Kept)
    except StoreError as error:
        if error.code != "store.missing":
            raise
        return False
    if machine.state.booted > kept.at:  # it has come up since: the change had held
        forget(place)
        return False
    undo(place)
    return True


def _record(before: VmPaths) -> Path:
    return before.directory / "kept.json"
