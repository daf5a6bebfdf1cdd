"""How the connections and datagrams of one guest leave: by sockets of this host, as far as they may."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from ipaddress import ip_address

from atoll.network.destinations import Destinations, Target
from atoll.network.dnsstream import DnsStream
from atoll.network.exits import DatagramSocket
from atoll.network.guard import Guard
from atoll.network.link import Link
from atoll.network.policy.rules import Protocol
from atoll.network.tcp.flows import Dialling, Ends
from atoll.network.udp.associations import Association, Exit, Peer
from atoll.network.wire.icmp import Reason

__all__ = ["Outside"]

_DNS = 53

#: Seconds for which it is remembered which addresses are this host's, and how many.
_FRESH, _MOST_KNOWN = 1.0, 1024

Ask = Callable[[bytes, Callable[[bytes], None]], None]


class Outside:
    """See ``Opener`` of connections and of datagrams.

    Args:
        link: the guest's.
        destinations: what leads anywhere.
        guard: says where of that it may go.
        ask: answers its questions of DNS.
        unreachable: told of datagrams that did not arrive.
    """

    def __init__(
        self,
        link: Link,
        destinations: Destinations,
        guard: Guard,
        ask: Ask,
        unreachable: Callable[[Peer, Peer, Reason], None],
    ) -> None:
        self.destinations = destinations
        self._link = link
        self._guard = guard
        self._ask = ask
        self._unreachable = unreachable
        self._loop = asyncio.get_running_loop()
        self._own: dict[str, bool] = {}
        self._forget_at = 0.0

    def open(self, ends: Ends) -> Dialling | None:
        """See ``tcp.flows.Opener``."""
        if ends.other_port == _DNS and ends.other in self.destinations.addressing.resolvers:
            return DnsStream(self._ask, time.monotonic, self._loop.call_soon)
        target = self._target(ends.other, ends.other_port)
        if target is None:
            self._guard.closed(Protocol.TCP, ends.other, ends.other_port)
            return None
        admitted = self._guard.admit(ends, is_free=target.is_host)
        if not isinstance(admitted, tuple):
            return admitted
        sock = _stream_to(target)
        return None if sock is None else self._guard.stream(sock, self._link, *admitted)

    def open_exit(self, association: Association) -> Exit | None:
        """See ``udp.associations.Opener``."""
        try:
            found = DatagramSocket(association, self._place, self._unreachable)
        except OSError:
            return None  # no descriptors, or no IPv6
        return self._guard.paced_exit(association, found)

    def allows(self, guest: Peer, peer: Peer) -> bool:  # noqa: ARG002 - all of a guest's ports are alike
        """See ``udp.associations.Opener``."""
        target = self._target(peer.address, peer.port)
        if target is None or target.path:
            self._guard.closed(Protocol.UDP, *peer)
            return False
        return self._guard.may_send(peer, is_free=target.is_host)

    def translate(self, address: bytes) -> str | None:
        """Where echo requests for ``address`` go; None if nowhere."""
        target = self._target(address, 1)
        if target is None or target.path:
            self._guard.closed(Protocol.ICMP, address, 0)
            return None
        return target.address if self._guard.may_ping(address, is_free=target.is_host) else None

    def is_free(self, address: bytes, port: int) -> bool:
        """Whether that is a port of this host that was opened, which is no matter of policy."""
        target = self.destinations.target(address, port)
        return target is not None and target.is_host

    def _place(self, peer: Peer) -> tuple[str, int] | None:
        target = self._target(peer.address, peer.port)
        return None if target is None or target.path else (target.address, target.port)

    def _target(self, address: bytes, port: int) -> Target | None:
        target = self.destinations.target(address, port)
        if target is None or target.is_host or self.destinations.trusted:
            return target
        return None if self._is_own(target.address) else target

    def _is_own(self, address: str) -> bool:
        """Whether an address is this host's, as it was a moment ago: each datagram is asked about."""
        now = time.monotonic()
        if now >= self._forget_at:
            self._own.clear()
            self._forget_at = now + _FRESH
        found = self._own.get(address)
        if found is None:
            if len(self._own) >= _MOST_KNOWN:
                self._own.clear()
            found = self._own[address] = _can_be_bound(address)
        return found


def _can_be_bound(address: str) -> bool:
    """Whether an address is one of this host's, or of a group that it could be in."""
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _stream_to(target: Target) -> socket.socket | None:
    """A socket that begins to connect; None if it cannot."""
    if target.path:
        return _unix_stream_to(target.path)
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        sock.connect((target.address, target.port))
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        return None
    return sock


def _unix_stream_to(path: str) -> socket.socket | None:
    """A socket that is connected: a server of this host takes a client at once, or not at all."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None
    sock.setblocking(False)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock
