"""Packets that came in fragments, put together (RFC 791, section 3.2; RFC 8200, section 4.5)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from atoll.network.wire.ip import Packet

__all__ = ["Reassembly"]

#: Packets that one guest may have in fragments at once, and fragments of one.
_MOST: Final = 32
_MOST_FRAGMENTS: Final = 64

#: Seconds for which the fragments of a packet are kept (RFC 8200, section 4.5: at most 60).
_PATIENCE: Final = 15.0

#: Bytes of the largest payload.
_LARGEST: Final = 65535

_Key = tuple[bytes, bytes, int, int]


class _Parts:
    """What has come of one packet."""

    __slots__ = ("first", "pieces", "since", "total")

    def __init__(self, now: float) -> None:
        self.since = now
        self.pieces: dict[int, bytes] = {}
        self.total: int | None = None
        self.first: Packet | None = None


class Reassembly:
    """Fragments of one guest's. What overlaps is dropped as a whole (RFC 5722): it is an attack."""

    def __init__(self) -> None:
        self._parts: OrderedDict[_Key, _Parts] = OrderedDict()

    def add(self, packet: Packet, now: float) -> Packet | None:
        """Take a fragment; the whole packet once its last one has come, with the headers of its first one."""
        fragment = packet.fragment
        assert fragment is not None
        key = (packet.source, packet.destination, packet.protocol, fragment.identification)
        parts = self._parts.get(key)
        if parts is None or now - parts.since > _PATIENCE:
            parts = self._parts[key] = _Parts(now)
            if len(self._parts) > _MOST:
                self._parts.popitem(last=False)
        if not self._fits(parts, packet):
            del self._parts[key]
            return None
        parts.pieces[fragment.offset] = bytes(packet.payload)
        if not fragment.offset:
            parts.first = packet._replace(payload=memoryview(b""), whole=memoryview(bytes(packet.whole)))
        whole = _join(parts)
        if whole is not None:
            del self._parts[key]
        return whole

    @staticmethod
    def _fits(parts: _Parts, packet: Packet) -> bool:
        fragment = packet.fragment
        assert fragment is not None
        begin, end = fragment.offset, fragment.offset + len(packet.payload)
        if begin == end or end > _LARGEST or len(parts.pieces) >= _MOST_FRAGMENTS:
            return False
        if fragment.more:
            if len(packet.payload) % 8 or (parts.total is not None and end > parts.total):
                return False
        elif parts.total is not None or any(at >= end for at in parts.pieces):
            return False
        else:
            parts.total = end
        return all(at + len(piece) <= begin or at >= end for at, piece in parts.pieces.items())


def _join(parts: _Parts) -> Packet | None:
    if parts.total is None or parts.first is None:
        return None
    if sum(map(len, parts.pieces.values())) != parts.total:
        return None
    payload = b"".join(piece for _, piece in sorted(parts.pieces.items()))
    return parts.first._replace(payload=memoryview(payload), fragment=None)
