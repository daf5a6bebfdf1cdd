"""Split virtqueues (Virtio 1.2, 2.7) over memory that is shared with a guest which may do anything to it.

All that the guest writes is read once, checked, and used as it was read. What breaks the rules breaks the
queue: ``Queue.broken`` says why, nothing is read or written any more, and nothing is raised (Virtio 1.2,
2.1.2: the device needs a reset).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LARGEST", "LONGEST", "Addresses", "Chain", "Memory", "Queue", "Region", "split"]

#: Most descriptors of a queue (Virtio 1.2, 2.7).
LARGEST = 32_768

#: Most descriptors of a chain, also through an indirect table: as many as sendmsg(2) takes parts.
LONGEST = 1024

#: ``struct virtq_desc`` (2.7.5): address, length, flags, next.
_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4

#: ``VIRTQ_AVAIL_F_NO_INTERRUPT`` (2.7.6) and ``VIRTQ_USED_F_NO_NOTIFY`` (2.7.8).
_QUIET = 1

_barrier = threading.Lock()


class Region(NamedTuple):
    """Memory of the guest, mapped here.

    Attributes:
        guest: its address in the guest, bytes.
        user: its address in the front-end's own memory, by which that tells where rings are.
        view: the memory.
    """

    guest: int
    user: int
    view: memoryview


class Addresses(NamedTuple):
    """Where the parts of a ring are, as addresses of the front-end."""

    descriptors: int
    used: int
    available: int


class Chain(NamedTuple):
    """A buffer of the guest: descriptors in the order of the chain.

    Attributes:
        head: by which it is given back.
        readable: what the guest has written, in parts.
        writable: what the device may write, in parts.
    """

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class _BrokenError(Exception):
    """The guest or the front-end broke the rules; the words say how."""


class Memory:
    """The guest's memory, as far as the front-end shares it."""

    def __init__(self, regions: Sequence[Region] = ()) -> None:
        self._regions = sorted(regions, key=lambda region: -len(region.view))  # most is in the largest one

    def guest(self, address: int, length: int) -> memoryview | None:
        """``length`` bytes at an address of the guest; None unless one region holds them all."""
        for region in self._regions:
            start = address - region.guest
            if start >= 0 and start + length <= len(region.view):
                return region.view[start : start + length]
        return None

    def user(self, address: int, length: int) -> memoryview | None:
        """Likewise at an address of the front-end."""
        for region in self._regions:
            start = address - region.user
            if start >= 0 and start + length <= len(region.view):
                return region.view[start : start + length]
        return None


class Queue:
    """One queue, from the device's side.

    Words that both sides use at once are read and written through ``memoryview.cast``, in one access each: a
    guest would see halves of what ``struct`` writes.

    Attributes:
        broken: why it is of no use any more; empty while it is.
        size: number of descriptors.
        last: which of the guest's buffers is next, as a free-running index of 16 bits.
        event_idx: ``VIRTIO_F_EVENT_IDX`` was negotiated.
        indirect: ``VIRTIO_F_INDIRECT_DESC`` was negotiated.
    """

    def __init__(self) -> None:
        self.broken = ""
        self.size = 0
        self.last = 0
        self.event_idx = False
        self.indirect = False
        self._memory = Memory()
        self._live = False
        self._descriptors = self._halves = self._words = self._offered = memoryview(b"")
        self._used = 0
        self._told = 0

    @property
    def live(self) -> bool:
        """Whether it can be used."""
        return self._live

    def start(self, memory: Memory, addresses: Addresses) -> None:
        """Use the ring at ``addresses`` from now on, from buffer ``last`` on."""
        self.broken = ""
        try:
            self._map(memory, addresses)
        except _BrokenError as error:
            self._break(error)

    def stop(self) -> None:
        """Use the ring no more; ``last`` tells where another device would go on."""
        self._live = False
        self._memory = Memory()
        self._descriptors = self._halves = self._words = self._offered = memoryview(b"")

    def _map(self, memory: Memory, addresses: Addresses) -> None:
        size = self.size
        if not 0 < size <= LARGEST or size & (size - 1):
            raise _BrokenError(f"a queue of {size} descriptors")
        # 2.7: each part has its own alignment and size.
        if addresses.descriptors % 16 or addresses.available % 2 or addresses.used % 4:
            raise _BrokenError("a ring that is not aligned")
        descriptors = memory.user(addresses.descriptors, 16 * size)
        available = memory.user(addresses.available, 6 + 2 * size)
        used = memory.user(addresses.used, 6 + 8 * size)
        if descriptors is None or available is None or used is None:
            raise _BrokenError("a ring outside the guest's memory")
        self._memory, self._descriptors = memory, descriptors
        self._offered, self._halves = available.cast("H"), used.cast("H")
        self._words = used[: 4 + 8 * size].cast("I")
        self._used = self._told = self._halves[1]
        self._live = True

    def pending(self) -> int:
        """How many buffers the guest has offered and not got back."""
        if not self._live:
            return 0
        count = (self._offered[1] - self.last) & 0xFFFF
        if count > self.size:
            self._break(_BrokenError(f"{count} buffers offered in a queue of {self.size}"))
            return 0
        if count:
            _fence()  # what the index speaks of is read after it
        return count

    def peek(self, ahead: int = 0) -> Chain | None:
        """The buffer that is ``ahead`` of the next one, without taking it; None if the queue breaks by it.

        The caller knows from ``pending`` that it is there.
        """
        if not self._live:
            return None
        head = self._offered[2 + ((self.last + ahead) & (self.size - 1))]
        try:
            return self._walk(head)
        except _BrokenError as error:
            self._break(error)
            return None

    def _walk(self, head: int) -> Chain:
        table, count = self._descriptors, self.size
        chain = Chain(head, [], [])
        number, left, direct = head, min(count, LONGEST), True
        while True:
            if number >= count:
                raise _BrokenError(f"descriptor {number} of {count}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * number)
            if flags & _INDIRECT:
                if not direct or not self.indirect or flags & _NEXT:
                    raise _BrokenError("an indirect table that is not allowed there")
                table, count = self._table(address, length)
                number, left, direct = 0, count, False
                continue
            if not left:
                raise _BrokenError("a chain without end")
            left -= 1
            self._add(chain, address, length, writable=bool(flags & _WRITE))
            if not flags & _NEXT:
                return chain
            number = following

    def _table(self, address: int, length: int) -> tuple[memoryview, int]:
        """An indirect table (2.7.5.3), as it is now: it is not looked at again."""
        if not length or length % 16 or length > 16 * LONGEST:
            raise _BrokenError(f"an indirect table of {length} bytes")
        view = self._memory.guest(address, length)
        if view is None:
            raise _BrokenError("an indirect table outside the guest's memory")
        return view, length // 16

    def _add(self, chain: Chain, address: int, length: int, *, writable: bool) -> None:
        if not length:
            raise _BrokenError("a descriptor of no bytes")
        if chain.writable and not writable:
            raise _BrokenError("a readable descriptor behind a writable one")
        view = self._memory.guest(address, length)
        if view is None:
            raise _BrokenError("a buffer outside the guest's memory")
        (chain.writable if writable else chain.readable).append(view)

    def push(self, head: int, written: int) -> None:
        """Give the next buffer back, which is ``head``, with that many bytes written."""
        if not self._live:
            return
        place = 1 + 2 * (self._used & (self.size - 1))
        self._words[place] = head
        self._words[place + 1] = written
        self.last = (self.last + 1) & 0xFFFF
        self._used = (self._used + 1) & 0xFFFF
        _fence()  # the index is seen after what it speaks of
        self._halves[1] = self._used

    def wants_call(self) -> bool:
        """Whether the guest is to be told of what was given back since it was asked last (2.7.7, 2.7.10)."""
        old, new = self._told, self._used
        if not self._live or old == new:
            return False
        self._told = new
        _fence()  # what the guest wants is read after the index was written
        if self.event_idx:
            event = self._offered[2 + self.size]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._offered[0] & _QUIET

    def mute(self) -> None:
        """Ask the guest not to tell of new buffers."""
        if self._live and not self.event_idx:
            self._halves[0] = _QUIET

    def listen(self) -> bool:
        """Ask the guest to tell of the next buffer; True if one has come meanwhile."""
        if not self._live:
            return False
        if self.event_idx:
            self._halves[2 + 4 * self.size] = self._offered[1]
        else:
            self._halves[0] = 0
        _fence()
        return self.pending() > 0

    def fail(self, reason: str) -> None:
        """Break the queue for a reason that its user has found."""
        self._break(_BrokenError(reason))

    def _break(self, error: _BrokenError) -> None:
        self.stop()
        self.broken = str(error)


def split(parts: list[memoryview], length: int) -> tuple[list[memoryview], list[memoryview]] | None:
    """The first ``length`` bytes of ``parts`` and the rest; None if there are less.

    How a guest cuts what it sends into descriptors is its own affair (Virtio 1.2, 2.7.4).
    """
    front: list[memoryview] = []
    for number, part in enumerate(parts):
        if len(part) >= length:
            front.append(part[:length])
            rest = [part[length:]] if len(part) > length else []
            return front, rest + parts[number + 1 :]
        front.append(part)
        length -= len(part)
    return None


def _fence() -> None:
    """A full memory barrier: taking a lock and giving it back is one on every host."""
    with _barrier:
        pass
