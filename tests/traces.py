"""What a program may leave behind: on disk, in memory, and in the kernel."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from processes import descendants, machines_running

CGROUPS = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")


def cgroups(owners: Iterable[int] = ()) -> set[Path]:
    """Those of this process's VMs, and of the VMs of ``owners``."""
    beginnings = tuple(f"atoll-{pid}-" for pid in (os.getpid(), *owners))
    return {
        Path(place, name)
        for place, names, _ in os.walk(CGROUPS)  # those of others come and go meanwhile
        for name in names
        if name.startswith(beginnings)
    }


def traces(*directories: Path, owners: Iterable[int] = ()) -> set[str]:
    """What there is of this process and of what it started, and of the files in ``directories``.

    Args:
        directories: where to look.
        owners: programs that had VMs, too.
    """
    places = (*directories, SHARED_MEMORY, Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")))
    found = {f"file {path}" for place in places for path in place.rglob("*")}
    found |= {f"process {pid} {name}" for pid, name in descendants().items()}
    found |= {f"VM {pid}" for pid in machines_running()}
    found |= {f"cgroup {path}" for path in cgroups(owners)}
    found |= {f"thread {thread.name}" for thread in threading.enumerate()}
    return found | _descriptors()


def memory() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> set[str]:
    """By what they are, and how many: sockets' own numbers differ each time."""
    kinds = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{fd}").partition(":[")[0]] += 1
        except OSError:
            continue  # that of the list itself
    return {f"{kind} {number}" for kind, count in kinds.items() for number in range(count)}
