"""Work that is killed, for real, before each of its system calls that changes the file system."""

from __future__ import annotations

import os
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """Do ``work`` on a new copy of ``first`` each time, killed one step later; what is left of it."""
    step, killed = 0, True
    while killed:
        place = first.with_name(f"{first.name}-{step}")
        subprocess.run(["cp", "-a", first, place], check=True)
        killed = killed_at(step, lambda at=place: work(at))
        yield place
        step += 1
        assert step < 300
    assert step > 5
