"""Echo requests of guests, sent on from this host where it lets its users (``net.ipv4.ping_group_range``)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from atoll.network.wire import icmp, ip

__all__ = ["PingSockets"]

#: Sockets of one guest, one for each program that pings one address; and seconds until an idle one is closed.
_MOST: Final = 32
_IDLE: Final = 30.0

#: Bytes of the longest message.
_LONGEST: Final = 65535

_Key = tuple[bytes, bytes, bytes]


class _Ping:
    """One socket, for one identifier of the guest's and one address."""

    __slots__ = ("key", "sock", "used")

    def __init__(self, key: _Key, sock: socket.socket) -> None:
        self.key = key
        self.sock = sock
        self.used = 0.0


class PingSockets:
    """See ``Pings``; for one guest, on the running event loop.

    Args:
        translate: where this host sends to, for an address of the guest's; None drops it.
        deliver: sends the guest a packet that comes from the first address, for the second.
    """

    def __init__(
        self,
        translate: Callable[[bytes], str | None],
        deliver: Callable[[bytes, bytes, int, bytes], None],
    ) -> None:
        self._translate = translate
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._pings: OrderedDict[_Key, _Ping] = OrderedDict()

    def ping(self, packet: ip.Packet) -> None:
        """See ``Pings``."""
        if not icmp.is_echo(packet):
            return
        key = (packet.source, packet.destination, bytes(packet.payload[4:6]))
        ping = self._pings.get(key) or self._open(key)
        if ping is None:
            return
        ping.used = time.monotonic()
        self._pings.move_to_end(key)
        try:
            ping.sock.send(packet.payload)  # its identifier and checksum are made by the kernel
        except OSError:
            self._close(key)

    def tick(self, now: float) -> None:
        """Close what is idle."""
        for key, ping in tuple(self._pings.items()):
            if now - ping.used > _IDLE:
                self._close(key)

    def close(self) -> None:
        """Close all; whoever goes on has it decided again."""
        for key in tuple(self._pings):
            self._close(key)

    def _open(self, key: _Key) -> _Ping | None:
        address = self._translate(key[1])
        if address is None:
            return None
        if len(self._pings) >= _MOST:
            self._close(next(iter(self._pings)))
        is_6 = len(key[1]) == 16
        family = socket.AF_INET6 if is_6 else socket.AF_INET
        protocol = socket.IPPROTO_ICMPV6 if is_6 else socket.IPPROTO_ICMP
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM, protocol)
        except OSError:
            return None  # this host's users may not
        sock.setblocking(False)
        try:
            sock.connect((address, 0))
        except OSError:
            sock.close()
            return None
        ping = self._pings[key] = _Ping(key, sock)
        self._loop.add_reader(sock.fileno(), self._readable, ping)
        return ping

    def _close(self, key: _Key) -> None:
        ping = self._pings.pop(key)
        self._loop.remove_reader(ping.sock.fileno())
        ping.sock.close()

    def _readable(self, ping: _Ping) -> None:
        try:
            message = ping.sock.recv(_LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._close(ping.key)
            return
        guest, other, identifier = ping.key
        kind = icmp.echo_reply_kind(guest)
        if len(message) < 8 or message[0] != kind:
            return
        answer = icmp.message(other, guest, kind, 0, identifier + message[6:])
        self._deliver(other, guest, ip.ICMP6 if len(guest) == 16 else ip.ICMP, answer)
