"""A disk between two VMs: it gets another size, and what it needs before a start.

Whoever calls keeps everybody else away.
"""

from __future__ import annotations

import os

from atoll import store
from atoll.hypervisor.model import DiskFormat
from atoll.image import disk, qcow2
from atoll.paths import VmPaths
from atoll.vm.branching import finish_branch, prepare_branch
from atoll.vm.chain import read_chain, size_of

__all__ = ["LONGEST", "check_size", "grow", "tidy"]

#: Files of a chain that is left as it is: each costs a look-up for what lies far below.
LONGEST = 16


def check_size(place: VmPaths, size: int) -> None:
    """Refuse a size that the disk cannot grow to; a VM may have it.

    Raises:
        UsageError: ``usage.disk``.
        StoreError, ImageError: the active file cannot be read.
    """
    chain = read_chain(place)
    path = place.directory / chain.active.name
    room = qcow2.read_header(path).room if chain.active.format is DiskFormat.QCOW2 else None
    disk.check_growth(size_of(place, chain), size, room)


def grow(place: VmPaths, size: int) -> None:
    """Make the disk larger; its file system follows when the guest is told. Raises as ``check_size``."""
    check_size(place, size)
    active = read_chain(place).active
    path = place.directory / active.name
    if active.format is DiskFormat.RAW:
        disk.grow(path, size)
    else:
        qcow2.grow(path, size)


def tidy(place: VmPaths, size: int) -> bool:
    """Have the disk ready for a VM; nothing happens if there is one.

    What killed commands left is removed, and it gets the size that it shall have.

    Returns:
        Whether its chain has become long, and ``atoll.vm.folding.compact`` is worth its time.

    Raises:
        StoreError: ``store.missing``: a file is not there; ``store.full`` or ``store.io``.
        ImageError: ``image.disk``: a file is damaged.
    """
    if store.is_held(place.vm_lock):
        return False
    chain = finish_branch(place)
    if os.stat(place.directory / chain.active.name).st_nlink > 1:  # somebody made a backup by hard links
        prepare_branch(place)
        chain = finish_branch(place)
    if size > size_of(place, chain):
        grow(place, size)
    return len(chain.files) > LONGEST
