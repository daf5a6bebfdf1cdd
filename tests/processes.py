"""Which processes are there."""

from __future__ import annotations

import os
from pathlib import Path


def descendants() -> dict[int, str]:
    """Processes that this one or its children started, except defunct ones, by pid."""
    parents, names = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            name, rest = stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") + 2 :].split()
            if rest[0] != "Z":
                parents[int(entry)], names[int(entry)] = int(rest[1]), name
    found, frontier = {}, {os.getpid()}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier and pid not in found}
        found.update({pid: names[pid] for pid in frontier})
    return found


#: Set in the environment of all that a run of the tests starts; other runs on the host are not its business.
RUN = "TEST_RUN"


def machines_running() -> set[int]:
    """Hypervisor processes that this run of the tests has started, whoever is their parent now."""
    found = set()
    ours = f"{RUN}={os.environ.get(RUN, '')}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            is_machine = b"qemu-system" in words[0] and any(word.startswith(b"guest=") for word in words)
            if is_machine and ours in variables:
                found.add(int(entry))
    return found
