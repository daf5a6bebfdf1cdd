"""Ports and unix sockets of this host that lead to a port of a guest, on the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol

import msgspec

from atoll.network.addressing import Addressing
from atoll.network.connection import TcpSocket
from atoll.network.guard import Guard
from atoll.network.link import Link
from atoll.network.streams import Stream
from atoll.network.tcp.flow import Flow
from atoll.network.tcp.flows import Ends, Flows
from atoll.network.udp.associations import Associations, Peer

__all__ = ["DatagramForward", "Forwarded", "StreamForward", "listen"]

#: Clients that may wait to be accepted, and that are accepted before others get a turn.
_BACKLOG: Final = 1024
_AT_ONCE: Final = 64

#: Seconds without accepting where this process has no descriptor left for another client.
_BREATH: Final = 0.1

#: Clients of one datagram port that are known at once, and datagrams read before others get a turn.
_MOST_CLIENTS: Final = 1024
_LONGEST: Final = 65535


class Forwarded(msgspec.Struct, frozen=True):
    """A port of this host and where it leads.

    Attributes:
        address: of this host, as text.
        port: of this host; 0 for any that is free.
        guest_port: where it leads.
        protocol: ``tcp`` or ``udp``.
        path: of a unix socket, in the place of an address and a port; empty for none.
    """

    address: str
    port: int
    guest_port: int
    protocol: str = "tcp"
    path: str = ""


class Card(Protocol):
    """The guest that a port leads to.

    Attributes:
        link: to it.
        flows: its connections.
        associations: its datagrams.
        guard: writes down what comes.
    """

    guard: Guard
    link: Link
    flows: Flows
    associations: Associations


def listen(forward: Forwarded) -> socket.socket:
    """A socket bound to a forward's address and port, or path. Raises ``OSError``."""
    if forward.path:
        return _listen_at(forward.path)
    is_6 = ":" in forward.address
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6 if is_6 else socket.AF_INET, kind)
    try:
        if forward.protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((forward.address, forward.port))
        if forward.protocol == "tcp":
            sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_at(path: str) -> socket.socket:
    """A listening unix socket that only its owner can use, also in the place of one that nobody serves."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # bind gives it to the file, which has no other mode at any moment
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_deserted(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _is_deserted(path: str) -> bool:
    """Whether there is a unix socket at which nobody listens."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return stat.S_ISSOCK(os.lstat(path).st_mode) and probe.connect_ex(path) == errno.ECONNREFUSED
    return False


def seen_as(client: str, port: int, addressing: Addressing) -> Peer:
    """The address that a guest sees of a client: its own, or the gateway's if it is this host itself.

    A client of this host has no address that a guest could answer, and one of the guest's own network would
    be answered there. It comes over IPv4, which every guest has and every server of it is reached by, also
    where it came to the host's port over IPv6. Port 0 is any.

    Args:
        client: as text; empty for one of a unix socket.
        port: of the client.
        addressing: of the network.
    """
    here = Peer(addressing.gateway.packed, 0)
    if not client:
        return here
    address = ip_address(client.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    own = addressing.ipv4 if isinstance(address, IPv4Address) else addressing.ipv6
    if address.is_loopback or address.is_link_local or address in own:
        return here
    return Peer(address.packed, port)


class _Forward:
    """What leads to a guest.

    Args:
        sock: bound, and listening if that is for connections; owned from here on.
        card: the guest.
        guest: its address for each version of IP, of 4 and 16 bytes.
        port: of the guest.
        addressing: of the network.
    """

    def __init__(
        self,
        sock: socket.socket,
        card: Card,
        guest: Callable[[int], bytes],
        port: int,
        addressing: Addressing,
    ) -> None:
        self._sock = sock
        self._card = card
        self._guest = guest
        self._port = port
        self._addressing = addressing
        self._loop = asyncio.get_running_loop()

    def lead_to(self, port: int) -> None:
        """Have who comes from now on come to another port of the guest."""
        self._port = port

    def _end_of_guest(self, seen: Peer) -> Peer:
        """Where a client is led that the guest sees like that."""
        return Peer(self._guest(len(seen.address)), self._port)


class StreamForward(_Forward):
    """Accepts clients, each of which becomes a connection to the guest. Arguments: as ``_Forward``."""

    def __init__(
        self,
        sock: socket.socket,
        card: Card,
        guest: Callable[[int], bytes],
        port: int,
        addressing: Addressing,
    ) -> None:
        super().__init__(sock, card, guest, port, addressing)
        self._pause: asyncio.TimerHandle | None = None
        self._file = _file_of(sock)
        self._clients: set[Stream] = set()
        self._go_on()

    def close(self) -> None:
        """Accept no more; who is connected stays so. Closing twice is fine."""
        if self._pause is not None:
            self._pause.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            file = self._file
            if file is not None and file == _file_of(self._sock):  # nobody has put another in its place
                with contextlib.suppress(OSError):
                    os.unlink(file[0])
            self._sock.close()

    def break_off(self) -> None:
        """Reset all connections that have come this way."""
        for client in tuple(self._clients):
            client.break_off()

    def _go_on(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, address = self._sock.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor is left
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(_BREATH, self._go_on)
                return
            place, port = address[:2] if address else ("", 0)
            seen = seen_as(place, port, self._addressing)
            self._begin(client, seen)

    def _begin(self, sock: socket.socket, seen: Peer) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guest = self._end_of_guest(seen)
        ends = Ends(guest.address, guest.port, seen.address, seen.port)
        client = self._card.guard.accepted(sock, self._card.link, ends)
        client.join(self._clients)
        flow = self._open(client, ends)
        if flow is None:
            client.closed(reset=True)
            return
        client.attach(flow)
        flow.open(time.monotonic())

    def _open(self, host: TcpSocket, ends: Ends) -> Flow | None:
        flow = self._card.flows.accept(host, ends)
        if flow is None and ends.other_port:  # the guest itself has a connection to that client's port
            flow = self._card.flows.accept(host, ends._replace(other_port=0))
        return flow


def _file_of(sock: socket.socket) -> tuple[str, int, int] | None:
    """The file of a unix socket that is bound: its path, and what tells it from others of that path."""
    if sock.family != socket.AF_UNIX:
        return None
    try:
        path = sock.getsockname()
        found = os.lstat(path)
    except OSError:
        return None
    return path, found.st_dev, found.st_ino


class DatagramForward(_Forward):
    """Passes the datagrams of clients on, and the guest's answers back. Arguments: as ``_Forward``."""

    def __init__(
        self,
        sock: socket.socket,
        card: Card,
        guest: Callable[[int], bytes],
        port: int,
        addressing: Addressing,
    ) -> None:
        super().__init__(sock, card, guest, port, addressing)
        self._clients: OrderedDict[tuple[str, int], tuple[Peer, Peer]] = OrderedDict()
        self._loop.add_reader(sock.fileno(), self._readable)

    def lead_to(self, port: int) -> None:
        """See ``_Forward``: each client begins anew."""
        super().lead_to(port)
        self.break_off()

    def break_off(self) -> None:
        """Forget all clients."""
        while self._clients:
            self._forget()

    def close(self) -> None:
        """Pass no more on. Closing twice is fine."""
        if self._sock.fileno() >= 0:
            self.break_off()
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, place = self._sock.recvfrom(_LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                continue  # what a client's host answered to a datagram that we sent it
            ends = self._clients.get(place[:2]) or self._begin(place)
            if ends is not None:
                self._clients.move_to_end(place[:2])
                self._card.associations.deliver(*ends, data)

    def _begin(self, place: tuple[str, int]) -> tuple[Peer, Peer] | None:
        """The guest's end and what it sees of a client that is new."""
        if len(self._clients) >= _MOST_CLIENTS:
            self._forget()
        seen = seen_as(place[0], place[1], self._addressing)
        guest = self._end_of_guest(seen)
        answers = _Answers(self._sock, place)
        found = self._card.associations.admit(guest, seen, answers)
        if found is None:
            return None
        self._clients[place[:2]] = guest, found
        return guest, found

    def _forget(self) -> None:
        _, (guest, seen) = self._clients.popitem(last=False)
        self._card.associations.dismiss(guest, seen)


class _Answers:
    """See ``Exit``: what a guest answers one client of a forward."""

    def __init__(self, sock: socket.socket, place: tuple[str, int]) -> None:
        self._sock = sock
        self._place = place

    def send(self, peer: Peer, payload: memoryview) -> None:  # noqa: ARG002 - there is but one
        """See ``Exit``."""
        with contextlib.suppress(OSError):
            self._sock.sendto(payload, socket.MSG_DONTWAIT, self._place)

    def close(self) -> None:
        """See ``Exit``: the socket is the forward's."""
