"""The guest's side of a split virtqueue, for tests: rings and buffers in memory that a device shares."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from atoll.vsock.virtqueue import Addresses

NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass
class GuestRing:
    """A ring of ``size`` descriptors at ``base`` of the memory ``view``."""

    view: memoryview
    base: int
    size: int
    free: list[int] = field(default_factory=list)
    offered: int = 0
    seen: int = 0
    chains: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self):
        self.used = (self.base + 16 * self.size + 6 + 2 * self.size + 3) & ~3
        self.available = self.base + 16 * self.size
        self.free = list(range(self.size))

    @property
    def end(self):
        return self.used + 6 + 8 * self.size

    def addresses(self, user):
        """Its parts, where ``user`` is the front-end's address of the memory."""
        return Addresses(user + self.base, user + self.used, user + self.available)

    def describe(self, number, address, length, flags, following=0):
        struct.pack_into("<QIHH", self.view, self.base + 16 * number, address, length, flags, following)

    def offer(self, head):
        """Make a chain available."""
        slot = self.available + 4 + 2 * (self.offered % self.size)
        struct.pack_into("<H", self.view, slot, head)
        self.offered += 1
        self.view[self.available + 2 : self.available + 4].cast("H")[0] = self.offered & 0xFFFF

    def add(self, parts):
        """Offer a chain of (address, length, writable); its head."""
        numbers = [self.free.pop() for _ in parts]
        for place, (address, length, writable) in enumerate(parts):
            last = place == len(parts) - 1
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.describe(numbers[place], address, length, flags, 0 if last else numbers[place + 1])
        self.chains[numbers[0]] = numbers
        self.offer(numbers[0])
        return numbers[0]

    def returned(self):
        """What the device has given back since: (head, written)."""
        index = self.view[self.used + 2 : self.used + 4].cast("H")[0]
        found = []
        while self.seen != index:
            entry = self.used + 4 + 8 * (self.seen % self.size)
            head, written = struct.unpack_from("<II", self.view, entry)
            found.append((head, written))
            self.free += self.chains.pop(head, [head])
            self.seen = (self.seen + 1) & 0xFFFF
        return found
