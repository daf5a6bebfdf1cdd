"""The index files that modprobe(8) looks modules up in, for a tree that depmod(8) has not seen.

Making them here rather than with the host's depmod gives the same bytes everywhere and needs no kmod on the
host. Sources: kmod's libkmod/libkmod-index.h (the trie's format) and tools/depmod.c (what goes in).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from atoll.errors import ImageError
from atoll.image.modules import Module, Tree, module_name, plan

__all__ = ["index_files", "trie"]

_MAGIC = 0xB007F457
_VERSION = 0x00020001
_HAS_PREFIX = 0x80000000
_HAS_VALUES = 0x40000000
_HAS_CHILDREN = 0x20000000
_DEVICE = re.compile(r"(char|block)-major-([0-9]+)-([0-9]+)")


@dataclass(slots=True)
class _Node:
    children: dict[int, _Node] = field(default_factory=dict)
    values: list[tuple[int, bytes]] = field(default_factory=list)


def trie(entries: Iterable[tuple[str, str]]) -> bytes:
    """An index of ``(key, value)`` pairs; a key may come more than once, the earlier one goes first."""
    root = _Node()
    for priority, (key, value) in enumerate(entries):
        node = root
        for byte in key.encode():
            node = node.children.setdefault(byte, _Node())
        node.values.append((priority, value.encode()))
    out = bytearray(struct.pack(">III", _MAGIC, _VERSION, 0))
    struct.pack_into(">I", out, 8, _write(root, b"", out))
    return bytes(out)


def _write(node: _Node, prefix: bytes, out: bytearray) -> int:
    """Append ``node`` behind all below it; returns its offset with the flags of what it has."""
    while len(node.children) == 1 and not node.values:
        ((byte, node),) = node.children.items()
        prefix += bytes((byte,))
    offsets = {byte: _write(child, b"", out) for byte, child in sorted(node.children.items())}
    at = len(out)
    flags = 0
    if prefix:
        flags |= _HAS_PREFIX
        out += prefix + b"\0"
    if offsets:
        flags |= _HAS_CHILDREN
        first, last = min(offsets), max(offsets)
        out += bytes((first, last))
        for byte in range(first, last + 1):
            out += struct.pack(">I", offsets.get(byte, 0))
    if node.values:
        flags |= _HAS_VALUES
        out += struct.pack(">I", len(node.values))
        for priority, value in node.values:
            out += struct.pack(">I", priority) + value + b"\0"
    return at | flags


def _underscored(alias: str) -> str:
    """``alias`` with ``_`` for ``-`` outside brackets, as modprobe compares them."""
    out: list[str] = []
    depth = 0
    for letter in alias:
        depth += (letter == "[") - (letter == "]")
        out.append("_" if letter == "-" and depth <= 0 else letter)
    return "".join(out)


def index_files(tree: Tree) -> Mapping[str, bytes]:
    """The files to put beside ``modules.builtin``, by name.

    Raises:
        ImageError: ``image.modules``: modules depend on each other in a circle. A module that depends on one
            that is missing is listed without it, as depmod does.
    """
    lines = [_dep_line(tree, tree.modules[name]) for name in sorted(tree.modules)]
    aliases = [
        (_underscored(alias), name) for name in sorted(tree.modules) for alias in tree.modules[name].aliases
    ]
    softdeps = []
    for name in sorted(tree.modules):
        module = tree.modules[name]
        words = (["pre:", *module.before] if module.before else []) + (
            ["post:", *module.after] if module.after else []
        )
        if words:
            softdeps.append(f"softdep {name} {' '.join(words)}")
    builtin = sorted({module_name(path) for path in tree.builtin or ()})
    return {
        "modules.dep": "".join(f"{line}\n" for line in lines).encode(),
        "modules.dep.bin": trie((module_name(line.partition(":")[0]), line) for line in lines),
        "modules.alias": "".join(f"alias {alias} {name}\n" for alias, name in aliases).encode(),
        "modules.alias.bin": trie(aliases),
        "modules.softdep": "".join(f"{line}\n" for line in softdeps).encode(),
        "modules.symbols.bin": trie(()),
        "modules.builtin.bin": trie((name, "") for name in builtin),
        "modules.builtin.alias.bin": trie(
            (_underscored(alias), name) for alias, name in tree.builtin_aliases
        ),
        "modules.devname": "".join(_device_nodes(tree)).encode(),
    }


def _device_nodes(tree: Tree) -> list[str]:
    """Lines ``module name cMAJOR:MINOR`` of device nodes that can be there before their modules."""
    lines: list[str] = []
    for name in sorted(tree.modules):
        device = number = ""
        for alias in tree.modules[name].aliases:
            if alias.startswith("devname:"):
                device = alias.removeprefix("devname:")
            found = _DEVICE.fullmatch(alias)
            if found:
                number = f"{found[1][0]}{found[2]}:{found[3]}"
        if device and number:
            lines.append(f"{name} {device} {number}\n")
    return lines


def _dep_line(tree: Tree, module: Module) -> str:
    """``path: dependencies``, the one to load first at the end."""
    bare = Tree(
        {name: Module(item.name, item.path, item.depends) for name, item in _reach(tree, module).items()}
    )
    order = plan(bare, [module.name])
    return f"{module.path}:" + "".join(f" {needed.path}" for needed in reversed(order[:-1]))


def _reach(tree: Tree, module: Module) -> dict[str, Module]:
    found: dict[str, Module] = {}
    queue = [module.name]
    while queue:
        name = queue.pop()
        if name in tree.modules and name not in found:
            found[name] = tree.modules[name]
            queue.extend(found[name].depends)
    if not found:
        raise ImageError(f"the kernel has no module {module.name}", code="modules")
    return found
