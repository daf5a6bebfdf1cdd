"""Of which files a machine's disk is made: the lowest first, each holding what differs from those below it.

Only the last one, the active one, is written. Those below are frozen: a frozen file has a name that no other
file ever has, so that other directories can have it, too, by hard links; those are all the account that is
kept of who needs it. The active file's name is another one, and never that of a frozen file: whatever is
killed at whatever moment, nobody writes what another may read (docs/explanation/disks.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.hypervisor.model import Disk, DiskFile, DiskFormat, Machine
from atoll.image import qcow2
from atoll.image.extents import Extent, overlaid, raw_extents
from atoll.paths import VmPaths

__all__ = [
    "PLAIN",
    "SERIAL",
    "Chain",
    "Layer",
    "Opened",
    "branched",
    "disk_of",
    "files_of",
    "new_active",
    "opened",
    "read_chain",
    "require_files",
    "size_of",
    "stale",
    "used_by",
    "with_disk",
    "write_chain",
]

#: The serial by which the guest finds the disk.
SERIAL = "data"

#: The name that the active file has as long as it lies over no other.
_FIRST = "data.img"

_FROZEN = re.compile(r"layer-[0-9a-f]{16}\.(raw|qcow2)")
_ACTIVE = re.compile(r"active-[0-9a-f]{16}\.qcow2")


class Layer(msgspec.Struct, frozen=True):
    """A file in the machine's directory."""

    name: str
    format: DiskFormat


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """The record of a disk.

    Attributes:
        files: the lowest first, which is a raw file; the others are overlays. The last one is written.
    """

    SCHEMA: ClassVar[int] = 1

    schema: int = 1
    files: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if not self.files or len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a disk has files, each once")
        for number, file in enumerate(self.files):
            lowest, last = number == 0, file is self.files[-1]
            wanted = _FROZEN if not last else re.compile(re.escape(_FIRST)) if lowest else _ACTIVE
            known = file.format is (DiskFormat.RAW if lowest else DiskFormat.QCOW2)
            if not known or not wanted.fullmatch(file.name):
                raise ValueError(f"{file.name} is no file number {number} of a disk")

    @property
    def active(self) -> Layer:
        """What is written."""
        return self.files[-1]

    @property
    def frozen(self) -> tuple[Layer, ...]:
        """What is only read."""
        return self.files[:-1]


#: The disk of a machine that was never branched.
PLAIN = Chain(files=(Layer(_FIRST, DiskFormat.RAW),))


def new_active() -> Layer:
    """A new overlay for the top of a chain."""
    return Layer(f"active-{os.urandom(8).hex()}.qcow2", DiskFormat.QCOW2)


def branched(chain: Chain) -> Chain:
    """``chain`` with what is active now frozen, and a new active file on top."""
    active = chain.active
    frozen = Layer(f"layer-{os.urandom(8).hex()}.{active.format}", active.format)
    return Chain(files=(*chain.frozen, frozen, new_active()))


def stale(names: Iterable[str], chain: Chain) -> list[str]:
    """Those of a directory's files that a disk left which ``chain`` does not need any more."""
    needed = {file.name for file in chain.files}
    return [
        name
        for name in names
        if name not in needed and (name == _FIRST or _FROZEN.fullmatch(name) or _ACTIVE.fullmatch(name))
    ]


def read_chain(place: VmPaths) -> Chain:
    """The chain of the machine at ``place``. Raises ``StoreError``: the record is there and wrong."""
    try:
        return store.read_record(place.chain, Chain)
    except StoreError as error:
        if error.code != "store.missing":
            raise
        return PLAIN


def write_chain(place: VmPaths, chain: Chain) -> None:
    """Record ``chain``, whose files are all there and durable. Raises ``StoreError``."""
    store.write_record(place.chain, chain, parents=False)


def files_of(place: VmPaths, chain: Chain) -> list[Path]:
    """The files, the lowest first."""
    return [place.directory / file.name for file in chain.files]


def require_files(place: VmPaths, chain: Chain) -> None:
    """See that all files are there. Raises ``StoreError``: ``store.missing``."""
    for path in files_of(place, chain):
        if not path.exists():
            raise StoreError(f"{path} is missing", code="missing", hint="the machine has lost its disk")


def disk_of(place: VmPaths, chain: Chain) -> Disk:
    """What the hypervisor is asked for."""
    below = tuple(DiskFile(place.directory / file.name, file.format) for file in chain.frozen)
    return Disk(place.directory / chain.active.name, SERIAL, chain.active.format, backing=below)


def with_disk(machine: Machine, disk: Disk) -> Machine:
    """``machine`` with ``disk`` in the place of the one with its serial."""
    disks = tuple(disk if known.serial == disk.serial else known for known in machine.disks)
    return msgspec.structs.replace(machine, disks=disks)


def size_of(place: VmPaths, chain: Chain) -> int:
    """Bytes of the disk, as its active file has it. Raises ``ImageError``, ``StoreError``."""
    path = place.directory / chain.active.name
    try:
        if chain.active.format is DiskFormat.QCOW2:
            return qcow2.read_header(path).size
        return path.stat().st_size
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", code="io") from error


def used_by(place: VmPaths, chain: Chain) -> int:
    """Bytes that the files take on the host, whoever else has them."""
    total = 0
    for path in files_of(place, chain):
        try:
            total += path.stat().st_blocks * 512
        except OSError:
            continue
    return total


class Opened(msgspec.Struct, frozen=True):
    """The contents of a disk that nobody writes.

    Attributes:
        size: of the disk, bytes.
        extents: what it is made of, in order; what they leave out reads as zeroes.
        files: descriptors of the files that the extents lie in.
    """

    size: int
    extents: tuple[Extent, ...]
    files: tuple[int, ...]


@contextmanager
def opened(place: VmPaths, files: Iterable[Layer]) -> Iterator[Opened]:
    """What a disk of these files holds, the lowest first; a part of a chain holds what its overlays say.

    Raises:
        StoreError: ``store.io``: it cannot be read.
        ImageError: ``image.disk``: it is damaged.
    """
    with ExitStack() as stack:
        try:
            found = _open(place, files, stack)
        except OSError as error:
            raise StoreError(f"cannot read {place.directory}: {error.strerror}", code="io") from error
        yield found


def _open(place: VmPaths, files: Iterable[Layer], stack: ExitStack) -> Opened:
    fds: list[int] = []
    extents: list[Extent] = []
    size = 0
    for number, file in enumerate(files):
        path = place.directory / file.name
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        fds.append(fd)
        if file.format is DiskFormat.RAW:
            extents, size = raw_extents(fd, number), os.fstat(fd).st_size
        else:
            size = qcow2.read_header(path).size
            extents = overlaid(qcow2.read_extents(fd, path, number), extents, size)
    return Opened(size, tuple(extents), tuple(fds))
