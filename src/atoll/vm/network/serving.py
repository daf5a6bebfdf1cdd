"""The process of one network: ``python -m atoll.vm.network.serving DATA NAME [--client FD]``.

In the foreground it says what happens on its standard error; with ``--client FD`` it goes into the
background, says it in its log, and serves that connection as one to its control socket. It ends by itself
when nothing has been plugged in, and nobody connected, for some seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from atoll import store
from atoll.errors import AtollError, StoreError
from atoll.hypervisor.port import at_directory, listen
from atoll.network.destinations import Destinations
from atoll.network.lan import Lan
from atoll.paths import NetworkPaths, Paths
from atoll.vm.logs import LogStream, say
from atoll.vm.network import capture, managing, naming, shape
from atoll.vm.network.attachment import BUILT_IN, SANDBOXES
from atoll.vm.network.auditing import written_down
from atoll.vm.network.cards import Cards
from atoll.vm.network.chosen import Chosen
from atoll.vm.network.hostnames import HostView
from atoll.vm.network.policing import policing
from atoll.vm.network.porting import port_methods
from atoll.vm.network.records import DOMAIN, Leases, Network, Numbers, new_network
from atoll.vm.network.requests import Status, control_server

__all__ = ["BUSY", "main", "serve"]

#: Exit status of a process that found another one in its place.
BUSY = 75

#: Seconds between two looks whether somebody needs it, and whether its directory is still there.
_LOOK = 0.25

#: Seconds after which a socket is old, at which nobody listens: a VM that is being started may be about to.
_OLD = 60.0

#: Parameters of the GNU C library's allocator (malloc.h), and bytes: from which on it asks the kernel for a
#: piece of its own, which it keeps free at most, and by which it grows at least.
_HEAP = ((-3, 32 << 20), (-1, 64 << 20), (-2, 4 << 20))

#: Seconds for a VM's end, which begins with its card's.
_GRACE = 0.2


def serve(
    place: NetworkPaths, *, client: socket.socket | None = None, log: Callable[[str], None] = say
) -> int:
    """Be the network at ``place`` until nobody needs it; the exit status.

    Args:
        place: its directory; what the network is made of is drawn at the first use of its name.
        client: a connection that waits to be served, of whoever started this process.
        log: told in words what happens.

    Raises:
        StoreError: its records cannot be read or written.
    """
    with ExitStack() as stack:
        if place.directory.name in BUILT_IN:
            with store.refusing(place.directory):
                place.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = store.hold(place.lock)
        if lock is None:
            if client is not None:
                client.close()
            return BUSY
        stack.callback(os.close, lock)
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        network = _record(place)
        _sweep(_cards_of(place))
        asyncio.run(_run(place, network, client, lock, log))
    return 0


async def _run(
    place: NetworkPaths,
    network: Network,
    client: socket.socket | None,
    lock: int,
    log: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    addressing = network.addressing
    lan = Lan(
        addressing,
        Destinations(addressing, outside=network.outside),
        mtu=network.mtu,
        is_shared=network.shared,
        domain=DOMAIN,
    )

    def keep(numbers: Numbers) -> None:
        try:
            store.write_record(place.leases, Leases(numbers=numbers.kept), parents=False)
        except StoreError as error:
            log(f"{error.message}: machines may have other addresses next time")

    def pulled(path: Path) -> None:
        """A VM whose program was killed leaves its socket behind."""
        if path.parent == _cards_of(place):
            loop.call_later(_GRACE, _remove_dead, path)

    numbers = Numbers(len(addressing.machines), _leases(place))
    chosen = Chosen(place.ports, log)
    cards = Cards(lan, numbers, chosen, keep=keep, pulled=pulled, log=log)
    view = HostView(place, cards, DOMAIN, log)
    more = {
        **port_methods(cards.held),
        **policing(cards.follow, lambda: lan.flows),
        **capture.methods(cards.find),
        **shape.methods(cards.find),
        **naming.methods(lan, cards, view),
    }
    server = control_server(cards.plug, lambda: Status(os.getpid(), cards.listed), more)
    ended = asyncio.Event()
    server.methods = {**server.methods, **managing.methods(cards, ended.set)}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)

    def is_used() -> bool:
        return bool(cards or server.clients)

    watching = asyncio.create_task(_watch(lock, network.linger, is_used, ended))
    async with written_down(lan.trail, place.audit):
        try:
            await view.renew()
            server.listen(listen(place.control))
            if client is not None:
                server.add(client)
            log(f"serving {network.ipv4} and {network.ipv6}")
            await ended.wait()
            log("ending")
        finally:
            watching.cancel()
            place.control.unlink(missing_ok=True)
            cards.close()
            await view.close()
            await server.close()
            lan.close()


async def _watch(lock: int, linger: float, is_used: Callable[[], bool], ended: asyncio.Event) -> None:
    """Have the process end that nobody needs, or whose directory was removed."""
    idle_since = time.monotonic()
    while os.fstat(lock).st_nlink:
        if is_used():
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= linger:
            break
        await asyncio.sleep(min(_LOOK, max(linger, 0.01)))
    ended.set()


def _record(place: NetworkPaths) -> Network:
    """What the network is; drawn now if it never was.

    Raises:
        NetworkError: ``network.unknown``: nobody made it.
        StoreError: its record cannot be read.
    """
    if not place.record.exists():
        store.write_record(place.record, new_network(place.directory.name))
    return store.read_record(place.record, Network)


def _leases(place: NetworkPaths) -> dict[str, int]:
    """Who keeps which address. A record that cannot be read costs machines their addresses, and no more."""
    try:
        return store.read_record(place.leases, Leases).numbers
    except StoreError:
        return {}


def _cards_of(place: NetworkPaths) -> Path:
    """Where the hypervisors of sandboxes listen, whichever network these are on."""
    return NetworkPaths(place.directory.parent / SANDBOXES).cards


def _sweep(cards: Path) -> None:
    """Remove the sockets of VMs that are gone."""
    with contextlib.suppress(OSError):
        for path in cards.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - path.lstat().st_mtime > _OLD:
                    _remove_dead(path)


def _remove_dead(path: Path) -> None:
    """Remove a socket if nobody listens at it."""
    with contextlib.suppress(OSError):
        if path.is_socket() and not _is_there(path):
            path.unlink()


def _is_there(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            at_directory(path, sock.connect)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _raise_limit() -> None:
    """As many descriptors as this process may have: each connection of a guest takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _keep_heap() -> None:
    """Have what was freed kept for what comes: the kernel's fresh pages cost as much as the bytes in them."""
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _HEAP:
            mallopt(parameter, value)


def main(words: Sequence[str]) -> int:
    """Serve as ``words`` say; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m atoll.vm.network.serving", allow_abbrev=False)
    parser.add_argument("data", metavar="DATA", type=Path, help="Atoll's data directory")
    parser.add_argument("name", metavar="NAME", help="of the network")
    parser.add_argument("--client", metavar="FD", type=int, help="go into the background, and serve this")
    arguments = parser.parse_args(words)
    place = Paths(data=arguments.data, cache=arguments.data).network(arguments.name)
    client = None if arguments.client is None else socket.socket(fileno=arguments.client)
    _raise_limit()
    _keep_heap()
    if client is not None:
        sys.stdout = sys.stderr = LogStream(place.log)
    try:
        return serve(place, client=client)
    except AtollError as error:
        say(f"error[{error.code}]: {error.message}" + (f"; {error.hint}" if error.hint else ""))
        return error.exit_code


if __name__ == "__main__":
    if "--client" in sys.argv[1:] and os.fork():  # whoever started this need not reap what outlives it
        os._exit(0)
    sys.exit(main(sys.argv[1:]))
