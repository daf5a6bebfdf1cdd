"""A machine becomes what lies ready in a directory, and the way back is there until the change has held.

What it is and what it shall be lie ready, each in a directory of its own, before the machine is touched: from
then on nothing needs space. Whatever is killed meanwhile, the next start finds either what was, or a machine
that has come up as what it was to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.events import Emit, Warned, ignore
from atoll.machine.registry import Fill, Named
from atoll.paths import VmPaths
from atoll.vm.branching import adopt_disk
from atoll.vm.state import State

__all__ = ["Exchange", "exchanging", "forget", "settle", "undo"]

#: Directories that are filled, or removed: of what was, and of what shall be.
_BEFORE, _AFTER = "before", "after"


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What tells whether a change has held.

    Attributes:
        booted: when the guest had last come up before it, seconds since the epoch.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    booted: float


class Exchange:
    """What a machine was and what it is to be, ready.

    Args:
        place: of the machine.
        old: a directory with its disk and records as they were at one instant.
        new: likewise, what it is to be.
    """

    def __init__(self, place: VmPaths, old: VmPaths, new: VmPaths) -> None:
        self._place = place
        self._old = old
        self._new = new
        self._kept = False

    def carry_out(self) -> None:
        """Make the machine, which has no VM any more, what it is to be. Raises ``StoreError``."""
        self._keep()
        _take(self._new, self._place)

    def undo(self) -> None:
        """Make the machine what it was at that one instant, whatever was done. Raises ``StoreError``."""
        self._keep()
        store.remove_tree(self._new.directory)  # there is room then for what follows
        undo(self._place)

    def _keep(self) -> None:
        """From here on the next start comes back to what was."""
        if self._kept:
            return
        kept = _Kept(booted=store.read_record(self._place.state, State).booted)
        if kept != store.read_record(_record(self._old), _Kept):  # it has rebooted since
            store.write_record(_record(self._old), kept, parents=False)
        forget(self._place)
        store.publish(self._old.directory, self._place.before)
        self._kept = True


@contextmanager
def exchanging(place: VmPaths, before: Fill, after: Fill) -> Iterator[Exchange]:
    """Have all ready that it takes to make a machine, which may run meanwhile, something else.

    Args:
        place: of the machine.
        before: puts what is to be gone back to into a directory: the disk, and such records as are to come
            back with it.
        after: likewise, what it is to be.

    Raises:
        StoreError: ``store.full`` or the like: nothing is left of it.
    """
    with store.staging(place.directory, _BEFORE) as old, store.staging(place.directory, _AFTER) as new:
        before(VmPaths(old))
        kept = _Kept(booted=store.read_record(place.state, State).booted)
        store.write_record(_record(VmPaths(old)), kept)
        after(VmPaths(new))
        yield Exchange(place, VmPaths(old), VmPaths(new))


def undo(place: VmPaths) -> None:
    """Make the machine what was kept. Raises ``StoreError``."""
    _take(VmPaths(place.before), place)
    forget(place)


def forget(place: VmPaths) -> None:
    """Keep it no longer. Raises ``StoreError``."""
    doomed = place.directory / f".partial-{_BEFORE}-{os.urandom(4).hex()}"  # swept if this is killed
    with store.refusing(place.before):
        try:
            place.before.rename(doomed)
        except FileNotFoundError:
            return
        store.sync_directory(place.directory)
        store.remove_tree(doomed)


def settle(machine: Named, emit: Emit = ignore) -> None:
    """Bring a change to its end that was cut off, of a machine at rest; ``emit`` is told if it was undone.

    Raises:
        StoreError: it cannot be.
    """
    place = machine.place
    for name in (_BEFORE, _AFTER):
        for left in place.directory.glob(f".partial-{name}-*"):
            store.remove_tree(left)
    try:
        kept = store.read_record(_record(VmPaths(place.before)), _Kept)
    except StoreError as error:
        if error.code != "store.missing":
            raise
        return
    if machine.state.booted != kept.booted:  # it has come up since: the change had held
        forget(place)
        return
    undo(place)
    message = f"{machine.name}: going back to a snapshot was cut off; its disk is what it was before"
    emit(Warned(message=message))


def _take(source: VmPaths, place: VmPaths) -> None:
    adopt_disk(source, place)
    if source.boot.exists():
        store.replace_by_link(place.boot, source.boot)
    if source.base.exists():
        store.replace_by_link(place.base, source.base)
    else:
        place.base.unlink(missing_ok=True)


def _record(before: VmPaths) -> Path:
    return before.directory / "kept.json"
