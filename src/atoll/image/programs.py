"""Programs of a root that must be in it: found and measured when it is made, compared before it is booted."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

__all__ = ["SEARCH", "Program", "measure", "wanting"]

#: Where programs are looked for, in this order.
SEARCH = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")

#: Symbolic links on the way to a file, as the kernel has it (path_resolution(7)).
_MOST_LINKS = 40


class Program(msgspec.Struct, frozen=True):
    """A program in a root.

    Attributes:
        name: by which it is called.
        path: of the file itself, symbolic links resolved; empty if there is none.
        size: bytes.
        mode: type and permissions, as ``st_mode``.
        sha256: of its content.
    """

    name: str
    path: str = ""
    size: int = 0
    mode: int = 0
    sha256: str = ""


def measure(tree: Path, names: Iterable[str]) -> tuple[Program, ...]:
    """What is found of ``names`` in the root at ``tree``, in whose links nothing leads out of it."""
    return tuple(_measured(tree, name) for name in names)


def _measured(tree: Path, name: str) -> Program:
    for directory in SEARCH:
        place = _resolved(tree, f"{directory}/{name}")
        if place is not None:
            return _read(tree, place, name)
    return Program(name)


def _read(tree: Path, place: str, name: str) -> Program:
    import hashlib  # noqa: PLC0415 - not on the way to a VM

    file = tree / place
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return Program(name, f"/{place}", 0, status.st_mode)
    digest = ""
    with contextlib.suppress(PermissionError), file.open("rb") as opened:  # files of a user namespace
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return Program(name, f"/{place}", status.st_size, status.st_mode, digest)


def _resolved(tree: Path, path: str) -> str | None:
    """What ``path`` leads to for who has ``tree`` as root; None if there is nothing."""
    done: list[str] = []
    rest = path.split("/")[::-1]
    links = 0
    while rest:
        part = rest.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del done[-1:]
            continue
        here = tree.joinpath(*done, part)
        try:
            status = here.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISLNK(status.st_mode):
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            return None
        target = os.readlink(here)
        if target.startswith("/"):
            done.clear()
        rest += target.split("/")[::-1]
    return "/".join(done)


def wanting(required: Sequence[str], recorded: Iterable[Program]) -> str:
    """What of ``required`` is not as it must be, as words for people; empty if all is well."""
    known = {program.name: program for program in recorded}
    for name in required:
        program = known.get(name, Program(name))
        if not program.path:
            return f"{name} is missing"
        if not stat.S_ISREG(program.mode):
            return f"{program.path} is no regular file"
        if not program.mode & 0o111:
            return f"{program.path} is not executable"
        if not program.size:
            return f"{program.path} is empty"
        if not program.sha256:
            return f"{program.path} cannot be read"
    return ""
