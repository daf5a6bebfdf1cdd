"""Making a chain shorter: files that nobody else has become one.

Frozen files that others have stay as they are. Whoever has one of a chain's files has those below it, too;
so those that are this machine's own are the upper end of its chain, with the active file on top.

Nothing of the chain is lost whatever is killed: the result gets a new name, the record names it when it is
durable, and then what it is made of is removed. The lowest file, which holds the most, is not copied: what
lies over it is written into it, where nobody sees it as long as those overlays are there, which cover it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.image import qcow2
from atoll.image.extents import ZEROES, Extent, copy_range
from atoll.paths import VmPaths
from atoll.vm.branching import finish_branch
from atoll.vm.chain import (
    PLAIN,
    Chain,
    Layer,
    new_active,
    opened,
    write_chain,
)

__all__ = ["Fold", "compact", "plan_fold"]

#: fallocate(2): punch a hole, and leave the size as it is.
_PUNCH = 0x01 | 0x02


class Fold(msgspec.Struct, frozen=True):
    """What of a chain stays, and what becomes one; the lowest first."""

    kept: tuple[Layer, ...]
    folded: tuple[Layer, ...]


def plan_fold(chain: Chain, links: Sequence[int]) -> Fold | None:
    """What can be folded; None if nothing can.

    Args:
        chain: of the disk.
        links: how many names each of its files has (stat(2), ``st_nlink``).
    """
    own = len(chain.files)
    while own and links[own - 1] == 1:
        own -= 1
    fold = Fold(chain.files[:own], chain.files[own:])
    return fold if len(fold.folded) > 1 else None


def compact(place: VmPaths) -> Chain:
    """Fold what can be folded of the disk of a machine that has no VM; the chain.

    The caller keeps everybody else away. It may be cut short anywhere and called again.

    Raises:
        StoreError: ``store.full`` or ``store.io``; the disk holds what it held.
        ImageError: ``image.disk``: a file is damaged.
    """
    chain = finish_branch(place)  # names that an earlier one left would look like those of others
    fold = plan_fold(chain, [os.stat(place.directory / file.name).st_nlink for file in chain.files])
    if fold is None:
        return chain
    shorter = _into_lowest(place, fold) if not fold.kept else _into_new(place, fold)
    if shorter is None:
        return chain
    write_chain(place, shorter)
    return finish_branch(place)


def _into_new(place: VmPaths, fold: Fold) -> Chain:
    """Write overlays as one."""
    active = new_active()
    below = fold.kept[-1]
    with opened(place, fold.folded) as found:
        path = place.directory / active.name
        qcow2.write(path, found.size, below.name, below.format, found.extents, found.files)
    store.sync_directory(place.directory)
    return Chain(files=(*fold.kept, active))


def _into_lowest(place: VmPaths, fold: Fold) -> Chain | None:
    """Write overlays into the raw file at the bottom; None if somebody still reads that.

    A snapshot that had it, and was removed, may be on its way to another file.
    """
    lowest, *overlays = fold.folded
    path = place.directory / lowest.name
    with opened(place, overlays) as found:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if not store.change_alone(fd):
                    return None
                if os.fstat(fd).st_size < found.size:
                    os.truncate(fd, found.size)
                for extent in found.extents:
                    _apply(fd, extent, found.files)
                os.fsync(fd)
            finally:
                os.close(fd)
            (place.directory / PLAIN.active.name).hardlink_to(path)
            store.sync_directory(place.directory)
        except OSError as error:
            if error.errno == 28:
                raise StoreError(f"no space left to write {path}", code="full", hint="free some") from error
            raise StoreError(f"cannot write {path}: {error.strerror}", code="io") from error
    return PLAIN


def _apply(fd: int, extent: Extent, files: Sequence[int]) -> None:
    """Make a run of a raw file what an overlay says. Raises ``OSError``."""
    _clear(fd, extent)
    if extent.source != ZEROES:
        copy_range(files[extent.source], extent.offset, fd, extent.at, extent.length)


def _clear(fd: int, extent: Extent) -> None:
    import ctypes  # noqa: PLC0415 - rarely needed

    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (fd, _PUNCH, ctypes.c_int64(extent.at), ctypes.c_int64(extent.length))
    if libc.fallocate(*arguments) != 0:  # the file system has no holes
        at = extent.at
        while at < extent.end:
            at += os.pwrite(fd, bytes(min(1 << 20, extent.end - at)), at)
