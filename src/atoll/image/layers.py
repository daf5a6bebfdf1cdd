"""The tree that archives make when they are laid over one another, as data: nothing here touches a disk.

Paths are resolved in this tree only, with its own root as the end of every ``..`` and the start of every
absolute link: what an archive names cannot be outside. Whiteouts are those of the OCI image specification,
"Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator, Sequence

import msgspec

from atoll.image.refusing import refuse

__all__ = ["Node", "Tree", "parts_of"]

_OPAQUE = ".wh..wh..opq"
_WHITEOUT = ".wh."
_MOST_LINKS = 40  # as Linux has it
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_MOST_ID = (1 << 32) - 2

#: Extended attributes that are kept: those of overlayfs and of the builder's security modules mean harm here.
_XATTR = "SCHILY.xattr."
_KEPT = (f"{_XATTR}security.capability", f"{_XATTR}user.")


class Node(msgspec.Struct, eq=False):
    """A file of the tree; several paths may lead to the same one (hard links).

    Attributes:
        kind: ``stat.S_IFREG``, ``S_IFDIR``, ``S_IFLNK`` or ``S_IFIFO``.
        content: for a regular file: number of the archive, and of the entry in it, that has its bytes.
        target: of a symbolic link.
        children: of a directory.
    """

    kind: int
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    content: tuple[int, int] | None = None
    target: str = ""
    xattrs: dict[str, str] = {}
    children: dict[str, Node] = {}


def parts_of(name: str) -> tuple[str, ...]:
    """The names that a path of an archive consists of.

    Raises:
        ImageError: ``image.archive``: it is absolute, leads upward, or is longer than a file's name can be.
    """
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    long = any(len(part.encode(errors="surrogateescape")) > _LONGEST_NAME for part in parts)
    if name.startswith("/") or ".." in parts or "\0" in name or long or len(name) > _LONGEST_PATH:
        shown = name if len(name) < 100 else f"{name[:100]}..."
        raise refuse(f"the archive has an entry with a path that is not allowed: {shown!r}")
    return parts


class Tree:
    """What the archives so far come to."""

    def __init__(self) -> None:
        self.root = Node(kind=stat.S_IFDIR)
        self.devices = 0

    def add_layer(self, members: Sequence[tarfile.TarInfo], number: int, *, whiteouts: bool) -> None:
        """Lay an archive over what is there.

        Args:
            members: its entries, in their order.
            number: of the archive; with an entry's place it becomes the ``content`` of its node.
            whiteouts: entries that say what of the layers below is gone are such, not files of odd names.

        Raises:
            ImageError: ``image.archive``: a path, owner or link is not allowed.
        """
        gone = set()
        for place, member in enumerate(members if whiteouts else ()):
            parts = parts_of(member.name)
            if parts and parts[-1].startswith(_WHITEOUT):
                gone.add(place)  # it says something of lower layers only, so it comes before all else
                self._white_out(parts)
        for place, member in enumerate(members):
            if place not in gone:
                self._add(member, (number, place))

    def _white_out(self, parts: tuple[str, ...]) -> None:
        parent = self.find("/".join(parts[:-1]))
        if parent is not None and parts[-1] == _OPAQUE:
            parent.children.clear()
        elif parent is not None:
            parent.children.pop(parts[-1].removeprefix(_WHITEOUT), None)

    def _add(self, member: tarfile.TarInfo, content: tuple[int, int]) -> None:
        parts = parts_of(member.name)
        if not parts:
            self.root.mode = member.mode & 0o7777 | 0o755
            return
        node = self._node(member, content)
        if node is None:
            return
        parent = self._directory(parts[:-1], member.name)
        old = parent.children.get(parts[-1])
        if old is not None and old.kind == node.kind == stat.S_IFDIR:
            old.mode, old.uid, old.gid, old.xattrs = node.mode, node.uid, node.gid, node.xattrs
            return
        parent.children[parts[-1]] = node

    def _node(self, member: tarfile.TarInfo, content: tuple[int, int]) -> Node | None:
        if member.ischr() or member.isblk():
            self.devices += 1
            return None
        if member.islnk():
            return self._linked(member)
        kinds = (
            (member.isdir(), stat.S_IFDIR),
            (member.issym(), stat.S_IFLNK),
            (member.isfifo(), stat.S_IFIFO),
        )
        kind = next((kind for found, kind in kinds if found), stat.S_IFREG)
        if kind == stat.S_IFREG and not member.isreg():
            raise refuse(f"the archive has an entry of an unknown type: {member.name!r}")
        if not (0 <= member.uid <= _MOST_ID and 0 <= member.gid <= _MOST_ID):
            raise refuse(f"{member.name!r} has the owner {member.uid}:{member.gid}")
        if kind == stat.S_IFLNK and not 0 < len(member.linkname) <= _LONGEST_PATH:
            raise refuse(f"the symbolic link {member.name!r} has no target, or too long a one")
        xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith(_KEPT)}
        return Node(
            kind=kind,
            mode=member.mode & 0o7777,
            uid=member.uid,
            gid=member.gid,
            size=member.size if kind == stat.S_IFREG else 0,
            content=content if kind == stat.S_IFREG else None,
            target=member.linkname if kind == stat.S_IFLNK else "",
            xattrs=xattrs,
        )

    def _linked(self, member: tarfile.TarInfo) -> Node:
        parts = parts_of(member.linkname)
        parent = self.find("/".join(parts[:-1]))
        found = parent.children.get(parts[-1]) if parent is not None and parts else None
        if found is None or found.kind == stat.S_IFDIR:
            raise refuse(f"{member.name!r} is a hard link to {member.linkname!r}, which is no file before it")
        return found

    def _directory(self, parts: tuple[str, ...], name: str) -> Node:
        """The directory at ``parts``, made where it is missing."""
        node = self._walk(parts, make=True)
        if node is None or node.kind != stat.S_IFDIR:
            raise refuse(f"{name!r} lies below something that is no directory")
        return node

    def find(self, path: str) -> Node | None:
        """What ``path`` leads to, links followed; None if nothing."""
        return self._walk(tuple(path.split("/")), make=False)

    def _walk(self, parts: tuple[str, ...], *, make: bool) -> Node | None:
        way = [self.root]
        todo = list(reversed(parts))
        links = 0
        while todo:
            part = todo.pop()
            here = way[-1]
            if part in {"", "."}:
                continue
            if part == "..":
                way = way[:-1] or way
                continue
            if here.kind != stat.S_IFDIR:
                return None
            found = here.children.get(part)
            if found is None and make:
                found = here.children[part] = Node(kind=stat.S_IFDIR)
            if found is None:
                return None
            if found.kind != stat.S_IFLNK:
                way.append(found)
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            if found.target.startswith("/"):
                way = [self.root]
            todo += reversed(found.target.split("/"))
        return way[-1]

    def remove(self, path: str) -> None:
        """Take out what is at ``path`` itself, if anything; no link is followed."""
        head, _, name = path.rpartition("/")
        node: Node | None = self.root
        for part in head.split("/") if head else ():
            node = node.children.get(part) if node is not None else None
        if node is not None:
            node.children.pop(name, None)

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Every path but the root's, directories before what is in them, by name."""
        todo = [(name, node) for name, node in sorted(self.root.children.items(), reverse=True)]
        while todo:
            path, node = todo.pop()
            yield path, node
            todo += [(f"{path}/{name}", child) for name, child in sorted(node.children.items(), reverse=True)]
