"""Work that is killed, for real, before each of its system calls that changes the file system."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll import store

#: Those that Atoll uses; where nothing else says so (fsync(2)) a killed process has left the same without it.
CALLS = (
    "copy_file_range",
    "link",
    "mkdir",
    "open",
    "pwrite",
    "rename",
    "rmdir",
    "truncate",
    "unlink",
    "write",
)

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a process that is killed before its system call number ``step``; whether it was."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        left = [step]

        def deadly(name):
            call = getattr(os, name)

            def counted(*arguments, **options):
                if name != "open" or arguments[1] & WRITING:
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                return call(*arguments, **options)

            return counted

        for name in CALLS:
            setattr(os, name, deadly(name))
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the child must not go on with the tests
        traceback.print_exc()
        os.kill(os.getpid(), signal.SIGKILL)


def each_kill(work: Callable[[Path], object], first: Path) -> Iterator[Path]:
    """Do ``work`` on a new copy of ``first`` each time, killed one step later; what is left of it.

    Each is gone when the next one comes; the last one, of work that nobody killed, stays.
    """
    step, killed, trial = 0, True, os.urandom(2).hex()
    while killed:
        place = first.with_name(f"{first.name}-{trial}-{step}")
        copy_tree(first, place)
        killed = killed_at(step, lambda at=place: work(at))
        yield place
        if killed:
            store.remove_tree(place)
        step += 1
        assert step < 300
    assert step > 5


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory with its links and holes, as ``cp -a`` would in a process of its own."""
    copies: dict[int, Path] = {}
    for directory, _, names in os.walk(source):
        here = target / Path(directory).relative_to(source)
        here.mkdir()
        for name in names:
            with (Path(directory) / name).open("rb") as old:
                status = os.fstat(old.fileno())
                if status.st_ino in copies:
                    (here / name).hardlink_to(copies[status.st_ino])
                    continue
                with (here / name).open("wb") as new:
                    store.copy_data(old.fileno(), new.fileno())
                    os.fchmod(new.fileno(), status.st_mode)
            copies[status.st_ino] = here / name
