"""Disks that guests write to: sparse files that hold an ext4 file system with a journal."""

from __future__ import annotations

import os
from pathlib import Path

from atoll import process, store
from atoll.errors import ImageError, ProcessError, StoreError, UsageError
from atoll.events import Emit, ignore

__all__ = ["INSTALL_HINT", "SMALLEST", "check", "check_growth", "copy_sparse", "grow", "make"]

INSTALL_HINT = "apt install e2fsprogs"

#: Least size of a disk, bytes: journal and tables leave room for something.
SMALLEST = 64 << 20

#: What makes the file system fit a sparse file: nothing is reserved, tables that are zero are not written.
_OPTIONS = "assume_storage_prezeroed=1,nodiscard"
_OLDER_OPTIONS = "lazy_itable_init=1,nodiscard"

#: To what size a disk can grow, bytes. mkfs.ext4 would reserve room for 1024 times its size: the kernel grows
#: a file system in one transaction that spans all of the reserve, which a journal of 16 MiB cannot hold.
_LARGEST = 4 << 40


def make(path: Path, size: int, *, emit: Emit = ignore) -> None:
    """Make an empty disk of ``size`` bytes; on the host it takes a few MiB.

    Raises:
        PreflightError: mkfs.ext4 is missing.
        UsageError: ``usage.disk``: it is too small.
        ImageError: ``image.disk``: mkfs.ext4 failed.
    """
    if size < SMALLEST:
        raise UsageError(
            f"a disk of {size >> 20} MiB is too small", code="disk", hint="use --disk 64M or more"
        )
    program = process.require("mkfs.ext4", hint=INSTALL_HINT)
    with path.open("wb") as file:
        file.truncate(size)
    path.chmod(0o600)
    command = [program, "-F", "-q", "-m", "0", "-J", "size=16", "-E"]
    reserve = f",resize={_LARGEST >> 40}T" if size < _LARGEST else ""
    try:
        try:
            process.run([*command, _OPTIONS + reserve, str(path)], emit=emit)
        except ProcessError:  # e2fsprogs before 1.47 does not know the option
            process.run([*command, _OLDER_OPTIONS + reserve, str(path)], emit=emit)
    except ProcessError as error:
        message = f"cannot make a disk: {error.message}"
        raise ImageError(message, code="disk", hint="is there space left?", detail=error.detail) from error


def grow(path: Path, size: int) -> None:
    """Make the disk's file larger; its file system follows when the guest is told.

    Raises:
        UsageError: ``usage.disk``: it would become smaller.
    """
    check_growth(path.stat().st_size, size)
    os.truncate(path, size)


def check_growth(now: int, size: int, most: int | None = None) -> None:
    """Refuse a disk of ``now`` bytes another size that it cannot have; ``most`` is how large it can become.

    Raises:
        UsageError: ``usage.disk``.
    """
    if size < now:
        message = f"the disk has {now >> 20} MiB and cannot be made smaller"
        raise UsageError(message, code="disk", hint="make a new machine, and copy what it shall keep")
    if most is not None and size > most:
        message = f"the disk cannot be made larger than {most >> 40} TiB"
        raise UsageError(message, code="disk", hint="export the machine and import it, or ask for less")


def check(path: Path) -> None:
    """Have e2fsck look at a disk that nobody uses, its journal replayed; nothing else is mended.

    Raises:
        PreflightError: e2fsck is missing.
        ImageError: ``image.disk``: it is damaged.
    """
    program = process.require("e2fsck", hint=INSTALL_HINT)
    try:
        process.run([program, "-f", "-p", str(path)])
    except ProcessError as error:
        if error.status == 1:  # the journal was replayed, or a count was put right
            return
        raise ImageError(f"{path} is damaged", code="disk", detail=error.detail) from error


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a disk, sharing its blocks where the file system can (FICLONE), else without its holes.

    Raises:
        StoreError: ``store.full`` or ``store.io``; ``target`` is then gone.
    """
    try:
        with source.open("rb") as old, target.open("wb") as new:
            target.chmod(0o600)
            if not _cloned(old.fileno(), new.fileno()):
                store.copy_data(old.fileno(), new.fileno())
            os.fsync(new.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno == 28:
            raise StoreError(
                f"no space left to copy {source}", code="full", hint="free some space"
            ) from error
        raise StoreError(f"cannot copy {source}: {error.strerror}", code="io") from error
    store.sync_directory(target.parent)


def _cloned(old: int, new: int) -> bool:
    import fcntl  # noqa: PLC0415 - for copies only

    ficlone = 0x40049409  # ioctl_ficlonerange(2)
    try:
        fcntl.ioctl(new, ficlone, old)
    except OSError:
        return False
    return True
