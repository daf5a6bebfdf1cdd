"""How two trees of files differ, by the records of what was written over their roots. Pure."""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from atoll.errors import ProtocolError
from atoll.guest.survey import Entry, Record
from atoll.image.extents import Extent

__all__ = [
    "Change",
    "Changed",
    "Difference",
    "FileState",
    "Pair",
    "difference_of",
    "pairs_of",
    "verdict",
]


class Change(StrEnum):
    """What became of a file."""

    ADDED = "A"
    DELETED = "D"
    CONTENT = "M"
    METADATA = "m"
    TYPE = "T"


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """A file at one time.

    Attributes:
        type: ``file``, ``directory``, ``symlink``, ``fifo``, ``socket``, ``block`` or ``character``.
        mode: permission bits.
        uid: of its owner; ``gid`` likewise of its group.
        size: of a regular file, bytes; else 0.
        device: number of a device (``os.major``); else 0.
        target: of a symbolic link; else empty.
        xattrs: extended attributes; what is beyond 16 KiB of them is left out.
    """

    type: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    device: int = 0
    target: str = ""
    xattrs: dict[str, bytes] = {}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is another one in the second of two snapshots.

    Attributes:
        change: what became of it; ``CONTENT`` may come with other metadata.
        path: from ``/`` on; bytes that are no UTF-8 are told as ``os.fsdecode`` has them.
        before: what it was in the first one; None if it was not there.
        after: what it is in the second one; None if it is not there.
    """

    change: Change
    path: str
    before: FileState | None
    after: FileState | None


class Pair(NamedTuple):
    """A file in the first tree and in the second one; None where it is not there."""

    path: bytes
    before: Entry | None
    after: Entry | None


class Changed:
    """In which runs of a disk two disks may differ that have files in common.

    Args:
        extents: the runs, in any order; None if the disks have nothing in common.
    """

    def __init__(self, extents: Iterable[Extent] | None) -> None:
        self._all = extents is None
        self._starts: list[int] = []
        self._ends: list[int] = []
        for one in sorted(extents or ()):
            if self._ends and one.at <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], one.end)
            else:
                self._starts.append(one.at)
                self._ends.append(one.end)

    def touches(self, at: int, length: int) -> bool:
        """Whether one of them lies between ``at`` and ``at + length``, bytes."""
        number = bisect_right(self._ends, at)
        return self._all or (number < len(self._starts) and self._starts[number] < at + length)

    def holds(self, one: Entry, other: Entry) -> bool:
        """Whether two files may hold different things: False if they are the same bytes of the same disk."""
        if self._all or not one.place or one.place != other.place:
            return True
        return any(self.touches(at, length) for at, length in _runs(one.place))


_PLACE = struct.Struct("<QQQ")
_RUN = struct.Struct("<QQQI")


def _runs(place: bytes) -> list[tuple[int, int]]:
    if len(place) < _PLACE.size or (len(place) - _PLACE.size) % _RUN.size:
        raise ProtocolError("a malformed place of a file from the guest")
    return [(at, length) for _, at, length, _ in _RUN.iter_unpack(place[_PLACE.size :])]


def pairs_of(one: Sequence[Record], other: Sequence[Record], *, shared: bool) -> list[Pair]:
    """The files that were written in either tree, in both, by path.

    Args:
        one: what was written in the first tree.
        other: what was written in the second one.
        shared: both lie over the same root, and of a file without a record there is what that has; else such
            a file is not there.
    """
    first, second = _by_path(one), _by_path(other)
    return [
        Pair(path, _entry(first, second, path, shared=shared), _entry(second, first, path, shared=shared))
        for path in sorted(first.keys() | second.keys(), key=lambda path: path.split(b"/"))
    ]


def _by_path(records: Sequence[Record]) -> dict[bytes, Record]:
    found = {record.path: record for record in records}
    if len(found) != len(records):
        raise ProtocolError("the same file twice from the guest")
    return found


def _entry(
    own: Mapping[bytes, Record], others: Mapping[bytes, Record], path: bytes, *, shared: bool
) -> Entry | None:
    record = own.get(path)
    if record is not None:
        return record.here
    return others[path].base if shared else None


def verdict(pair: Pair, changed: Changed, same_content: bool | None = None) -> Change | bool:
    """What became of a file: False if nothing did, True if that takes a look at its contents.

    Args:
        pair: the file.
        changed: where the disks may differ.
        same_content: what a look has told; None before.
    """
    _, before, after = pair
    if before is None or after is None:
        gone = Change.DELETED if after is None else Change.ADDED
        return gone if before is not after else False
    if before.type != after.type:
        return Change.TYPE
    if (before.size, before.device, before.target) != (after.size, after.device, after.target):
        return Change.CONTENT
    if before.type == "file" and before.size:
        if same_content is None and changed.holds(before, after):
            return True
        if same_content is False:
            return Change.CONTENT
    return Change.METADATA if _metadata(before) != _metadata(after) else False


def _metadata(entry: Entry) -> tuple[object, ...]:
    return (entry.mode, entry.uid, entry.gid, entry.xattrs)


def difference_of(pair: Pair, change: Change) -> Difference:
    """What a user is told."""
    return Difference(
        change=change,
        path="/" + os.fsdecode(pair.path),
        before=_state(pair.before),
        after=_state(pair.after),
    )


def _state(entry: Entry | None) -> FileState | None:
    if entry is None:
        return None
    return FileState(
        type=entry.type,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        device=entry.device,
        target=os.fsdecode(entry.target),
        xattrs=_attributes(entry.xattrs),
    )


def _attributes(packed: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while packed:
        name, zero, rest = packed.partition(b"\0")
        size = int.from_bytes(rest[:4], "little")
        if not zero or len(rest) < 4 + size:
            raise ProtocolError("malformed extended attributes from the guest")
        found[os.fsdecode(name)] = rest[4 : 4 + size]
        packed = rest[4 + size :]
    return found
