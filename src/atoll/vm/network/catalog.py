"""The networks of this user: made, listed, removed.

A network is a directory with its record. What changes which networks there are holds one lock; who removes
one holds the lock of its process, too, so that none can be started meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from atoll import store
from atoll.errors import AtollError, ChannelError, NetworkError, StoreError, UsageError
from atoll.guest.messages import Empty
from atoll.paths import NetworkPaths, Paths
from atoll.vm.network import planning
from atoll.vm.network.attachment import BUILT_IN, MTU, SANDBOXES
from atoll.vm.network.managing import Forget, Retire, ask
from atoll.vm.network.names import check_name, known, require, unknown
from atoll.vm.network.planning import LEAST_MTU, Taken
from atoll.vm.network.reaching import stuck
from atoll.vm.network.records import BUILT_IN_IPV4, Leases, Network, drawn_prefix
from atoll.vm.network.requests import Card, Status, StatusRead

__all__ = [
    "Activity",
    "NetworkInfo",
    "Wish",
    "create",
    "find",
    "forget_machine",
    "listed",
    "plan",
    "remove",
]

#: Seconds to wait for another command that changes which networks there are.
_PATIENCE = 30.0

#: Seconds in which a network's process tells what it does, before it counts as stuck.
_SOON = 3.0


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a user says of a new network.

    Attributes:
        subnet: its addresses; empty for the first that are free.
        subnet_6: likewise of IPv6; empty for a random prefix.
        isolated: its guests do not see one another.
        internal: it leads nowhere.
        mtu: bytes of the largest packet.
    """

    subnet: str = ""
    subnet_6: str = ""
    isolated: bool = False
    internal: bool = False
    mtu: int = MTU


class Activity(StrEnum):
    """What the process of a network does; a network whose record cannot be read is broken."""

    IDLE = "idle"
    RUNNING = "running"
    STUCK = "stuck"
    BROKEN = "broken"


class NetworkInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A network, as it is now.

    Attributes:
        name: of the network.
        ipv4: its addresses, with the length of their prefix; empty if its record cannot be read.
        ipv6: likewise; empty if it was not used yet.
        outside: whether it leads anywhere.
        shared: its guests see one another.
        mtu: bytes of the largest packet.
        built_in: it is made at its first use, and cannot be removed.
        activity: of its process.
        pid: of its process; 0 if there is none.
        cards: that are plugged in.
        problem: what is wrong with it; empty if nothing is.
        hint: what to do about that.
    """

    name: str
    ipv4: str = ""
    ipv6: str = ""
    outside: bool = True
    shared: bool = True
    mtu: int = MTU
    built_in: bool = False
    activity: Activity = Activity.IDLE
    pid: int = 0
    cards: tuple[Card, ...] = ()
    problem: str = ""
    hint: str = ""


def plan(wish: Wish, taken: Sequence[Taken]) -> Network:
    """The record of a new network. Pure, but for a prefix of IPv6 that is drawn.

    Raises:
        UsageError: ``usage.subnet``: these are no addresses for a network; ``usage.mtu``.
        NetworkError: ``network.subnet``: they are in use, or none is left.
    """
    if not LEAST_MTU <= wish.mtu <= MTU:
        raise UsageError(f"packets of {wish.mtu} bytes", code="mtu", hint=f"use {LEAST_MTU} to {MTU}")
    ipv6 = planning.parse_subnet_6(wish.subnet_6) if wish.subnet_6 else drawn_prefix()
    ipv4 = planning.parse_subnet(wish.subnet) if wish.subnet else planning.choose(taken)
    for network in (ipv4, ipv6):
        planning.require_free(network, taken)
    return Network(
        ipv4=str(ipv4), ipv6=str(ipv6), outside=not wish.internal, shared=not wish.isolated, mtu=wish.mtu
    )


def create(paths: Paths, name: str, wish: Wish) -> Network:
    """Make a network.

    Raises:
        UsageError, NetworkError: as ``check_name`` and ``plan``.
        StoreError: ``store.already_exists``: there is one of that name; ``store.busy``; or it cannot be
            written.
    """
    check_name(name)
    with _changing(paths):
        _sweep(paths.networks)
        place = paths.network(name)
        if name in BUILT_IN or os.path.lexists(place.directory):
            hint = f"choose another name, or remove it with `atoll network rm {name}`"
            if name in BUILT_IN:
                hint = "it is made at its first use; choose another name"
            raise StoreError(f"there is a network {name} already", code="already_exists", hint=hint)
        network = plan(wish, (*_taken_by_networks(paths), *_taken_by_host()))
        with store.staging(paths.networks, name) as staged:
            staged.chmod(0o700)
            store.write_record(NetworkPaths(staged).record, network)
            store.create(staged, place.directory)
    return network


def find(paths: Paths, name: str) -> NetworkInfo:
    """The network ``name``, as it is now. Raises as ``require``. Blocks for seconds if it is stuck."""
    return asyncio.run(_observe(require(paths, name)))


def listed(paths: Paths) -> tuple[NetworkInfo, ...]:
    """All networks: those that are made at their first use, and then the others by their names."""

    async def observe() -> list[NetworkInfo]:
        return await asyncio.gather(*(_observe(paths.network(name)) for name in known(paths.networks)))

    return tuple(asyncio.run(observe()))


def remove(paths: Paths, name: str, users: Callable[[], Sequence[str]]) -> None:
    """Remove a network on which nobody is, with its process.

    Args:
        paths: where it is.
        name: of the network.
        users: tells which machines' records name it.

    Raises:
        UsageError: ``usage.network``: it is none that can be removed.
        NetworkError: ``network.unknown``; ``network.in_use``; ``network.stuck``: its process does not answer.
        StoreError: ``store.busy``: another command changes networks.
    """
    place = paths.network(check_name(name))
    if name in BUILT_IN:
        hint = "it goes by itself when nobody uses it"
        raise UsageError(f"{name} cannot be removed", code="network", hint=hint)
    with _changing(paths):
        _sweep(paths.networks)
        if not place.directory.is_dir():
            raise unknown(place)
        if machines := users():
            hint = f"move them with `atoll network disconnect {machines[0]}`, or remove them"
            raise NetworkError(f"{name} is the network of {', '.join(machines)}", code="in_use", hint=hint)
        lock = _retired(place)
        try:
            doomed = paths.networks / f".removed-{name}-{os.urandom(4).hex()}"
            place.directory.rename(doomed)  # from here on it is not there
            store.sync_directory(paths.networks)
            store.remove_tree(doomed)
        finally:
            os.close(lock)


def forget_machine(paths: Paths, identifier: str) -> None:
    """A machine is gone for good: have its addresses be others', on whichever networks it was.

    A network that does not answer keeps them until it needs them itself.
    """
    for name in known(paths.networks):
        place = paths.network(name)
        with contextlib.suppress(AtollError):
            if identifier in store.read_record(place.leases, Leases).numbers:
                _forget(place, identifier)


def _forget(place: NetworkPaths, identifier: str) -> None:
    lock = store.hold(place.lock)
    if lock is None:
        asyncio.run(ask(place, Forget(identifier), Empty, patience=_SOON))
        return
    try:
        leases = store.read_record(place.leases, Leases)
        numbers = {owner: number for owner, number in leases.numbers.items() if owner != identifier}
        store.write_record(place.leases, msgspec.structs.replace(leases, numbers=numbers), parents=False)
    finally:
        os.close(lock)


def _retired(place: NetworkPaths) -> int:
    """The lock of a network's process, which has ended, and no other can begin."""
    deadline = time.monotonic() + _PATIENCE
    while (lock := store.hold(place.lock)) is None:
        if time.monotonic() > deadline or _is_stopped(_pid_of(place)):
            raise stuck(place)
        with contextlib.suppress(ChannelError):  # it ends already
            asyncio.run(ask(place, Retire(), Empty))
        time.sleep(0.01)
    return lock


async def _observe(place: NetworkPaths) -> NetworkInfo:
    """What there is of a network."""
    name = place.directory.name
    info = NetworkInfo(name=name, built_in=name in BUILT_IN, shared=name != SANDBOXES)
    try:
        if place.record.exists() or not info.built_in:
            info = _described(info, store.read_record(place.record, Network))
        else:
            info = msgspec.structs.replace(info, ipv4=BUILT_IN_IPV4[name])
        return await _with_process(place, info)
    except AtollError as error:
        is_stuck = isinstance(error, NetworkError)
        return msgspec.structs.replace(
            info,
            activity=Activity.STUCK if is_stuck else Activity.BROKEN,
            pid=_pid_of(place) if is_stuck else 0,
            problem=error.message,
            hint=error.hint,
        )


def _described(info: NetworkInfo, network: Network) -> NetworkInfo:
    addressing = network.addressing
    return msgspec.structs.replace(
        info,
        ipv4=str(addressing.ipv4),
        ipv6=str(addressing.ipv6),
        outside=network.outside,
        shared=network.shared,
        mtu=network.mtu,
    )


async def _with_process(place: NetworkPaths, info: NetworkInfo) -> NetworkInfo:
    """``info`` with what the network's process says. Raises ``NetworkError``: ``network.stuck``."""
    if not store.is_held(place.lock):
        return info
    if _is_stopped(_pid_of(place)):
        raise stuck(place)  # it cannot answer, and its socket's queue may be full
    try:
        status = await ask(place, StatusRead(), Status, patience=_SOON)
    except ChannelError:
        status = None
    if status is None:  # it is about to come, or to go
        return info
    return msgspec.structs.replace(info, activity=Activity.RUNNING, pid=status.pid, cards=status.cards)


def _pid_of(place: NetworkPaths) -> int:
    try:
        return int(place.lock.read_text())
    except (OSError, ValueError):
        return 0


def _is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (proc(5), ``/proc/PID/stat``)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state in {b"T", b"t"}


@contextlib.contextmanager
def _changing(paths: Paths) -> Iterator[None]:
    """Nobody else changes which networks there are meanwhile. Raises ``StoreError``: ``store.busy``."""
    try:
        with store.lock(paths.networks_lock, wait=_PATIENCE):
            yield
    except StoreError as error:
        if error.code != "store.busy":
            raise
        hint = "wait for the other command to end"
        raise StoreError("another command is changing networks", code="busy", hint=hint) from error


def _sweep(networks: Path) -> None:
    """Remove what killed commands left: nobody makes or removes a network now."""
    for left in (*networks.glob(".partial-*"), *networks.glob(".removed-*")):
        store.remove_tree(left)


def _taken_by_networks(paths: Paths) -> Iterator[Taken]:
    """The addresses of all networks, also of those that were not used yet."""
    for name in known(paths.networks):
        place = paths.network(name)
        if place.record.exists() or name not in BUILT_IN:
            with contextlib.suppress(StoreError):  # what cannot be read has no process either
                addressing = store.read_record(place.record, Network).addressing
                yield Taken(addressing.ipv4, f"they are the network {name}'s")
                yield Taken(addressing.ipv6, f"they are the network {name}'s")
        else:
            yield Taken(planning.parse_subnet(BUILT_IN_IPV4[name]), f"they are the network {name}'s")


def _taken_by_host() -> Iterator[Taken]:
    """What this host has addresses in, and routes to, as its kernel tells (proc(5), ``/proc/net``)."""
    for name, parse in (
        ("route", planning.parse_routes),
        ("fib_trie", planning.parse_addresses),
        ("ipv6_route", planning.parse_routes_6),
    ):
        with contextlib.suppress(OSError):  # a kernel without IPv6, or another system
            yield from parse(Path("/proc/net", name).read_text())
