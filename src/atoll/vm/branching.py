"""Branching a disk: what it holds now is frozen, and what is written from now on goes to a new file.

Nothing is copied. The steps are in such an order that whatever is killed after any of them, the record names
files that hold all that was written, and none that is written has another reader:

1. the new overlay is written, and the active file gets its frozen name beside its own (``prepare_branch``);
2. the record names both, durably (the end of ``prepare_branch``);
3. a VM that runs goes over to the overlay (``Pluggable.branch_disk``): until then it writes the file below,
   which is right for whoever starts from the record, but nobody else may have that file yet;
4. the active file's former name is removed (``finish_branch``). Only now others may have what is frozen.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.hypervisor.model import DiskFormat
from atoll.hypervisor.port import Pluggable
from atoll.image import disk, qcow2
from atoll.paths import VmPaths
from atoll.vm.chain import (
    PLAIN,
    SERIAL,
    Chain,
    Layer,
    branched,
    new_active,
    read_chain,
    require_files,
    size_of,
    stale,
    write_chain,
)

__all__ = [
    "Branch",
    "adopt_disk",
    "branch_at_rest",
    "branch_live",
    "finish_branch",
    "finish_switch",
    "link_into",
    "link_layers",
    "prepare_branch",
    "sweep",
]


class Branch(msgspec.Struct, frozen=True):
    """A disk that is about to be branched: on record already.

    Attributes:
        before: the chain as it was.
        after: the chain as it is, its frozen files those that others may have once it is finished.
        size: of the disk, bytes.
    """

    before: Chain
    after: Chain
    size: int


def prepare_branch(place: VmPaths) -> Branch:
    """Steps 1 and 2. The caller sees to it that nobody else changes the machine.

    A VM that runs goes over to ``after.active`` next; one that had not done so after an earlier branch is to
    do that first (``finish_switch``).

    Raises:
        StoreError: it cannot be written; the disk is as it was. ``store.no_links``: nor can it ever be, since
            the file system has no hard links.
        ImageError: ``image.disk``: the active file is damaged.
    """
    before = read_chain(place)
    after = branched(before)
    frozen, overlay = after.frozen[-1], place.directory / after.active.name
    size = size_of(place, before)
    qcow2.create(overlay, size, frozen.name, frozen.format)
    try:
        _freeze(place, before.active, frozen)
        write_chain(place, after)
    except StoreError:
        if read_chain(place) == before:  # nobody has heard of them
            overlay.unlink(missing_ok=True)
            (place.directory / frozen.name).unlink(missing_ok=True)
        raise
    return Branch(before, after, size)


def _freeze(place: VmPaths, active: Layer, frozen: Layer) -> None:
    """Give the active file its frozen name as a second one."""
    with store.refusing(place.directory):
        try:
            (place.directory / frozen.name).hardlink_to(place.directory / active.name)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EOPNOTSUPP}:
                raise
            hint = "choose a place that has them with ATOLL_DATA_DIR"
            message = f"{place.directory} is on a file system without hard links"
            raise StoreError(message, code="no_links", hint=hint) from error
        store.sync_directory(place.directory)


def finish_branch(place: VmPaths) -> Chain:
    """Step 4, when no VM writes to what the record calls frozen; the chain.

    Raises:
        StoreError: ``store.missing``: a file is not there: then nothing is removed, the record may be lost.
    """
    chain = read_chain(place)
    require_files(place, chain)
    sweep(place, chain)
    return chain


def sweep(place: VmPaths, chain: Chain) -> None:
    """Remove the files that a disk left and ``chain``, which is on record, does not need."""
    with os.scandir(place.directory) as entries:
        names = [entry.name for entry in entries]
    if old := stale(names, chain):
        for name in old:
            (place.directory / name).unlink(missing_ok=True)
        store.sync_directory(place.directory)


def branch_at_rest(place: VmPaths) -> Chain:
    """Branch the disk of a machine that has no VM, unless nothing was written since it last was.

    The caller keeps everybody else away. Raises as ``prepare_branch``.
    """
    chain = finish_branch(place)
    if chain.active.format is DiskFormat.QCOW2 and qcow2.is_empty(place.directory / chain.active.name):
        return chain
    prepare_branch(place)
    return finish_branch(place)


async def branch_live(place: VmPaths, plugging: Pluggable) -> Chain:
    """Branch the disk of a running VM; the chain, whose frozen files others may have.

    What the guest has not flushed by then is on neither side; freeze its file systems or stop it for that.

    Raises:
        StoreError, ImageError: as ``prepare_branch``.
        BootError: as ``Pluggable.branch_disk``; ``finish_switch`` is to be called before the next branch.
    """
    await finish_switch(place, plugging)
    branch = await asyncio.to_thread(prepare_branch, place)
    await plugging.branch_disk(SERIAL, place.directory / branch.after.active.name)
    return await asyncio.to_thread(finish_branch, place)


async def finish_switch(place: VmPaths, plugging: Pluggable) -> bool:
    """Steps 3 and 4 of a branch that was cut short; whether there was something to do.

    Raises:
        StoreError: the record cannot be read.
        BootError: as ``Pluggable.branch_disk``.
    """
    chain = read_chain(place)
    if chain == PLAIN:
        return False
    due = (await plugging.disk_file(SERIAL)).name != chain.active.name
    if due:
        await plugging.branch_disk(SERIAL, place.directory / chain.active.name)
    finish_branch(place)
    return due


def link_into(source: VmPaths, layers: Sequence[Layer], target: VmPaths, size: int) -> Chain:
    """Give another machine the frozen files of a chain, and a new active file over them; its chain.

    A disk that it has already is no more its own once the record is written, and swept by ``finish_branch``.

    Args:
        source: the directory of the files, which stay there meanwhile.
        layers: all frozen files of a chain, the lowest first.
        target: the other machine, which has no VM.
        size: of the new disk, bytes.

    Raises:
        StoreError: ``store.full`` or ``store.io``; the other machine's disk is as it was.
    """
    active = new_active()
    link_layers(source, layers, target)
    qcow2.create(target.directory / active.name, size, layers[-1].name, layers[-1].format)
    store.sync_directory(target.directory)
    chain = Chain(files=(*layers, active))
    write_chain(target, chain)
    return chain


def adopt_disk(source: VmPaths, target: VmPaths) -> Chain:
    """Give a machine that has no VM the disk that ``link_into`` made in another directory; its chain.

    All that it needs is there: this works on a full disk, too. It can be done again if it was cut short.

    Raises:
        StoreError: ``store.missing``: a file is not there; ``store.io``.
    """
    chain = read_chain(source)
    require_files(source, chain)
    link_layers(source, chain.files, target)
    store.replace_by_link(target.chain, source.chain)
    return finish_branch(target)


def link_layers(source: VmPaths, layers: Sequence[Layer], target: VmPaths) -> None:
    """Have the frozen files of one directory in another one, too, durably.

    Raises:
        StoreError: ``store.full`` or ``store.io``.
    """
    with store.refusing(target.directory):
        for layer in layers:
            _link(source, layer.name, target)
        store.sync_directory(target.directory)


def _link(source: VmPaths, name: str, target: VmPaths) -> None:
    """The same file where the file system allows it, else one like it."""
    old, new = source.directory / name, target.directory / name
    partial = target.directory / new_active().name  # swept as one if this is killed
    try:
        if new.exists() and not new.samefile(old):  # a copy, as in a directory that was copied without links
            partial.hardlink_to(old)
            partial.rename(new)
            return
        new.hardlink_to(old)
    except FileExistsError:
        return
    except OSError:
        disk.copy_sparse(old, partial)
        partial.rename(new)
