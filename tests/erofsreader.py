"""Reading an EROFS, uncompressed, without a kernel: what tests compare images with.

Written after the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h alone, and strict: what
the kernel would call corrupt is an AssertionError here.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from dataclasses import dataclass, field

MAGIC = 0xE0F5E1E2
PLAIN, INLINE, CHUNKS = 0, 2, 4
HOLE = 0xFFFF_FFFF
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


@dataclass(frozen=True)
class File:
    """A file of a tree.

    Attributes:
        mode: as lstat(2) has it, ``rdev`` and ``mtime`` (ns) likewise.
        content: of a file; what a symbolic link says.
        identity: the same for all names of it.
    """

    mode: int
    uid: int
    gid: int
    mtime: int
    content: bytes = field(default=b"", repr=False)
    rdev: int = 0
    nlink: int = 1
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    identity: int = 0


class Erofs:
    """An image.

    Args:
        path: of it.
    """

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        (magic,) = struct.unpack_from("<I", self.data, 1024)
        assert magic == MAGIC
        self.bits, self.slots, self.root = struct.unpack_from("<BBH", self.data, 1024 + 12)
        self.block = 1 << self.bits
        self.inodes, self.epoch, self.epoch_ns = struct.unpack_from("<QQI", self.data, 1024 + 16)
        self.blocks, self.meta, self.shared = struct.unpack_from("<III", self.data, 1024 + 36)
        (self.incompatible,) = struct.unpack_from("<I", self.data, 1024 + 80)
        (self.devices,) = struct.unpack_from("<H", self.data, 1024 + 86)
        self.directory_bits, self.prefixes = struct.unpack_from("<BB", self.data, 1024 + 90)
        assert self.bits == 12
        assert not self.devices
        assert not self.directory_bits
        assert not self.prefixes
        assert self.blocks * self.block <= len(self.data)

    def close(self):
        self.data.close()

    def inode(self, nid):
        """A file by its number, without what is in a directory."""
        at = self.meta * self.block + nid * 32
        (form, icount, mode) = struct.unpack_from("<HHH", self.data, at)
        layout = form >> 1 & 7
        assert form >> 4 == 0, f"nid {nid}: unknown bits in its format"
        if form & 1:
            size, place, _, uid, gid, mtime, mtime_ns, nlink = struct.unpack_from(
                "<QIIIIqII", self.data, at + 8
            )
            head = 64
        else:
            nlink, size, _, place, _, uid, gid = struct.unpack_from("<HIIIIHH", self.data, at + 6)
            mtime, mtime_ns, head = self.epoch, self.epoch_ns, 32
        assert mtime_ns < 10**9
        assert nlink
        body = at + head
        xattrs = self._xattrs(body, icount)
        body += 12 + 4 * (icount - 1) if icount else 0
        kind = stat.S_IFMT(mode)
        content, rdev = b"", 0
        if kind in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}:
            content = self._content(nid, layout, size, place, body)
        elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
            rdev = os.makedev(place >> 8 & 0xFFF, place & 0xFF | place >> 12 & 0xFFF00)
        else:
            assert kind in {stat.S_IFIFO, stat.S_IFSOCK}, f"nid {nid}: mode {mode:o}"
        return File(mode, uid, gid, mtime * 10**9 + mtime_ns, content, rdev, nlink, xattrs, nid)

    def _content(self, nid, layout, size, place, body):
        blocks = -(-size // self.block)
        if layout == CHUNKS:
            return self._chunks(size, place, body)
        if layout == PLAIN:
            assert not size or place + blocks <= self.blocks, f"nid {nid}: beyond the end"
            return self.data[place * self.block : place * self.block + size]
        assert layout == INLINE, f"nid {nid}: layout {layout}"
        whole = max(blocks - 1, 0) * self.block
        tail = size - whole
        assert tail == 0 or body // self.block == (body + tail - 1) // self.block, (
            f"nid {nid}: tail in two blocks"
        )
        assert not whole or place + blocks - 1 <= self.blocks, f"nid {nid}: beyond the end"
        return self.data[place * self.block : place * self.block + whole] + self.data[body : body + tail]

    def _chunks(self, size, place, body):
        chunk = self.block << (place & 31)
        indexed = bool(place & 32)
        width = 8 if indexed else 4
        at = -(-body // width) * width
        parts = []
        for number in range(-(-size // chunk)):
            length = min(chunk, size - number * chunk)
            if indexed:
                _, device, block = struct.unpack_from("<HHI", self.data, at + 8 * number)
                assert device == 0
            else:
                (block,) = struct.unpack_from("<I", self.data, at + 4 * number)
            start = block * self.block
            assert block == HOLE or start + length <= self.blocks * self.block
            parts.append(bytes(length) if block == HOLE else self.data[start : start + length])
        return b"".join(parts)

    def _xattrs(self, at, icount):
        if not icount:
            return ()
        end = at + 12 + 4 * (icount - 1)
        count = self.data[at + 4]
        ids = struct.unpack_from(f"<{count}I", self.data, at + 12)
        found = [self._xattr(self.shared * self.block + 4 * number)[0] for number in ids]
        at += 12 + 4 * count
        while at < end and self.data[at : at + 4] != bytes(4):
            one, at = self._xattr(at)
            found.append(one)
        assert at <= end
        assert len({name for name, _ in found}) == len(found), "an attribute twice"
        return tuple(sorted(found))

    def _xattr(self, at):
        length, kind, size = struct.unpack_from("<BBH", self.data, at)
        at += 4
        name = PREFIXES[kind] + self.data[at : at + length]
        at += length
        value = self.data[at : at + size]
        return (name, value), -(-(at + size) // 4) * 4

    def names(self, directory):
        """What is in a directory: (name, nid), in their order."""
        found = []
        data = directory.content
        for start in range(0, len(data), self.block):
            block = data[start : start + self.block]
            (first,) = struct.unpack_from("<H", block, 8)
            assert first
            assert first % 12 == 0
            rows = [struct.unpack_from("<QHB", block, 12 * number) for number in range(first // 12)]
            ends = [offset for _, offset, _ in rows[1:]] + [len(block)]
            for (nid, offset, kind), end in zip(rows, ends, strict=True):
                assert first <= offset < end <= len(block)
                name = block[offset:end].rstrip(b"\0") if end == len(block) else block[offset:end]
                assert 0 < len(name) <= 255
                assert b"/" not in name
                assert b"\0" not in name
                found.append((name, nid, kind))
        names = [name for name, *_ in found]
        assert names == sorted(set(names)), "names out of order, which a binary search needs"
        assert {b".", b".."} <= set(names)
        return found

    def tree(self):
        """Every file by its path, the root's being empty."""
        found = {b"": self.inode(self.root)}
        parents = {self.root: self.root}
        todo = [(b"", self.root)]
        while todo:
            path, nid = todo.pop()
            for name, child, kind in self.names(found[path]):
                if name in {b".", b".."}:
                    assert child == (nid if name == b"." else parents[nid])
                    continue
                place = path + b"/" + name if path else name
                found[place] = self.inode(child)
                assert stat.S_IFMT(found[place].mode) == TYPES[kind], place
                if stat.S_ISDIR(found[place].mode):
                    assert child not in parents, f"{place}: a directory with two names"
                    parents[child] = nid
                    todo.append((place, child))
        return found


def read(path):
    """Every file of an EROFS by its path."""
    image = Erofs(path)
    try:
        return image.tree()
    finally:
        image.close()


def tree_of(directory):
    """Every file below a directory of this host likewise."""
    top = os.fsencode(directory)
    found = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        place = os.path.join(top, path) if path else top
        status = os.lstat(place)
        kind = stat.S_IFMT(status.st_mode)
        content = b""
        if kind == stat.S_IFREG:
            with open(place, "rb") as file:
                content = file.read()
        elif kind == stat.S_IFLNK:
            content = os.readlink(place)
        elif kind == stat.S_IFDIR:
            todo += [path + b"/" + name if path else name for name in map(os.fsencode, os.listdir(place))]
        xattrs = sorted(
            (os.fsencode(name), os.getxattr(place, name, follow_symlinks=False))
            for name in os.listxattr(place, follow_symlinks=False)
        )
        rdev = status.st_rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
        found[path] = File(
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            content,
            rdev,
            status.st_nlink,
            tuple(xattrs),
            status.st_ino,
        )
    return found


def differences(one, other, *, times=None):
    """Lines that say where two trees differ; dates are compared of all, or where ``times`` holds."""
    lines = [f"only in the first: {path!r}" for path in sorted(one.keys() - other.keys())]
    lines += [f"only in the second: {path!r}" for path in sorted(other.keys() - one.keys())]
    for path in sorted(one.keys() & other.keys()):
        mine, theirs = one[path], other[path]
        directory = stat.S_ISDIR(mine.mode)
        for name in ("mode", "uid", "gid", "rdev", "xattrs"):
            if getattr(mine, name) != getattr(theirs, name):
                lines.append(f"{name} of {path!r}: {getattr(mine, name)!r} and {getattr(theirs, name)!r}")
        if not directory and mine.content != theirs.content:
            lines.append(f"content of {path!r}: {len(mine.content)} and {len(theirs.content)} bytes")
        if not directory and mine.nlink != theirs.nlink:
            lines.append(f"links of {path!r}: {mine.nlink} and {theirs.nlink}")
        if (times is None or times(path)) and mine.mtime != theirs.mtime:
            lines.append(f"mtime of {path!r}: {mine.mtime} and {theirs.mtime}")
    if _links(one) != _links(other):
        lines.append(f"hard links: {_links(one)} and {_links(other)}")
    return lines


def _links(tree):
    groups = {}
    for path, file in tree.items():
        if not stat.S_ISDIR(file.mode):
            groups.setdefault(file.identity, set()).add(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
