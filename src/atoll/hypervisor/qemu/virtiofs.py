"""virtiofsd, the daemon that serves a directory of the host to a guest: where it is, and how it is called.

Two programs have that name: the one in C that came with QEMU up to 7.2, and its successor in Rust. Both serve
one connection on a listening socket that they inherit (``--fd``) and end when it is closed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from atoll import process
from atoll.errors import PreflightError

__all__ = [
    "INSTALL_HINT",
    "Daemon",
    "Flavour",
    "Range",
    "enclosed",
    "find",
    "map_ids",
    "parse_ranges",
    "serve",
]

INSTALL_HINT = "apt install virtiofsd, or qemu-system-common on Debian 12"

#: Places outside of PATH where distributions put it.
_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")

#: The program that makes the daemon's surroundings; it imports nothing of Atoll.
_ENCLOSURE = Path(__file__).with_name("enclosure.py")

#: Numbers of users and groups of a guest that are mapped.
_IDS = 65_536


class Flavour(StrEnum):
    """Which of the two programs it is."""

    C = "c"
    RUST = "rust"


class Daemon(msgspec.Struct, frozen=True):
    """A virtiofsd of this host."""

    program: str
    flavour: Flavour


class Range(msgspec.Struct, frozen=True):
    """``count`` numbers in the guest from ``inner`` on that are numbers of the host from ``outer`` on."""

    inner: int
    outer: int
    count: int = 1


def find(look: Callable[[str], str | None] = process.find, places: Sequence[str] = _PLACES) -> Daemon:
    """The virtiofsd of this host.

    Args:
        look: finds a program in PATH.
        places: where it may be beside that.

    Raises:
        PreflightError: it is not installed.
    """
    candidates = (*(place for place in places if os.access(place, os.X_OK)), look("virtiofsd"))
    for program in candidates:
        if program is not None:
            # QEMU's own directory holds QEMU's own program; all others are packages of the successor.
            flavour = Flavour.C if "/qemu/" in os.path.realpath(program) else Flavour.RUST
            return Daemon(program, flavour)
    message = "virtiofsd is not installed: directories of the host cannot be shared with a machine"
    raise PreflightError(message, hint=INSTALL_HINT)


def serve(daemon: Daemon, source: str, fd: int) -> tuple[str, ...]:
    """The command that serves the directory ``source`` on the listening socket ``fd``.

    The daemon confines itself to the directory: in namespaces of its own, with the directory as its root. How
    many descriptors it may have is left as it is: it holds one for each file that the guest knows.
    """
    if daemon.flavour is Flavour.RUST:
        return (
            *(daemon.program, f"--fd={fd}", f"--shared-dir={source}", "--cache=auto", "--sandbox=namespace"),
            *("--rlimit-nofile=0", "--announce-submounts", "--log-level=warn"),
        )
    # A comma ends an option of libfuse's syntax, and a backslash keeps one from it.
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    options = f"source={escaped},cache=auto,sandbox=namespace,log_level=warn,announce_submounts"
    return (daemon.program, "-f", f"--fd={fd}", "--rlimit-nofile=0", "-o", options)


def enclosed(
    command: Sequence[str],
    source: str,
    *,
    read_only: bool,
    users: Sequence[Range] = (),
    groups: Sequence[Range] = (),
) -> tuple[str, ...]:
    """``command`` in surroundings of its own.

    Args:
        command: what to run.
        source: the directory that it serves.
        read_only: nothing below ``source`` can be written, whatever the command does.
        users: in a user namespace with these users; in none without.
        groups: and with these groups.
    """
    return (
        *(sys.executable, "-I", "-S", str(_ENCLOSURE)),
        *("--source", source),
        *(("--read-only",) if read_only else ()),
        *(("--users", _listed(users), "--groups", _listed(groups)) if users else ()),
        "--",
        *command,
    )


def _listed(ranges: Sequence[Range]) -> str:
    return ",".join(f"{one.inner}:{one.outer}:{one.count}" for one in ranges)


def parse_ranges(text: str, name: str, number: int) -> tuple[tuple[int, int], ...]:
    """A user's ranges in /etc/subuid or /etc/subgid (subuid(5)): the first number and the count of each."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if (
            len(fields) == 3
            and fields[0] in {name, str(number)}
            and fields[1].isdigit()
            and fields[2].isdigit()
        ):
            found.append((int(fields[1]), int(fields[2])))
    return tuple(found)


def map_ids(own: int, owner: int, ranges: Sequence[tuple[int, int]]) -> tuple[Range, ...]:
    """How numbers of the guest become numbers of the host when an ordinary user shares a directory.

    Without ranges of their own a user can map one number only: the guest's root is then that user.

    Args:
        own: the user's number on the host.
        owner: the number in the guest that shall be the user.
        ranges: further numbers of the host that the user may use, each a first one and a count.
    """
    if not ranges:
        return (Range(0, own),)
    mapped = [Range(owner, own)]
    inner = 0
    for first, available in ranges:
        outer, left = first, available
        while left > 0 and inner < _IDS:
            if inner == owner:
                inner += 1
                continue
            most = (owner if inner < owner else _IDS) - inner
            count = min(left, most)
            mapped.append(Range(inner, outer, count))
            inner, outer, left = inner + count, outer + count, left - count
    return tuple(sorted(mapped, key=lambda one: one.inner))
