"""The tree that layers make when they are laid over one another, as data: nothing here touches a disk.

Paths are resolved in this tree only, with its own root as the end of every ``..`` and the start of every
absolute link: what a layer names cannot be outside. Whiteouts are those of the OCI image specification 1.1,
"Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

import msgspec

from atoll.image.refusing import refuse

__all__ = ["Item", "Node", "Tree"]

_OPAQUE = b".wh..wh..opq"
_WHITEOUT = b".wh."
_MOST_LINKS = 40  # as Linux has it
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_MOST_ID = (1 << 32) - 2

_TYPES = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}

#: Extended attributes that are kept. Those of overlayfs would change what the guest's overlay shows, and
#: those of security modules are of the builder's policy.
_KEPT = (b"user.", b"trusted.", b"security.capability", b"system.posix_acl_")
_NOT_KEPT = b"trusted.overlay."


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An entry of a layer, with where the content of a file lies.

    Attributes:
        name: as the layer has it.
        kind: as of `tarstream.Entry`, as are the others.
        offset: of a file's content in the image, bytes.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_ns: int = 0
    offset: int = 0
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Node(msgspec.Struct, eq=False):
    """A file of the tree; several paths may lead to the same one (hard links).

    Attributes:
        mode: type and permissions, as ``st_mode``.
        offset: of a regular file's content in the image, bytes.
        target: of a symbolic link.
        children: of a directory, by name.
        number: for who numbers the nodes.
        links: paths that lead to it, where somebody has counted them.
    """

    mode: int = stat.S_IFDIR | 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    offset: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    children: dict[bytes, Node] | None = None
    number: int = -1
    links: int = 0

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self.children is not None


def _parts_of(name: bytes) -> list[bytes]:
    """The names that a path of a layer consists of.

    Raises:
        ImageError: ``image.archive``: it leads upward, or is longer than a file's name can be.
    """
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    long = len(name) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in parts)
    if long or name.startswith(b"/") or b".." in parts or b"\0" in name:
        raise refuse(f"it has an entry with a path that is not allowed: {shown(name)}")
    return parts


def shown(name: bytes) -> str:
    """A name for people, of no more than a line."""
    text = repr(name.decode(errors="backslashreplace"))
    return text if len(text) < 120 else f"{text[:120]}..."


class Tree:
    """What the layers so far come to.

    Args:
        whiteouts: entries that say what of the layers below is gone are such, not files of odd names.
    """

    def __init__(self, *, whiteouts: bool = True) -> None:
        self.root = Node(children={})
        self._whiteouts = whiteouts

    def add_layer(self, items: Iterable[Item]) -> None:
        """Lay a layer over what is there.

        Raises:
            ImageError: ``image.archive``: a path, owner or link is not allowed.
        """
        items = list(items)
        if self._whiteouts:
            # They say something of lower layers only, wherever they stand, so they come before all else.
            for item in items:
                if _WHITEOUT in item.name:
                    self._white_out(_parts_of(item.name))
        for item in items:
            self._add(item)

    def _white_out(self, parts: list[bytes]) -> None:
        if not parts or not parts[-1].startswith(_WHITEOUT):
            return
        parent = self.find(parts[:-1])
        if parent is None or parent.children is None:
            return
        if parts[-1] == _OPAQUE:
            parent.children.clear()
        else:
            parent.children.pop(parts[-1][len(_WHITEOUT) :], None)

    def _add(self, item: Item) -> None:
        parts = _parts_of(item.name)
        if self._whiteouts and parts and parts[-1].startswith(_WHITEOUT):
            return
        if not parts:
            if item.kind == "directory":
                self._renew(self.root, self._made(item))
            return
        node = self._linked(item) if item.kind == "hardlink" else self._made(item)
        parent = self._directory(parts[:-1], item)
        assert parent.children is not None
        old = parent.children.get(parts[-1])
        if old is not None and old.is_directory and node.is_directory:
            self._renew(old, node)
        else:
            parent.children[parts[-1]] = node

    @staticmethod
    def _renew(old: Node, new: Node) -> None:
        old.mode, old.uid, old.gid, old.xattrs = new.mode, new.uid, new.gid, new.xattrs
        old.mtime, old.mtime_ns = new.mtime, new.mtime_ns

    @staticmethod
    def _made(item: Item) -> Node:
        if not (0 <= item.uid <= _MOST_ID and 0 <= item.gid <= _MOST_ID):
            raise refuse(f"{shown(item.name)} has the owner {item.uid}:{item.gid}")
        if item.kind == "symlink" and not 0 < len(item.link) <= _LONGEST_PATH:
            raise refuse(f"the symbolic link {shown(item.name)} has no target, or too long a one")
        if not (0 <= item.device[0] < 1 << 12 and 0 <= item.device[1] < 1 << 20):
            raise refuse(f"the device {shown(item.name)} has the number {item.device[0]}:{item.device[1]}")
        if not -(1 << 62) < item.mtime < 1 << 62:
            raise refuse(f"{shown(item.name)} has a date that is none")
        return Node(
            mode=_TYPES[item.kind] | (item.mode if item.kind != "symlink" else 0o777),
            uid=item.uid,
            gid=item.gid,
            size=item.size,
            offset=item.offset,
            mtime=item.mtime,
            mtime_ns=item.mtime_ns,
            device=item.device,
            target=item.link,
            xattrs=tuple(
                pair
                for pair in item.xattrs
                if pair[0].startswith(_KEPT) and not pair[0].startswith(_NOT_KEPT)
            ),
            children={} if item.kind == "directory" else None,
        )

    def _linked(self, item: Item) -> Node:
        parts = [part for part in item.link.split(b"/") if part not in {b"", b"."}]
        parent = self.find(parts[:-1]) if b".." not in parts else None
        siblings = parent.children if parent is not None else None
        found = siblings.get(parts[-1]) if siblings is not None and parts else None
        if found is None or found.is_directory:
            message = f"{shown(item.name)} is a hard link to {shown(item.link)}, which is no file before it"
            raise refuse(message)
        return found

    def _directory(self, parts: list[bytes], item: Item) -> Node:
        """The directory at ``parts``, made where it is missing."""
        node = self._walk(parts, make=True)
        if node is None or not node.is_directory:
            raise refuse(f"{shown(item.name)} lies below something that is no directory")
        return node

    def find(self, parts: Iterable[bytes]) -> Node | None:
        """What a path leads to, links followed; None if nothing."""
        return self._walk(parts, make=False)

    def make(self, path: bytes) -> None:
        """Have a directory at ``path``, if nothing else is in its way."""
        if len(path) <= _LONGEST_PATH and b"\0" not in path:
            parts = path.split(b"/")
            if all(len(part) <= _LONGEST_NAME for part in parts):
                self._walk(parts, make=True)

    def locate(self, parts: Iterable[bytes]) -> tuple[bytes, Node] | None:
        """The same, with its own path, in which no link is."""
        way = self._way(parts, make=False)
        return None if way is None else (b"/".join(name for name, _ in way), way[-1][1])

    def _walk(self, parts: Iterable[bytes], *, make: bool) -> Node | None:
        way = self._way(parts, make=make)
        return None if way is None else way[-1][1]

    def _way(self, parts: Iterable[bytes], *, make: bool) -> list[tuple[bytes, Node]] | None:
        """The nodes from the root to what a path leads to, each with its name."""
        way = [(b"", self.root)]
        todo = list(parts)[::-1]
        links = 0
        while todo:
            part = todo.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                way = way[:-1] or way
                continue
            children = way[-1][1].children
            if children is None:
                return None
            found = children.get(part)
            if found is None:
                if not make:
                    return None
                found = children[part] = Node(children={})
            if not stat.S_ISLNK(found.mode):
                way.append((part, found))
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            if found.target.startswith(b"/"):
                way = way[:1]
            todo += found.target.split(b"/")[::-1]
        return way

    def remove(self, parts: Iterable[bytes]) -> None:
        """Take out what is at a path itself, if anything; no link is followed."""
        *way, name = parts
        node = self.root
        for part in way:
            child = node.children.get(part) if node.children is not None else None
            if child is None:
                return
            node = child
        if node.children is not None:
            node.children.pop(name, None)

    def directories(self) -> Iterator[tuple[bytes, Node, Node]]:
        """Each directory with its path and the one that it is in, the root first, by name."""
        todo = [(b"", self.root, self.root)]
        while todo:
            path, node, parent = todo.pop()
            yield path, node, parent
            below = [
                (path + b"/" + name, child, node)
                for name, child in sorted((node.children or {}).items(), reverse=True)
                if child.is_directory
            ]
            todo += below
