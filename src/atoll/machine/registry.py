"""The machines of this user: their records on disk, who may change them, and what is true of them now."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from atoll import store
from atoll.errors import AtollError, StoreError, UsageError
from atoll.machine.spec import RESERVED, MachineSpec, check_free, check_name
from atoll.paths import Paths, VmPaths
from atoll.process import boot_id
from atoll.vm.state import State, StateError, truth

__all__ = [
    "Entry",
    "Fill",
    "Named",
    "add",
    "at_rest",
    "change",
    "exists",
    "find",
    "forget",
    "listed",
    "observe",
    "rename",
    "require_users",
    "save",
    "taken",
    "undisturbed",
]

#: Seconds to wait for another command that changes the same machine.
_PATIENCE = 30.0

#: Seconds after which a half-made machine has no maker any more.
_ABANDONED = 3600.0

#: Seconds in which the maker of a machine has taken its lock.
_TAKEN = 5.0

#: Seconds in which the supervisor of a machine that has come to rest leaves.
_LEAVING = 10.0

Fill = Callable[[VmPaths], None]


class Named(msgspec.Struct, frozen=True):
    """A machine as it is now.

    Attributes:
        name: its directory.
        place: where its files are.
        spec: what was asked for.
        state: what is true, whatever was killed.
        supervised: whether a supervisor looks after it.
    """

    name: str
    place: VmPaths
    spec: MachineSpec
    state: State
    supervised: bool


class Entry(msgspec.Struct, frozen=True):
    """One directory of the registry: a machine, or what is wrong with it."""

    name: str
    machine: Named | None
    error: AtollError | None


def add(paths: Paths, name: str, spec: MachineSpec, fill: Fill) -> VmPaths:
    """Enter a new machine; of two that want the name one gets it.

    Args:
        paths: where machines are.
        name: of the machine.
        spec: what was asked for.
        fill: puts further files into the directory before anyone sees it.

    Raises:
        UsageError: ``usage.reserved``: it is the name of a machine of Atoll's own.
        StoreError: ``store.already_exists``; or it cannot be written.
    """
    check_free(name, spec)
    final = paths.machine(name)
    if exists(paths, name):
        raise taken(name)
    _sweep(paths)
    try:
        with ExitStack() as stack:
            staged = stack.enter_context(store.staging(paths.machines, f"{name}-{os.urandom(4).hex()}"))
            staged.chmod(0o700)
            place = VmPaths(staged)
            lock = store.hold(place.supervisor_lock)  # says that its maker lives
            assert lock is not None, "nobody else knows the directory"
            stack.callback(os.close, lock)
            fill(place)
            store.write_record(place.spec, spec)
            store.write_record(place.state, State(since=spec.created))
            store.create(staged, final.directory)
    except StoreError as error:
        raise taken(name) if error.code == "store.already_exists" else error from error
    return final


def exists(paths: Paths, name: str) -> bool:
    """Whether a machine, or what is left of one, has this name."""
    return os.path.lexists(paths.machine(name).directory)


def taken(name: str) -> StoreError:
    """The error for a name that is in use."""
    hint = f"choose another name, or remove it with `atoll rm {name}`"
    return StoreError(f"there is a machine {name} already", code="already_exists", hint=hint)


def find(paths: Paths, name: str) -> Named:
    """The machine ``name``, as it is now.

    Raises:
        StoreError: ``store.missing``: there is none; ``store.corrupt`` or ``store.newer``: about its records.
    """
    place = paths.machine(check_name(name))
    try:
        spec = store.read_record(place.spec, MachineSpec)
    except StoreError as error:
        if error.code != "store.missing" or place.directory.exists():
            raise
        raise StoreError(f"there is no machine {name}", code="missing", hint=_hint(paths, name)) from error
    state, supervised = observe(place)
    return Named(name, place, spec, state, supervised)


def _hint(paths: Paths, name: str) -> str:
    import difflib  # noqa: PLC0415 - for this error only

    near = difflib.get_close_matches(name, _names(paths), n=1)
    return f"did you mean {near[0]}?" if near else f"`atoll create {name}` makes one; `atoll ls` lists all"


def observe(place: VmPaths) -> tuple[State, bool]:
    """What is true of a machine, and whether a supervisor looks after it. Raises as ``find``."""
    supervised = store.is_held(place.supervisor_lock)
    alive = store.is_held(place.vm_lock)
    state = store.read_record(place.state, State)
    if state.active and not alive and not supervised:
        # A supervisor may have ended, in order, between the look at its lock and the look at its record.
        supervised = store.is_held(place.supervisor_lock)
        state = store.read_record(place.state, State)
    return truth(state, supervised=supervised, alive=alive, boot=boot_id(), at=time.time()), supervised


def listed(paths: Paths) -> list[Entry]:
    """All machines by name; of those whose records cannot be read, what is wrong."""
    entries = []
    for name in _names(paths):
        try:
            entries.append(Entry(name, find(paths, name), None))
        except AtollError as error:
            if error.code != "store.missing" or paths.machine(name).directory.exists():
                entries.append(Entry(name, None, error))
    return entries


def _names(paths: Paths) -> list[str]:
    try:
        found = os.scandir(paths.machines)
    except (FileNotFoundError, NotADirectoryError):
        return []
    with found:
        return sorted(entry.name for entry in found if not entry.name.startswith("."))


@contextmanager
def change(paths: Paths, name: str) -> Iterator[Named]:
    """The machine ``name``, which nobody else changes meanwhile.

    Raises:
        StoreError: as ``find``; ``store.busy``: another command changes it.
    """
    place = find(paths, name).place
    with ExitStack() as stack:
        try:
            stack.enter_context(store.lock(place.change_lock, wait=_PATIENCE, parents=False))
        except StoreError as error:
            if error.code == "store.busy":
                hint = "wait for the other command to end"
                raise StoreError(f"another command is changing {name}", code="busy", hint=hint) from error
            if error.code != "store.missing":
                raise
            find(paths, name)  # it was removed or renamed while this waited: say so
            raise
        yield find(paths, name)


def save(machine: Named, spec: MachineSpec) -> None:
    """Record what is asked for from now on. Raises ``StoreError``."""
    store.write_record(machine.place.spec, spec)


def rename(paths: Paths, machine: Named, name: str) -> None:
    """Give a machine that is at rest another name; the caller changes it.

    Raises:
        UsageError: ``usage.reserved``: one of the names is that of a machine of Atoll's own.
        StoreError: ``store.already_exists``.
        StateError: it is not at rest.
    """
    check_free(name)
    require_users(machine, "renamed")
    target = paths.machine(name).directory
    with at_rest(machine, "renamed"):
        if exists(paths, name):
            raise taken(name)
        try:
            store.create(machine.place.directory, target)
        except StoreError as error:
            raise taken(name) if error.code == "store.already_exists" else error from error


def require_users(machine: Named, done: str) -> None:
    """Refuse what is for machines of users only. Raises ``UsageError``: ``usage.reserved``."""
    if machine.name in RESERVED and machine.spec.service is not None:
        owner = RESERVED[machine.name]
        message = f"{machine.name} is a machine of Atoll's own: it cannot be {done}"
        raise UsageError(message, code="reserved", hint=f"see {owner}")


def forget(paths: Paths, machine: Named) -> None:
    """Remove a machine that is at rest, with its disk; the caller changes it.

    Raises:
        StateError: it is not at rest.
    """
    doomed = paths.machines / f".removed-{machine.name}-{os.urandom(4).hex()}"
    with at_rest(machine, "removed"):
        machine.place.directory.rename(doomed)  # from here on it is not there
        store.sync_directory(paths.machines)
        store.remove_tree(doomed)


def _sweep(paths: Paths) -> None:
    """Remove what killed commands left: machines half made, and machines half removed."""
    for entry in paths.machines.glob(".*-*"):
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - entry.stat().st_mtime
            lock = VmPaths(entry).supervisor_lock
            unmade = age > _TAKEN and lock.exists() and not store.is_held(lock)
            if entry.name.startswith(".removed-") or unmade or age > _ABANDONED:
                store.remove_tree(entry)


@contextmanager
def at_rest(machine: Named, done: str) -> Iterator[None]:
    """Keep every supervisor away from a machine that is at rest; one that is about to leave is waited for.

    Raises:
        StateError: it is not at rest.
    """
    place = machine.place
    deadline = time.monotonic() + _LEAVING
    while (lock := store.hold(place.supervisor_lock)) is None:
        state, _ = observe(place)
        if state.active or time.monotonic() > deadline:
            raise _active(machine.name, state, done)
        time.sleep(0.01)
    try:
        vm = store.is_held(place.vm_lock)
        state = store.read_record(place.state, State)
        state = truth(state, supervised=False, alive=vm, boot=boot_id(), at=time.time())
        if vm or state.active:
            raise _active(machine.name, state, done)
        place.control.unlink(missing_ok=True)  # of a supervisor that was killed: there is none now
        yield
    finally:
        os.close(lock)


@contextmanager
def undisturbed(machine: Named) -> Iterator[bool]:
    """Whether the machine has neither supervisor nor VM; if so, it gets none meanwhile."""
    lock = store.hold(machine.place.supervisor_lock)
    try:
        yield lock is not None and not store.is_held(machine.place.vm_lock)
    finally:
        if lock is not None:
            os.close(lock)


def _active(name: str, state: State, done: str) -> StateError:
    message = f"{name} is {state.phase}: it cannot be {done}"
    return StateError(message, code="active", hint=f"`atoll stop {name}` stops it")
