"""Sockets of this host by which the datagrams of guests leave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from atoll.network.udp.associations import MOST_PEERS, Association, Peer
from atoll.network.wire.icmp import Reason

__all__ = ["DatagramSocket"]

#: Datagrams read before others get a turn.
_AT_ONCE: Final = 64

#: Bytes of the longest datagram.
_LONGEST: Final = 65535

#: Of linux/in.h, linux/in6.h and linux/errqueue.h: have errors of the network told, and their layout.
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_EXTENDED_ERROR: Final = struct.Struct("=IBBBBII")

_REASONS: Final = {
    errno.ECONNREFUSED: Reason.NO_PORT,
    errno.EHOSTUNREACH: Reason.NO_HOST,
    errno.ENETUNREACH: Reason.NO_ROUTE,
    errno.EACCES: Reason.PROHIBITED,
}


class DatagramSocket:
    """See ``Exit``; on the running event loop.

    Args:
        association: gets what comes.
        translate: where datagrams for a peer go on this host, as an address and port; None drops them.
        unreachable: told that a peer could not be reached.
    """

    def __init__(
        self,
        association: Association,
        translate: Callable[[Peer], tuple[str, int] | None],
        unreachable: Callable[[Peer, Peer, Reason], None],
    ) -> None:
        self._association = association
        self._translate = translate
        self._unreachable = unreachable
        self._loop = asyncio.get_running_loop()
        self._is_6 = len(association.guest.address) == 16
        self._sock = socket.socket(socket.AF_INET6 if self._is_6 else socket.AF_INET, socket.SOCK_DGRAM)
        if self._is_6:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        self._sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        self._sock.setblocking(False)
        #: Whom the guest calls otherwise than this host does.
        self._back: dict[tuple[str, int], Peer] = {}
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, peer: Peer, payload: memoryview) -> None:
        """See ``Exit``."""
        place = self._translate(peer)
        if place is None:
            return
        if self._is_6 and ":" not in place[0]:  # the host's own ports are those of 127.0.0.1 (ipv6(7))
            place = f"::ffff:{place[0]}", place[1]
        self._back[place] = peer
        if len(self._back) > MOST_PEERS:
            del self._back[next(iter(self._back))]
        try:
            self._sock.sendto(payload, socket.MSG_DONTWAIT, place)
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(peer, error.errno or 0)

    def close(self) -> None:
        """See ``Exit``."""
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, place = self._sock.recvfrom(_LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                self._read_errors()
                return
            peer = self._back.get(place[:2])
            if peer is not None:
                self._association.received(peer, data, time.monotonic())

    def _read_errors(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                _, extra, _, place = self._sock.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
                peer = self._back.get(place[:2]) if place else None
                for _, _, data in extra:
                    if peer is not None and len(data) >= _EXTENDED_ERROR.size:
                        self._failed(peer, _EXTENDED_ERROR.unpack_from(data)[0])

    def _failed(self, peer: Peer, number: int) -> None:
        reason = _REASONS.get(number)
        if reason is not None:
            self._unreachable(self._association.guest, peer, reason)
