"""Taking off the write protection that a QEMU put on its guest's RAM and left there.

While a guest runs on that is written down, its RAM is write-protected by userfaultfd(2), and who writes to a
page waits until QEMU has saved it. QEMU up to 7.2 leaves it so if the migration fails: the guest, and QEMU
itself, would wait for ever. Sources: ``bg_migration_iteration_finish`` in QEMU's migration/migration.c;
ioctl_userfaultfd(2); pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from contextlib import ExitStack

__all__ = ["require_reach", "take_off"]

#: Its number is the same on all architectures.
_PIDFD_GETFD = 438

#: linux/userfaultfd.h: _IOWR(0xAA, 6, 24 bytes) and _IOR(0xAA, 1, 16 bytes).
_WRITE_PROTECT, _UNREGISTER = 0xC018AA06, 0x8010AA01

#: What /proc/PID/smaps calls a mapping that is registered for it (proc(5)).
_FLAG = b"uw"

_libc = ctypes.CDLL(None, use_errno=True)


def require_reach(pid: int) -> None:
    """Find out whether it could be taken off. Raises ``OSError``: this process may not (ptrace(2))."""
    with ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        os.close(_take(pidfd, 0))


def take_off(pid: int) -> None:
    """Let all who wait go on, and have nobody wait any more.

    Raises:
        ProcessLookupError: it has ended.
        OSError: it cannot be reached, or its memory is protected still.
    """
    with ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        try:
            left = _left_of(pid, pidfd)
        except OSError:  # of one that ends this is missing first, or that
            _require_alive(pidfd)
            raise
        _require_alive(pidfd)
        if left:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _require_alive(pidfd: int) -> None:
    if select.select([pidfd], [], [], 0)[0]:  # it has ended (pidfd_open(2))
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


def _left_of(pid: int, pidfd: int) -> bool:
    """Whether some memory is protected after all of that was taken off that could be."""
    ranges = list(_protected(pid))
    for number in _numbers(pid):
        fd = _take(pidfd, number)
        try:
            for start, end in ranges:
                with contextlib.suppress(OSError):  # another descriptor's, or QEMU was quicker
                    fcntl.ioctl(fd, _WRITE_PROTECT, struct.pack("=QQQ", start, end - start, 0))
                    fcntl.ioctl(fd, _UNREGISTER, struct.pack("=QQ", start, end - start))
        finally:
            os.close(fd)
    return any(_protected(pid))


def _take(pidfd: int, number: int) -> int:
    fd = int(_libc.syscall(*map(ctypes.c_long, (_PIDFD_GETFD, pidfd, number, 0))))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def _numbers(pid: int) -> Iterator[int]:
    """Which of a process's descriptors are of userfaultfd(2)."""
    directory = f"/proc/{pid}/fd"
    for entry in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            if os.readlink(f"{directory}/{entry}") == "anon_inode:[userfaultfd]":
                yield int(entry)


def _protected(pid: int) -> Iterator[tuple[int, int]]:
    """Where a process's memory is registered for it."""
    start = end = 0
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            name, *words = line.split()
            if name == b"VmFlags:":
                if _FLAG in words:
                    yield start, end
            elif not name.endswith(b":"):
                start, end = (int(word, 16) for word in name.split(b"-"))
