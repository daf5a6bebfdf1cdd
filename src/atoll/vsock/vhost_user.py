"""The vhost-user protocol from the back-end's side, without I/O (QEMU's docs/interop/vhost-user.rst)."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from atoll.vsock.virtqueue import Addresses

__all__ = [
    "HEADER_SIZE",
    "MOST_FDS",
    "Assembler",
    "BadMessageError",
    "Config",
    "Features",
    "Message",
    "Placed",
    "ProtocolFeatures",
    "Request",
    "build_reply",
    "parse_addresses",
    "parse_config",
    "parse_number",
    "parse_regions",
    "parse_ring_fd",
    "parse_ring_state",
]

#: Most descriptors that come with one message: one for each region of memory.
MOST_FDS = 8

#: Largest payload of a message that is understood here, bytes: SET_MEM_TABLE's is 264, GET_CONFIG's 268.
_LARGEST = 4096

_HEADER = struct.Struct("<III")
HEADER_SIZE = _HEADER.size
_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_ADDRESSES = struct.Struct("<IIQQQQ")
_CONFIG = struct.Struct("<III")

_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8
_RING, _NO_FD = 0xFF, 0x100


class Request(IntEnum):
    """What a front-end asks for."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25


class Features(IntFlag):
    """Features of the device (Virtio 1.2, 6) and of vhost-user."""

    INDIRECT = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeatures(IntFlag):
    """``VHOST_USER_PROTOCOL_F_*``."""

    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


class BadMessageError(Exception):
    """The front-end broke the protocol; the words say how."""


class Message(NamedTuple):
    """One request.

    Attributes:
        request: which, a ``Request`` or one that is not known.
        wants_reply: it is answered in any case (``VHOST_USER_NEED_REPLY``).
        payload: its bytes.
        fds: that came with it; the receiver's to close.
    """

    request: int
    wants_reply: bool
    payload: bytes
    fds: tuple[int, ...]


class Placed(NamedTuple):
    """Where a region of memory is: in the guest, in the front-end, and in its file; ``size`` in bytes."""

    guest: int
    size: int
    user: int
    offset: int


class Config(NamedTuple):
    """A part of the device's configuration space, bytes."""

    offset: int
    size: int
    flags: int


class Assembler:
    """Puts messages together from what a socket yields; fed with no more than ``wants`` at a time."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    @property
    def wants(self) -> int:
        """How many bytes belong to this message still."""
        if len(self._data) < HEADER_SIZE:
            return HEADER_SIZE - len(self._data)
        size: int = _HEADER.unpack_from(self._data)[2]
        return HEADER_SIZE + size - len(self._data)

    def feed(self, data: bytes, fds: list[int]) -> Message | None:
        """Take bytes and descriptors; the message if it is whole. Raises ``BadMessageError``."""
        self._data += data
        self._fds += fds
        if len(self._fds) > MOST_FDS:
            raise BadMessageError(f"{len(self._fds)} descriptors with one message")
        if len(self._data) < HEADER_SIZE:
            return None
        request, flags, size = _HEADER.unpack_from(self._data)
        if flags & _VERSION_MASK != _VERSION or flags & _REPLY:
            raise BadMessageError(f"flags {flags:#x}")
        if size > _LARGEST:
            raise BadMessageError(f"{size} bytes in a message")
        if len(self._data) < HEADER_SIZE + size:
            return None
        message = Message(
            request, bool(flags & _NEED_REPLY), bytes(self._data[HEADER_SIZE:]), tuple(self._fds)
        )
        self._data.clear()
        self._fds.clear()
        return message

    def drop(self) -> list[int]:
        """Forget what is not whole; the descriptors that came with it."""
        fds, self._fds = self._fds, []
        self._data.clear()
        return fds


def build_reply(request: int, payload: bytes) -> bytes:
    """The answer to a request."""
    return _HEADER.pack(request, _VERSION | _REPLY, len(payload)) + payload


def parse_number(payload: bytes) -> int:
    """A payload of one number of 64 bits. Raises ``BadMessageError``, as all of these."""
    return int(_unpack(_U64, payload)[0])


def parse_ring_state(payload: bytes) -> tuple[int, int]:
    """The number of a ring, and a number that is told of it."""
    ring, number = _unpack(_STATE, payload)
    return ring, number


def parse_ring_fd(payload: bytes) -> tuple[int, bool]:
    """The number of a ring, and whether a descriptor comes with the message."""
    number = parse_number(payload)
    return number & _RING, not number & _NO_FD


def parse_addresses(payload: bytes) -> tuple[int, Addresses]:
    """The number of a ring, and where it is."""
    ring, _, descriptors, used, available, _ = _unpack(_ADDRESSES, payload)
    return ring, Addresses(descriptors, used, available)


def parse_regions(payload: bytes) -> tuple[Placed, ...]:
    """The regions of SET_MEM_TABLE, in the order of their descriptors."""
    if len(payload) < 8:
        raise BadMessageError(f"{len(payload)} bytes of regions")
    count, _ = _STATE.unpack_from(payload)
    if not 0 < count <= MOST_FDS or len(payload) < 8 + count * _REGION.size:
        raise BadMessageError(f"{count} regions of memory in {len(payload)} bytes")
    return tuple(Placed(*_REGION.unpack_from(payload, 8 + number * _REGION.size)) for number in range(count))


def parse_config(payload: bytes) -> Config:
    """Which part of the configuration space is asked for."""
    if len(payload) < _CONFIG.size:
        raise BadMessageError(f"{len(payload)} bytes of configuration")
    config = Config(*_CONFIG.unpack_from(payload))
    if config.size > len(payload) - _CONFIG.size:
        raise BadMessageError(f"{config.size} bytes of configuration")
    return config


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise BadMessageError(f"{len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)
