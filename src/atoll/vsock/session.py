"""A vhost-user session: what a front-end has told of its memory and its rings.

It maps the guest's memory, and owns the descriptors that come with the messages; it reads and writes no
socket.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.vsock.vhost_user import (
    BadMessageError,
    Features,
    Message,
    ProtocolFeatures,
    Request,
    build_reply,
    parse_addresses,
    parse_config,
    parse_number,
    parse_regions,
    parse_ring_fd,
    parse_ring_state,
)
from atoll.vsock.virtqueue import Addresses, Memory, Queue, Region

__all__ = ["RECEIVE", "TRANSMIT", "Ring", "Session"]

#: Numbers of the rings (Virtio 1.2, 5.10.2), as the guest calls them. QEMU keeps the third one to itself.
RECEIVE, TRANSMIT = 0, 1
_RINGS = 2

_FEATURES = Features.INDIRECT | Features.EVENT_IDX | Features.PROTOCOL | Features.VERSION_1
_PROTOCOL = ProtocolFeatures.REPLY_ACK | ProtocolFeatures.CONFIG

_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")


@dataclass(slots=True)
class Ring:
    """A ring and its descriptors, -1 where there is none.

    Attributes:
        queue: what is in it.
        kick: an eventfd by which the guest tells of new buffers.
        call: one by which it is told of those that are given back.
        error: one by which the front-end is told that the queue is broken.
        stopped_at: where it was when it was stopped last.
    """

    queue: Queue = field(default_factory=Queue)
    addresses: Addresses | None = None
    kick: int = -1
    call: int = -1
    error: int = -1
    stopped_at: int | None = None

    def signal(self) -> None:
        """Tell the guest of buffers that were given back, if it wants to know."""
        if self.queue.wants_call() and self.call >= 0:
            _ring(self.call)

    def report(self) -> None:
        """Tell the front-end that the queue is broken."""
        if self.error >= 0:
            _ring(self.error)


class Session:
    """The back-end's side of one connection.

    Args:
        cid: of the guest.
        on_ring: called with the number of a ring that has just begun (True) or is to stop (False); while it
            runs, ``kick`` of that ring is open.
        on_reset: called when the guest's driver has begun anew.
    """

    def __init__(self, cid: int, on_ring: Callable[[int, bool], None], on_reset: Callable[[], None]) -> None:
        self.rings = tuple(Ring() for _ in range(_RINGS))
        self._cid = cid
        self._memory = Memory()
        self._on_ring = on_ring
        self._on_reset = on_reset

    def handle(self, message: Message) -> bytes | None:
        """Do what is asked; the answer, if there is one. Raises ``BadMessageError``."""
        unused = set(message.fds)
        try:
            answer = self._handle(message, unused)
        finally:
            for fd in unused:
                os.close(fd)
        if answer is None and message.wants_reply:
            known = message.request in Request.__members__.values()
            answer = _U64.pack(0 if known else 1)
        return None if answer is None else build_reply(message.request, answer)

    def close(self) -> None:
        """Let go of memory and descriptors."""
        for number, ring in enumerate(self.rings):
            self._stop(number)
            for fd in (ring.call, ring.error):
                if fd >= 0:
                    os.close(fd)
            ring.call = ring.error = -1
        self._memory = Memory()

    def _handle(self, message: Message, unused: set[int]) -> bytes | None:  # noqa: C901, PLR0912 - a table
        payload = message.payload
        match message.request:
            case Request.GET_FEATURES:
                return _U64.pack(_FEATURES)
            case Request.SET_FEATURES:
                self._set_features(parse_number(payload))
            case Request.GET_PROTOCOL_FEATURES:
                return _U64.pack(_PROTOCOL)
            case Request.GET_QUEUE_NUM:
                return _U64.pack(_RINGS)
            case Request.SET_MEM_TABLE:
                self._map(message)
            case Request.SET_VRING_NUM:
                number, size = parse_ring_state(payload)
                self._ring(number).queue.size = size
            case Request.SET_VRING_ADDR:
                number, addresses = parse_addresses(payload)
                self._ring(number).addresses = addresses
            case Request.SET_VRING_BASE:
                number, base = parse_ring_state(payload)
                self._set_base(self._ring(number), base & 0xFFFF)
            case Request.GET_VRING_BASE:
                number, _ = parse_ring_state(payload)
                ring = self._ring(number)
                self._stop(number)
                ring.stopped_at = ring.queue.last
                return _STATE.pack(number, ring.queue.last)
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                self._set_fd(message, unused)
            case Request.GET_CONFIG:
                return self._config(payload)
            case Request.RESET_OWNER:
                for number in range(_RINGS):
                    self._stop(number)
            case _:  # nothing to be done, or nothing that is known
                pass
        return None

    def _ring(self, number: int) -> Ring:
        if number >= _RINGS:
            raise BadMessageError(f"ring {number} of {_RINGS}")
        return self.rings[number]

    def _set_features(self, features: int) -> None:
        for ring in self.rings:
            ring.queue.event_idx = bool(features & Features.EVENT_IDX)
            ring.queue.indirect = bool(features & Features.INDIRECT)

    def _set_base(self, ring: Ring, base: int) -> None:
        """From where a ring goes on: where it was stopped if the VM was, elsewhere after a driver's reset."""
        if base != ring.stopped_at:
            self._on_reset()
        ring.queue.last = base

    def _map(self, message: Message) -> None:
        placed = parse_regions(message.payload)
        if len(placed) != len(message.fds):
            raise BadMessageError(f"{len(placed)} regions of memory and {len(message.fds)} descriptors")
        regions = []
        for region, fd in zip(placed, message.fds, strict=True):
            try:
                if region.offset + region.size > os.fstat(fd).st_size:
                    raise BadMessageError("a region beyond the end of its file")
                view = memoryview(mmap.mmap(fd, region.size, offset=region.offset))
            except (OSError, ValueError, OverflowError) as error:
                raise BadMessageError(f"a region that cannot be mapped: {error}") from None
            regions.append(Region(region.guest, region.user, view))
        self._memory = Memory(regions)
        for ring in self.rings:  # memory was plugged in while the device is used
            if ring.queue.live and ring.addresses is not None:
                ring.queue.start(self._memory, ring.addresses)

    def _set_fd(self, message: Message, unused: set[int]) -> None:
        number, given = parse_ring_fd(message.payload)
        ring = self._ring(number)
        if given and len(message.fds) != 1:
            raise BadMessageError(f"{len(message.fds)} descriptors for a ring")
        fd = message.fds[0] if given else -1
        if fd >= 0:
            os.set_blocking(fd, False)
        match message.request:
            case Request.SET_VRING_KICK:
                if fd < 0 or ring.addresses is None:
                    raise BadMessageError("a ring without an eventfd or an address")
                self._stop(number)
                ring.kick = fd
                ring.queue.start(self._memory, ring.addresses)
                self._on_ring(number, True)
            case Request.SET_VRING_CALL:
                fd, ring.call = ring.call, fd
                _close(fd)
            case _:
                fd, ring.error = ring.error, fd
                _close(fd)
        unused.clear()

    def _stop(self, number: int) -> None:
        ring = self.rings[number]
        if ring.kick >= 0:
            self._on_ring(number, False)
            os.close(ring.kick)
            ring.kick = -1
        ring.queue.stop()

    def _config(self, payload: bytes) -> bytes:
        """A part of ``struct virtio_vsock_config`` (Virtio 1.2, 5.10.4): the guest's CID."""
        asked = parse_config(payload)
        told = _U64.pack(self._cid)[asked.offset : asked.offset + asked.size]
        return payload[:12] + told.ljust(asked.size, b"\0")


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _ring(fd: int) -> None:
    with contextlib.suppress(OSError):  # it is full, so whoever is told knows already; or it is no eventfd
        os.eventfd_write(fd, 1)
