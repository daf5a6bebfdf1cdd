"""Kernel modules: what a tree holds, what depends on what, and in which order to load.

A tree that depmod(8) has seen has ``modules.dep``; one fresh from a package has only ``modules.order`` and
``modules.builtin``, so that the ``.modinfo`` section of each module is read instead (the kernel's
include/linux/module.h: MODULE_INFO, MODULE_SOFTDEP).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from atoll.errors import ImageError
from atoll.image import compression

__all__ = [
    "Module",
    "Tree",
    "modinfo",
    "module_name",
    "parse_dep",
    "plan",
    "read_module",
    "read_tree",
    "without_signature",
]

_SUFFIXES = (".ko", ".ko.xz", ".ko.gz", ".ko.zst", ".ko.bz2")


@dataclass(frozen=True, slots=True)
class Module:
    """One loadable module.

    Attributes:
        name: as the kernel knows it, with ``_`` for ``-``.
        path: relative to the directory of the release.
        depends: names of modules that must be there before it.
        before: names or aliases of modules that it would like to have before it (softdep, ``pre:``).
        after: the same, after it (``post:``).
        aliases: what it answers to (device patterns and plain names).
    """

    name: str
    path: str
    depends: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tree:
    """The modules of one kernel release.

    Attributes:
        modules: by name.
        builtin: paths of what is compiled into the kernel, None where nothing tells.
        indexed: the tree has depmod's index files already.
        builtin_aliases: aliases of what is compiled in, each with the name it stands for.
    """

    modules: Mapping[str, Module]
    builtin: tuple[str, ...] | None = None
    indexed: bool = False
    builtin_aliases: tuple[tuple[str, str], ...] = ()
    _builtin_names: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_builtin_names", frozenset(map(module_name, self.builtin or ())))

    def is_builtin(self, name: str) -> bool:
        """Whether ``name`` is compiled in, or may be as nothing tells otherwise."""
        return name in self._builtin_names or (self.builtin is None and name not in self.modules)


def module_name(path: str) -> str:
    """The name of the module in a file: ``kernel/crypto/aes-generic.ko.xz`` is ``aes_generic``."""
    return path.rsplit("/", 1)[-1].partition(".")[0].replace("-", "_")


def plan(tree: Tree, wanted: Iterable[str]) -> tuple[Module, ...]:
    """The modules to load so that all ``wanted`` work, in an order that satisfies what they depend on.

    What is compiled in is left out. Soft dependencies are followed where that is possible.

    Raises:
        ImageError: ``image.modules``: a module is missing, or modules depend on each other in a circle.
    """
    order: dict[str, Module] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in order or tree.is_builtin(name):
            return
        if name in trail:
            circle = " -> ".join((*trail[trail.index(name) :], name))
            raise ImageError(f"kernel modules depend on each other in a circle: {circle}", code="modules")
        module = tree.modules.get(name)
        if module is None:
            needed = f", which {trail[-1]} needs" if trail else ""
            hint = "use a kernel with this driver built in or as a module"
            raise ImageError(f"the kernel has no module {name}{needed}", code="modules", hint=hint)
        here = (*trail, name)
        for wish in module.before:
            soft = wish.replace("-", "_")
            if soft in tree.modules and soft not in here:
                with contextlib.suppress(ImageError):  # a wish that cannot be met is no failure
                    visit(soft, here)
        for needed_name in module.depends:
            visit(needed_name, here)
        order[name] = module

    for name in wanted:
        visit(name, ())
    return tuple(order.values())


def parse_dep(text: str) -> dict[str, Module]:
    """The modules of a ``modules.dep``.

    A line is ``path: dependency dependency``, with all dependencies, also indirect ones.
    """
    modules: dict[str, Module] = {}
    for line in text.splitlines():
        path, colon, rest = line.partition(":")
        if colon and path:
            depends = tuple(module_name(word) for word in reversed(rest.split()))
            modules[module_name(path)] = Module(module_name(path), path, depends)
    return modules


def modinfo(ko: bytes) -> dict[str, list[str]]:
    """The ``key=value`` strings of a module's ``.modinfo`` section.

    Raises:
        ImageError: ``image.modules``: it is no whole 64-bit ELF object.
    """
    try:
        section = _section(ko, b".modinfo")
    except struct.error as error:
        raise ImageError("a kernel module is truncated", code="modules") from error
    found: dict[str, list[str]] = {}
    for item in section.split(b"\0"):
        key, equals, value = item.partition(b"=")
        if equals:
            found.setdefault(key.decode(errors="replace"), []).append(value.decode(errors="replace"))
    return found


def _section(elf: bytes, wanted: bytes) -> bytes:
    if not elf.startswith(b"\x7fELF\x02\x01"):
        raise ImageError("a kernel module is no 64-bit ELF object", code="modules")
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    if size < 64 or table + size * count > len(elf) or names >= count:
        raise ImageError("a kernel module is truncated", code="modules")
    headers = [struct.unpack_from("<II16xQQ", elf, table + index * size) for index in range(count)]
    base = headers[names][2]
    for name, _kind, offset, length in headers:
        end = elf.find(b"\0", base + name)
        if elf[base + name : end] == wanted and end >= 0:
            if offset + length > len(elf):
                raise ImageError("a kernel module is truncated", code="modules")
            return elf[offset : offset + length]
    return b""


def read_module(path: Path) -> bytes:
    """The plain ELF object in a ``.ko`` file of any compression.

    Raises:
        ImageError: ``image.modules`` or ``image.compression``: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror}", code="modules") from error
    return data if data.startswith(b"\x7fELF") else compression.decompress(data, what=str(path))


def without_signature(module: bytes) -> bytes:
    """A module without the signature that may be appended to it.

    Checking one costs the guest an RSA operation, 4 ms under TCG, and proves nothing about modules that come
    in the initramfs, with the kernel itself. Layout: Linux, include/linux/module_signature.h.
    """
    magic = b"~Module signature appended~\n"
    trailer = struct.Struct(">8xI")
    if not module.endswith(magic) or len(module) < len(magic) + trailer.size:
        return module
    end = len(module) - len(magic) - trailer.size
    (size,) = trailer.unpack_from(module, end)
    return module[: end - size] if size < end else module


def _described(name: str, path: str, info: Mapping[str, Sequence[str]]) -> Module:
    depends = tuple(
        word.replace("-", "_") for line in info.get("depends", ()) for word in line.split(",") if word
    )
    soft: dict[str, list[str]] = {"": [], "pre:": [], "post:": []}
    for line in info.get("softdep", ()):
        into = soft[""]  # words before either are ignored by modprobe, too
        for word in line.split():
            if word in soft:
                into = soft[word]
            else:
                into.append(word)
    return Module(
        name, path, depends, tuple(soft["pre:"]), tuple(soft["post:"]), tuple(info.get("alias", ()))
    )


def read_tree(directory: Path) -> Tree:
    """What the directory of a release (``/lib/modules/6.1.0-56-cloud-amd64``) holds.

    Raises:
        ImageError: ``image.modules``: it or one of its files cannot be read.
    """
    builtin_list = directory / "modules.builtin"
    dep = directory / "modules.dep"
    try:
        builtin = tuple(builtin_list.read_text().split()) if builtin_list.exists() else None
        if dep.exists() and (directory / "modules.dep.bin").exists():
            return Tree(parse_dep(dep.read_text()), builtin, indexed=True)
        files = sorted(
            path for path in directory.rglob("*.ko*") if path.name.endswith(_SUFFIXES) and path.is_file()
        )
    except OSError as error:
        raise ImageError(f"cannot read {directory}: {error.strerror}", code="modules") from error
    modules: dict[str, Module] = {}
    for path in files:
        relative = str(path.relative_to(directory))
        name = module_name(relative)
        modules[name] = _described(name, relative, modinfo(read_module(path)))
    return Tree(modules, builtin, builtin_aliases=_builtin_aliases(directory / "modules.builtin.modinfo"))


def _builtin_aliases(path: Path) -> tuple[tuple[str, str], ...]:
    """``name.alias=value`` strings, each ended by a zero byte."""
    if not path.is_file():
        return ()
    found: list[tuple[str, str]] = []
    for item in path.read_bytes().decode(errors="replace").split("\0"):
        name, _, value = item.partition(".alias=")
        if value and "=" not in name:
            found.append((value, name.replace("-", "_")))
    return tuple(sorted(found))
