"""What a tree of layers is: which distribution and architecture, which shell and init, which programs."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence

import msgspec

from atoll.image.oci.merging import Node, Tree
from atoll.image.programs import SEARCH, Program

__all__ = ["Survey", "survey"]

_INITS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init")
_SHELLS = ("/bin/bash", "/bin/sh")
_RELEASES = ("/etc/os-release", "/usr/lib/os-release")
_PEEK = 1 << 16
_CHUNK = 1 << 20

_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}  # ELF's e_machine


class Survey(msgspec.Struct, frozen=True):
    """What was found; empty where nothing was.

    Attributes:
        architecture: of its shell, by uname(1)'s name.
        distribution: its id in os-release(5).
        suite: its version there.
        shell: path of a shell.
        init: path of a program that can be process 1.
        programs: those that were asked for.
    """

    architecture: str = ""
    distribution: str = ""
    suite: str = ""
    shell: str = ""
    init: str = ""
    programs: tuple[Program, ...] = ()


def survey(tree: Tree, root: int, programs: Sequence[str] = ()) -> Survey:
    """Look at a tree.

    Args:
        tree: the tree.
        root: a descriptor of the file that has its contents.
        programs: names of those to look for.
    """
    shell = _first(tree, _SHELLS)
    release = _release(_content(tree, root, _RELEASES))
    return Survey(
        architecture=_architecture(tree, root, shell),
        distribution=release.get("ID", ""),
        suite=release.get("VERSION_CODENAME") or release.get("VERSION_ID") or "",
        shell=shell,
        init=_first(tree, _INITS),
        programs=tuple(_program(tree, root, name) for name in programs),
    )


def _find(tree: Tree, path: str) -> Node | None:
    return tree.find(path.encode().split(b"/"))


def _first(tree: Tree, paths: Iterable[str]) -> str:
    """The first of some paths at which there is a program."""
    for path in paths:
        node = _find(tree, path)
        if node is not None and stat.S_ISREG(node.mode) and node.mode & 0o111 and node.size:
            return path
    return ""


def _content(tree: Tree, root: int, paths: Iterable[str]) -> bytes:
    for path in paths:
        node = _find(tree, path)
        if node is not None and stat.S_ISREG(node.mode):
            return os.pread(root, min(node.size, _PEEK), node.offset)
    return b""


def _architecture(tree: Tree, root: int, shell: str) -> str:
    head = _content(tree, root, (shell,)) if shell else b""
    machine = int.from_bytes(head[18:20], "little") if head.startswith(b"\x7fELF") else 0
    return _ELF_MACHINES.get(machine, "")


def _release(text: bytes) -> dict[str, str]:
    """The fields of os-release(5)."""
    rows = (line.partition("=") for line in text.decode(errors="replace").splitlines())
    return {key.strip(): value.strip().strip("\"'")[:64] for key, equals, value in rows if equals}


def _program(tree: Tree, root: int, name: str) -> Program:
    for directory in SEARCH:
        located = tree.locate(f"{directory}/{name}".encode().split(b"/"))
        if located is None:
            continue
        path, node = located[0].decode(errors="backslashreplace"), located[1]
        if not stat.S_ISREG(node.mode):
            return Program(name, path, 0, node.mode)
        digest, at, end = hashlib.sha256(), node.offset, node.offset + node.size
        while at < end and (data := os.pread(root, min(end - at, _CHUNK), at)):
            digest.update(data)
            at += len(data)
        return Program(name, path, node.size, node.mode, digest.hexdigest())
    return Program(name)
