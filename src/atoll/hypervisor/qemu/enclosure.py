"""Runs a program in namespaces of its own: a directory that it cannot write, users that are not the host's.

``python -I -S enclosure.py --source DIR [--read-only] [--users MAP --groups MAP] -- PROGRAM [ARGUMENT...]``,
where MAP is ``INNER:OUTER:COUNT[,...]``. It is a program on its own that imports nothing of Atoll and ends by
becoming PROGRAM.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence

__all__ = ["main"]

#: unshare(2).
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000

#: mount(2).
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000

#: mount_setattr(2): its number is the same on all architectures.
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_MOUNT_ATTR = struct.Struct("=QQQQ")

_libc = ctypes.CDLL(None, use_errno=True)

#: Inner number, outer number, count: user_namespaces(7).
_Range = tuple[int, int, int]


def main(words: Sequence[str]) -> None:
    """Make the surroundings and become the program. Raises ``OSError``."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--source", required=True)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--users", type=_parse, default=[])
    parser.add_argument("--groups", type=_parse, default=[])
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args(words)
    if arguments.users:
        _enter_users(arguments.users, arguments.groups)
    _check(_libc.unshare(_NEW_MOUNTS), "unshare")
    _mount(None, "/", _RECURSIVE | _PRIVATE)
    if arguments.read_only:
        _make_read_only(arguments.source)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.execv(arguments.program[0], arguments.program)  # noqa: S606 - this is what the program is for


def _parse(text: str) -> list[_Range]:
    return [
        (int(inner), int(outer), int(count))
        for inner, outer, count in (one.split(":") for one in text.split(","))
    ]


def _enter_users(users: list[_Range], groups: list[_Range]) -> None:
    """Become root of a new user namespace."""
    if len(users) == 1 and users[0][1:] == (os.getuid(), 1):  # what needs no help
        _check(_libc.unshare(_NEW_USERS), "unshare")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", " ".join(map(str, groups[0])))
        _write("/proc/self/uid_map", " ".join(map(str, users[0])))
    else:
        _enter_mapped(users, groups)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _enter_mapped(users: list[_Range], groups: list[_Range]) -> None:
    """Enter a namespace that newuidmap(1) and newgidmap(1) fill.

    They gain their rights from being set-user-id, which counts in the namespace outside only: a child that
    stays there calls them once this process is inside.
    """
    wait, go = os.pipe()
    pid = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(wait, 1)
        done = _call("newuidmap", pid, users) and _call("newgidmap", pid, groups)
        os._exit(0 if done else 1)
    _check(_libc.unshare(_NEW_USERS), "unshare")
    os.close(go)
    os.close(wait)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("newuidmap or newgidmap failed: see /etc/subuid and /etc/subgid")


def _call(program: str, pid: int, ranges: list[_Range]) -> bool:
    words = [program, str(pid), *(str(number) for one in ranges for number in one)]
    return os.spawnvp(os.P_WAIT, program, words) == 0  # noqa: S606 - the words are numbers


def _make_read_only(source: str) -> None:
    """Cover ``source``, and all that is mounted below it, by itself without the right to write."""
    _mount(source, source, _BIND | _RECURSIVE)
    wanted = _MOUNT_ATTR.pack(_READ_ONLY, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.c_char_p(wanted),
        ctypes.c_size_t(len(wanted)),
    )
    _check(result, f"{source}: mount_setattr")


def _mount(source: str | None, target: str, flags: int) -> None:
    name = None if source is None else os.fsencode(source)
    result = _libc.mount(name, os.fsencode(target), None, ctypes.c_ulong(flags), None)
    _check(result, f"{target}: mount")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot enclose virtiofsd: {error.strerror}")
