"""The metadata of an EROFS file system whose files' contents lie somewhere before it. Pure.

What is written: a superblock; extended inodes, each with its extended attributes behind it and, where they
fit into the same block, a symbolic link's target or a directory's last block; whole blocks of directories.
Nothing is compressed. Contents begin at blocks of their own and lie in one piece.

Source: the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h (Linux 5.16 and newer).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator

import msgspec

from atoll.image import erofs
from atoll.image.oci.merging import Node, Tree, shown
from atoll.image.refusing import refuse

__all__ = ["BLOCK", "Plan", "plan", "superblock"]

#: Bytes of a block: the kernel's page, which older kernels insist on.
BLOCK = 4096

_SLOT = 32  # what inodes are numbered by
_ROOT = 2  # number of the root's inode: some programs take 0 for no file
_INODE = struct.Struct("<HHHHQIIIIqII16x")
_DIRENT = struct.Struct("<QHBx")
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHH38x")
_XATTR_HEADER, _XATTR = 12, struct.Struct("<BBH")

_PLAIN, _INLINE = 1 | 0 << 1, 1 | 2 << 1  # an extended inode with that layout of its data
_DATES = 2  # each inode has its own
_MOST_BLOCKS = (1 << 32) - 1
_MOST_XATTRS = 0xFFFF

#: Numbers of extended attributes' prefixes; of two names nothing is left.
_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)

_KINDS = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


class _Place(msgspec.Struct, gc=False):
    """Where a node goes.

    Attributes:
        at: its inode, bytes from the beginning of the metadata.
        size: of its data.
        layout: of its data.
        blocks: the first of those that it has beside its inode, counted from the first of all such.
        tail: bytes of data right behind the inode.
    """

    at: int
    size: int
    layout: int
    blocks: int = 0
    tail: int = 0


class Plan(msgspec.Struct):
    """Where everything goes; made by ``plan``.

    Attributes:
        inodes: how many files there are.
        size: of the metadata, bytes; whole blocks.
    """

    inodes: int
    size: int
    nodes: list[Node]
    places: list[_Place]
    parents: list[Node]
    inode_bytes: int

    def render(self, start: int) -> Iterator[bytes]:
        """The metadata, in pieces, if it begins at byte ``start`` of the file system, the start of a block.

        Raises:
            ImageError: ``image.archive``: the file system is larger than EROFS can be.
        """
        if (start + self.size) // BLOCK > _MOST_BLOCKS:
            raise refuse("the image is larger than a file system can be")
        first = (start + self.inode_bytes) // BLOCK
        blocks: list[bytes] = []
        out = bytearray()
        done = 0
        for node, place, parent in zip(self.nodes, self.places, self.parents, strict=True):
            data = _data_of(node, parent)
            cut = len(data) - place.tail
            whole = data[:cut] if place.size else b""
            address = first + place.blocks if whole else node.offset // BLOCK if node.size else 0
            out += bytes(place.at - done - len(out))
            out += _inode(node, place, address)
            out += _xattrs(node)
            out += data[cut:] if place.tail else b""
            if whole:
                blocks.append(whole + bytes(-len(whole) % BLOCK))
            if len(out) >= 1 << 20:
                done += len(out)
                yield bytes(out)
                out.clear()
        out += bytes(self.inode_bytes - done - len(out))
        yield bytes(out)
        yield from blocks


def plan(tree: Tree) -> Plan:
    """Number the files of a tree; its nodes get their ``number`` and ``links``.

    Raises:
        ImageError: ``image.archive``: a file has more extended attributes than EROFS can hold.
    """
    nodes: list[Node] = []
    parents: list[Node] = []
    places: list[_Place] = []
    at, blocks = _ROOT * _SLOT, 0

    def put(node: Node, parent: Node) -> None:
        nonlocal at, blocks
        place = _placed(node, at, blocks)
        at = -(-(place.at + _head(node) + place.tail) // _SLOT) * _SLOT
        blocks += -(-(place.size - place.tail) // BLOCK)
        node.number = place.at // _SLOT
        nodes.append(node)
        parents.append(parent)
        places.append(place)

    put(tree.root, tree.root)
    tree.root.links = 2
    for _, directory, _ in tree.directories():
        for _, child in sorted((directory.children or {}).items()):
            if child.number < 0:
                put(child, directory)
                child.links = 2 if child.is_directory else 0
            if child.is_directory:
                directory.links += 1
            else:
                child.links += 1
    inode_bytes = -(-at // BLOCK) * BLOCK
    return Plan(len(nodes), inode_bytes + blocks * BLOCK, nodes, places, parents, inode_bytes)


def superblock(planned: Plan, start: int, *, built: int, identity: bytes) -> bytes:
    """The first block of the file system.

    Args:
        planned: the metadata.
        start: byte at which they begin.
        built: seconds since the epoch.
        identity: UUID of the file system, 16 bytes.
    """
    head = _SUPERBLOCK.pack(
        erofs.MAGIC,
        0,
        erofs.HAS_CHECKSUM | _DATES,
        BLOCK.bit_length() - 1,
        0,
        _ROOT,
        planned.inodes,
        built,
        0,
        (start + planned.size) // BLOCK,
        start // BLOCK,
        0,
        identity,
        b"",
        0,
        0,
        0,
        0,
    )
    return erofs.with_checksum(bytes(erofs.OFFSET) + head + bytes(BLOCK - erofs.OFFSET - len(head)))


def _head(node: Node) -> int:
    """Bytes of an inode with its extended attributes."""
    return _INODE.size + (_xattr_size(node) if node.xattrs else 0)


def _placed(node: Node, at: int, blocks: int) -> _Place:
    """Where a node goes if what is before it ends at ``at``."""
    head = _head(node)
    size = _size_of(node)
    tail = size % BLOCK or min(size, BLOCK)
    if not size or head + tail > BLOCK:
        tail = 0
    room = BLOCK - at % BLOCK
    if head + tail > room and (tail or head <= BLOCK):
        at += room
    return _Place(at, size, _INLINE if tail else _PLAIN, blocks, tail)


def _size_of(node: Node) -> int:
    """Bytes of data that belong to the metadata: of a symbolic link or a directory."""
    if node.children is not None:
        *whole, last = _split(node)
        return BLOCK * len(whole) + sum(_DIRENT.size + len(name) for name in last)
    return len(node.target)


def _split(node: Node) -> list[list[bytes]]:
    """The names of a directory, sorted, as they go into its blocks."""
    assert node.children is not None
    blocks: list[list[bytes]] = [[]]
    used = 0
    for name in sorted((b".", b"..", *node.children)):
        size = _DIRENT.size + len(name)
        if used + size > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += size
    return blocks


def _data_of(node: Node, parent: Node) -> bytes:
    """That data."""
    if node.children is None:
        return node.target
    *whole, last = (_directory_block(names, node, parent) for names in _split(node))
    return b"".join([block + bytes(BLOCK - len(block)) for block in whole] + [last])


def _directory_block(names: list[bytes], node: Node, parent: Node) -> bytes:
    special = {b".": node, b"..": parent}
    assert node.children is not None
    entries = bytearray()
    at = _DIRENT.size * len(names)
    for name in names:
        child = special.get(name) or node.children[name]
        entries += _DIRENT.pack(child.number, at, _KINDS[stat.S_IFMT(child.mode)])
        at += len(name)
    return bytes(entries) + b"".join(names)


def _inode(node: Node, place: _Place, address: int) -> bytes:
    is_device = stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    return _INODE.pack(
        place.layout,
        (_xattr_size(node) - _XATTR_HEADER) // 4 + 1 if node.xattrs else 0,
        node.mode,
        0,
        node.size if stat.S_ISREG(node.mode) else place.size,
        _device_number(node.device) if is_device else address,
        node.number & 0xFFFFFFFF,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_ns,
        node.links,
    )


def _device_number(device: tuple[int, int]) -> int:
    """As the kernel's new_encode_dev."""
    major, minor = device
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _named(name: bytes) -> tuple[int, bytes]:
    for prefix, number in _PREFIXES:
        if name.startswith(prefix):
            return number, name[len(prefix) :]
    raise refuse(f"it has an extended attribute of an unknown kind: {shown(name)}")


def _xattr_size(node: Node) -> int:
    size = _XATTR_HEADER
    for name, value in node.xattrs:
        _, rest = _named(name)
        if len(rest) > 0xFF or len(value) > 0xFFFF:
            raise refuse(f"it has an extended attribute that is too long: {shown(name)}")
        size += -(-(_XATTR.size + len(rest) + len(value)) // 4) * 4
    if size // 4 >= _MOST_XATTRS:
        raise refuse("it has a file with more extended attributes than fit")
    return size


def _xattrs(node: Node) -> bytes:
    if not node.xattrs:
        return b""
    out = bytearray(_XATTR_HEADER)
    for name, value in node.xattrs:
        number, rest = _named(name)
        out += _XATTR.pack(len(rest), number, len(value)) + rest + value
        out += bytes(-len(out) % 4)
    return bytes(out)
