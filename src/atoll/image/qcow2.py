"""Overlays in the format qcow2: files that hold what differs from the disk below them.

Written and read here is what QEMU's own description calls version 3 with standard clusters of 64 KiB (QEMU's
docs/interop/qcow2.txt): no compression, encryption, internal snapshots, external data or extended L2 entries.
A file that a VM wrote is as trustworthy as its guest: whatever is read is checked, and the name of the file
below, which stands in the header for the eyes of people and their tools, is never followed.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from atoll.errors import ImageError, StoreError
from atoll.image.extents import ZEROES, Extent, copy_range, joined

__all__ = [
    "CLUSTER",
    "Header",
    "create",
    "grow",
    "is_empty",
    "read_extents",
    "read_header",
    "require_plain",
    "write",
]

CLUSTER = 1 << 16

#: Fields of the header, version 3.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_MAGIC, _VERSION = b"QFI\xfb", 3
_SIZE_AT = 24

#: Header extension: the format of the file below.
_FORMAT_EXTENSION = 0xE2792ACA

#: Header extension: names of features, for messages; QEMU may add it.
_NAMES_EXTENSION = 0x6803F857

#: Incompatible features: only the first one, refcounts that may be off, does not matter to a reader.
_DIRTY = 1

_ENTRY = 8
_PER_TABLE = CLUSTER // _ENTRY
_PER_REFCOUNTS = CLUSTER // 2

#: Bytes of the disk that one entry of the L1 table covers.
_REACH = _PER_TABLE * CLUSTER

#: Most entries of an L1 table: QEMU reads no larger one (32 MiB).
_MOST_L1 = (32 << 20) // _ENTRY

#: Most runs of which an overlay may consist: each takes 150 bytes here. A guest that writes every second
#: cluster of its disk of 256 GiB has as many.
_MOST_RUNS = 1 << 21

_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_OFFSET = (1 << 56) - (1 << 9)


class Header(msgspec.Struct, frozen=True):
    """What the first cluster says.

    Attributes:
        size: of the disk, bytes.
        backing: name of the file below; empty for none.
        l1_offset: where the L1 table begins, bytes.
        l1_entries: how many entries it has; more than the disk needs are room to grow.
    """

    size: int
    backing: str
    l1_offset: int
    l1_entries: int

    @property
    def room(self) -> int:
        """Up to how many bytes the disk can grow by its size alone."""
        return self.l1_entries * _REACH


def create(path: Path, size: int, backing: str, backing_format: str) -> None:
    """Write an overlay that differs in nothing. Raises as ``write``."""
    write(path, size, backing, backing_format, (), ())


def write(
    path: Path,
    size: int,
    backing: str,
    backing_format: str,
    extents: Sequence[Extent],
    files: Sequence[int],
) -> None:
    """Write an overlay that differs in ``extents``, for its owner's eyes, and wait until it is on its disk.

    Args:
        path: the file; it must not exist.
        size: of the disk, bytes.
        backing: name of the file below.
        backing_format: of that file: ``raw`` or ``qcow2``.
        extents: in order; they begin and, but for the last one, end where clusters do.
        files: descriptors of what the extents lie in.

    Raises:
        StoreError: ``store.full`` or ``store.io``; nothing is left of it then.
    """
    plan = _Layout.of(size, extents)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, plan.end * CLUSTER)
            os.pwrite(fd, _first_cluster(size, backing, backing_format, plan), 0)
            _write_refcounts(fd, plan)
            _write_tables(fd, plan, extents, files)
            os.fsync(fd)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == 28:
            raise StoreError(f"no space left to write {path}", code="full", hint="free some space") from error
        raise StoreError(f"cannot write {path}: {error.strerror}", code="io") from error


class _Layout(msgspec.Struct, frozen=True):
    """Where the parts of a new file begin, in clusters: all are behind one another.

    Attributes:
        blocks: refcount blocks, behind the header and the refcount table.
        l1: the L1 table, of ``l1_clusters``.
        l2: L2 tables; ``tables`` are the L1 entries that have one.
        data: clusters with data.
        end: how many clusters the file has.
    """

    blocks: int
    l1: int
    l1_clusters: int
    l2: int
    tables: tuple[int, ...]
    data: int
    end: int

    @classmethod
    def of(cls, size: int, extents: Sequence[Extent]) -> _Layout:
        """For such a disk."""
        l1_clusters = max(_over(_over(size, _REACH), _PER_TABLE), 1)
        reached = {
            number for one in extents for number in range(one.at // _REACH, (one.end - 1) // _REACH + 1)
        }
        clusters = sum(_over(one.length, CLUSTER) for one in extents if one.source != ZEROES)
        others = 1 + l1_clusters + len(reached) + clusters
        table = blocks = 1
        while True:
            wanted = _over(others + table + blocks, _PER_REFCOUNTS)
            if (wanted, _over(wanted, _PER_TABLE)) == (blocks, table):
                break
            blocks, table = wanted, _over(wanted, _PER_TABLE)
        l1 = 1 + table + blocks
        l2 = l1 + l1_clusters
        data = l2 + len(reached)
        return cls(1 + table, l1, l1_clusters, l2, tuple(sorted(reached)), data, data + clusters)


def _over(count: int, unit: int) -> int:
    """``count`` in units, rounded up."""
    return -(-count // unit)


def _first_cluster(size: int, backing: str, backing_format: str, plan: _Layout) -> bytes:
    name, layout = backing.encode(), backing_format.encode()
    extension = struct.pack(">II", _FORMAT_EXTENSION, len(layout)) + layout + bytes(-len(layout) % 8)
    rest = extension + bytes(8)  # the end of the extensions
    return (
        _HEADER.pack(
            _MAGIC,
            _VERSION,
            _HEADER.size + len(rest),
            len(name),
            16,  # cluster_bits
            size,
            0,  # crypt_method
            plan.l1_clusters * _PER_TABLE,
            plan.l1 * CLUSTER,
            CLUSTER,  # refcount_table_offset
            plan.blocks - 1,
            0,  # nb_snapshots
            0,  # snapshots_offset
            0,  # incompatible_features
            0,  # compatible_features
            0,  # autoclear_features
            4,  # refcount_order: 16 bits
            _HEADER.size,
        )
        + rest
        + name
    )


def _write_refcounts(fd: int, plan: _Layout) -> None:
    """Each cluster of the file is used once."""
    count = plan.l1 - plan.blocks
    os.pwrite(fd, _big("Q", [(plan.blocks + number) * CLUSTER for number in range(count)]), CLUSTER)
    for number in range(count):
        used = min(plan.end - number * _PER_REFCOUNTS, _PER_REFCOUNTS)
        os.pwrite(fd, _big("H", [1] * used), (plan.blocks + number) * CLUSTER)


def _write_tables(fd: int, plan: _Layout, extents: Sequence[Extent], files: Sequence[int]) -> None:
    """L1, L2 and the data."""
    places = {number: (plan.l2 + place) * CLUSTER for place, number in enumerate(plan.tables)}
    for number, place in places.items():
        os.pwrite(fd, _big("Q", [place | _COPIED]), plan.l1 * CLUSTER + number * _ENTRY)
    free = plan.data * CLUSTER
    for one in extents:
        assert one.at % CLUSTER == 0, "an extent begins where a cluster does"
        if one.source != ZEROES:
            copy_range(files[one.source], one.offset, fd, free, one.length)
        first, last = one.at // CLUSTER, _over(one.end, CLUSTER)
        while first < last:
            number, place = divmod(first, _PER_TABLE)
            count = min(last - first, _PER_TABLE - place)
            if one.source == ZEROES:
                entries = [_ZERO] * count
            else:
                entries = [free + step * CLUSTER | _COPIED for step in range(count)]
                free += count * CLUSTER
            os.pwrite(fd, _big("Q", entries), places[number] + place * _ENTRY)
            first += count


def _big(kind: str, values: Sequence[int]) -> bytes:
    """Unsigned numbers, big-endian; ``Q`` has 64 bits, ``H`` 16."""
    numbers = array(kind, values)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(data: bytes) -> array[int]:
    """64-bit numbers as the file has them."""
    numbers = array("Q", data)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def require_plain(path: Path, backing: str, backing_format: str) -> Header:
    """See that an overlay of unknown origin is one as ``write`` makes it; its header.

    It names the file below by exactly this name and format, and no other file; it has no encryption and no
    snapshots of its own. All that its tables lead to lies in it.

    Raises:
        ImageError: ``image.disk``: it is something else.
        OSError: it cannot be read.
    """
    with _opened(path) as fd:
        header = _header(fd, path)
        data = os.pread(fd, CLUSTER, 0)
        snapshots, features = _HEADER.unpack_from(data)[11], _HEADER.unpack_from(data)[13:16]
        if header.backing != backing:
            raise _damaged(path, f"it lies over {header.backing!r}, not over {backing}")
        if snapshots or any(features):
            raise _damaged(path, "it uses features of qcow2 that are not used here")
        extensions = dict(_extensions(data, path))
        if extensions.pop(_FORMAT_EXTENSION, b"") != backing_format.encode():
            raise _damaged(path, "it does not say what lies below it")
        if extensions.keys() - {_NAMES_EXTENSION}:
            raise _damaged(path, "its header has an extension that is not used here")
        for _ in _tables(fd, path, header, 0):
            pass
        return header


def _extensions(data: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """The header's extensions, each once, up to the one that ends them."""
    at, found = _HEADER.unpack_from(data)[17], set()
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        if kind == 0:
            return
        if kind in found or at + 8 + length > len(data):
            break
        found.add(kind)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + -(-length // 8) * 8
    raise _damaged(path, "its header's extensions have no end")


def read_header(path: Path) -> Header:
    """The header of the overlay at ``path``. Raises ``ImageError``: ``image.disk``; ``OSError``."""
    with _opened(path) as fd:
        return _header(fd, path)


def is_empty(path: Path) -> bool:
    """Whether an overlay that nobody writes differs in nothing from what lies below it. Raises as above."""
    with _opened(path) as fd:
        header = _header(fd, path)
        return not any(os.pread(fd, header.l1_entries * _ENTRY, header.l1_offset))


def grow(path: Path, size: int) -> bool:
    """Make the disk of an overlay that nobody has open larger, for good; False if its L1 table is too small.

    Raises:
        ImageError: ``image.disk``: it is damaged.
        OSError: it cannot be written.
    """
    with _opened(path, os.O_RDWR) as fd:
        header = _header(fd, path)
        if size > header.room:
            return False
        if size > header.size:
            os.pwrite(fd, size.to_bytes(8, "big"), _SIZE_AT)  # within one sector
            os.fsync(fd)
        return True


def read_extents(fd: int, path: Path, source: int) -> list[Extent]:
    """The runs in which an overlay differs from what lies below it, in order.

    Args:
        fd: the open file, which nobody writes.
        path: its name, for messages.
        source: what the runs call it.

    Raises:
        ImageError: ``image.disk``: it is damaged, or uses what is not used here.
        OSError: it cannot be read.
    """
    header = _header(fd, path)
    found: list[Extent] = []
    for table in _tables(fd, path, header, source):
        found += table
        if len(found) > _MOST_RUNS:
            raise _damaged(path, f"it has more than {_MOST_RUNS:,} runs")
    return joined(_until(found, header.size))


def _tables(fd: int, path: Path, header: Header, source: int) -> Iterator[list[Extent]]:
    """The runs of each L2 table, of whole clusters, in order. Raises as ``read_extents``."""
    end = os.fstat(fd).st_size
    seen: set[int] = set()
    most = _over(end, CLUSTER)
    clusters = 0
    needed = _over(header.size, _REACH)
    for number, entry in enumerate(_numbers(os.pread(fd, needed * _ENTRY, header.l1_offset))):
        if entry == 0:
            continue
        place = entry & _OFFSET
        if entry & ~(_OFFSET | _COPIED) or place % CLUSTER or not 0 < place <= end - CLUSTER:
            raise _damaged(path, f"L1 entry {number} is {entry:#x}")
        if place in seen:  # it could make any number of bytes out of one file
            raise _damaged(path, f"two L1 entries lead to {place:#x}")
        seen.add(place)
        table = _extents_of(_numbers(os.pread(fd, CLUSTER, place)), number * _REACH, source, end, path)
        clusters += sum(one.length for one in table if one.source != ZEROES) // CLUSTER
        if clusters > most:
            raise _damaged(path, "it has more clusters than its file")
        yield table


def _extents_of(table: array[int], start: int, source: int, end: int, path: Path) -> list[Extent]:
    """The runs of one L2 table, of whole clusters."""
    found = []
    for number, entry in enumerate(table):
        if entry == 0:
            continue
        place = entry & _OFFSET
        if entry & ~(_OFFSET | _COPIED | _ZERO) or place % CLUSTER:
            what = "is compressed" if entry & _COMPRESSED else f"is {entry:#x}"
            raise _damaged(path, f"the L2 entry for byte {start + number * CLUSTER} {what}")
        # A cluster past the end of the file was given out, and not written when the host went down.
        if entry & _ZERO or place >= end:
            found.append(Extent(start + number * CLUSTER, CLUSTER, ZEROES))
        elif place:
            found.append(Extent(start + number * CLUSTER, CLUSTER, source, place))
    return joined(found)


def _until(extents: Sequence[Extent], size: int) -> Iterator[Extent]:
    for one in extents:
        if one.at < size:
            yield one._replace(length=min(one.length, size - one.at))


@contextmanager
def _opened(path: Path, how: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, how | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _header(fd: int, path: Path) -> Header:
    data = os.pread(fd, CLUSTER, 0)
    if len(data) < _HEADER.size:
        raise _damaged(path, "it is too short for a header")
    (
        magic,
        version,
        name_at,
        name_length,
        bits,
        size,
        crypt,
        l1_entries,
        l1_offset,
        *_,
        incompatible,
        _,
        _,
        _,
        length,
    ) = _HEADER.unpack_from(data)
    if (magic, version) != (_MAGIC, _VERSION):
        raise _damaged(path, "it is no qcow2 file of version 3")
    if bits != 16 or crypt or incompatible & ~_DIRTY or length < _HEADER.size:
        raise _damaged(path, "it uses features of qcow2 that are not used here")
    if not _over(size, _REACH) <= l1_entries <= _MOST_L1:
        raise _damaged(path, f"its L1 table has {l1_entries} entries for {size} bytes")
    end = os.fstat(fd).st_size
    if l1_offset % CLUSTER or not CLUSTER <= l1_offset <= end - l1_entries * _ENTRY:
        raise _damaged(path, f"its L1 table lies at {l1_offset:#x}")
    if name_length > 1023 or (name_length and not length <= name_at <= len(data) - name_length):
        raise _damaged(path, "the name of the file below lies outside the header")
    name = data[name_at : name_at + name_length].decode(errors="replace")
    return Header(size, name, l1_offset, l1_entries)


def _damaged(path: Path, why: str) -> ImageError:
    hint = "go back to a snapshot or an export, if there is one"
    return ImageError(f"{path} is damaged: {why}", code="disk", hint=hint)
