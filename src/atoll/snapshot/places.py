"""Where each chunk is that is known by its digest: a million of them in 50 MB."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from atoll.snapshot.chunks import DIGEST

__all__ = ["Places", "place", "split"]

_LOW = (1 << 32) - 1


def place(pack: int, chunk: int) -> int:
    """A number for a chunk of a pack."""
    return pack << 32 | chunk


def split(number: int) -> tuple[int, int]:
    """Pack and chunk of a place."""
    return number >> 32, number & _LOW


class Places:
    """A set of places by digest: open addressing with linear probing, at most half full.

    It holds numbers only, the digests are where they were. Python's own hash of the digest, keyed in each
    process anew, says where to look: a guest cannot fill its RAM with what makes the search slow.

    Args:
        digests: of each pack, those of its chunks one after the other. They may grow.
    """

    def __init__(self, digests: Sequence[bytes | bytearray]) -> None:
        self._digests = digests
        self._slots = array("Q", bytes(8 << 10))  # a place plus one; zero is free
        self._count = 0

    def find(self, digest: bytes) -> int | None:
        """The place of a chunk."""
        found = self._slots[self._slot(digest)]
        return found - 1 if found else None

    def put(self, digest: bytes, number: int) -> None:
        """Say where a chunk is; what was said before of this digest is forgotten."""
        slot = self._slot(digest)
        self._count += not self._slots[slot]
        self._slots[slot] = number + 1
        self._make_room(self._count)

    def put_all(self, pack: int, count: int) -> None:
        """Say where the first ``count`` chunks of a pack are, unless others of the same digest are there."""
        self._make_room(self._count + count)
        digests, free = self._digests[pack], self._slot
        for chunk in range(count):
            slot = free(bytes(digests[chunk * DIGEST : (chunk + 1) * DIGEST]))
            if not self._slots[slot]:
                self._slots[slot] = place(pack, chunk) + 1
                self._count += 1

    def _slot(self, digest: bytes) -> int:
        """Where ``digest`` is, or would be."""
        slots, digests = self._slots, self._digests
        mask = len(slots) - 1
        slot = hash(digest) & mask
        while found := slots[slot]:
            at = (found - 1 & _LOW) * DIGEST
            if digests[found - 1 >> 32][at : at + DIGEST] == digest:
                break
            slot = slot + 1 & mask
        return slot

    def _make_room(self, count: int) -> None:
        """Have twice as many slots as there will be places, at least."""
        size = len(self._slots)
        while size < count * 2:
            size *= 2
        if size == len(self._slots):
            return
        old, self._slots = self._slots, array("Q", bytes(size * 8))
        slots, digests, mask = self._slots, self._digests, size - 1
        for found in filter(None, old):
            at = (found - 1 & _LOW) * DIGEST
            slot = hash(bytes(digests[found - 1 >> 32][at : at + DIGEST])) & mask
            while slots[slot]:  # each is there once
                slot = slot + 1 & mask
            slots[slot] = found
