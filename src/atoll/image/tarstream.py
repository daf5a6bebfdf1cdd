"""Reading a tar archive piece by piece as it passes, without keeping it. Pure.

Formats: POSIX ustar and pax (pax(1), "Extended header"), GNU tar's long names, base-256 numbers and sparse
files (tar's manual, "Storing Sparse Files": the old form and pax versions 0.0, 0.1 and 1.0).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from atoll.image.refusing import refuse

__all__ = ["BLOCK", "Entry", "TarStream", "Visitor"]

#: What all of an archive is a multiple of.
BLOCK = 512

#: Bytes of an extended header: names and attributes are a few kilobytes at most.
_MOST_META = 1 << 20

#: Pieces of a sparse file.
_MOST_PIECES = 1 << 20

_LARGEST = 1 << 62
_NS = 9  # digits of a nanosecond
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_META = {b"x": "pax", b"g": "global", b"L": "name", b"K": "link"}
_ZEROS = bytes(BLOCK)
_BLANKS = bytes(0x20 for _ in range(8))  # how a header's sum counts its own field
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_PAX_SIZED = (b"GNU.sparse.realsize", b"GNU.sparse.size")

_Pieces = tuple[tuple[int, int], ...]


class Entry(msgspec.Struct, frozen=True):
    """One entry.

    Attributes:
        name: as it is written, without slashes at the end.
        kind: file, directory, symlink, hardlink, char, block or fifo.
        mode: permissions with setuid, setgid and sticky.
        uid: owner, as a number; ``gid`` likewise.
        size: bytes of the file; 0 unless it is one. As many are told to the visitor if it is not sparse.
        mtime: seconds since the epoch, whole, and ``mtime_ns`` nanoseconds beside.
        link: target of a link; empty else.
        device: major and minor number.
        xattrs: extended attributes, sorted.
        pieces: offset and length of what is told of a sparse file, in order; None for one that is not.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    mtime_ns: int = 0
    pieces: _Pieces | None = None


class Visitor(Protocol):
    """Who is told what an archive holds."""

    def begin(self, entry: Entry) -> None:
        """An entry begins."""

    def data(self, piece: memoryview) -> None:
        """So much more of its content has come; the memory is not to be kept."""

    def end(self) -> None:
        """It is whole."""


def _refuse(why: str) -> Exception:
    return refuse(f"the archive is no tar archive that can be read: {why}")


class TarStream:
    """An archive that is fed.

    Args:
        visitor: told of its entries.
        error: makes the error for why it cannot be read.
        raw: gets every byte that is no content of a file, in order, if it is wanted; the visitor may take
            from it when it is told something. With those and the contents the archive can be made again.
    """

    def __init__(
        self,
        visitor: Visitor,
        error: Callable[[str], Exception] = _refuse,
        raw: bytearray | None = None,
    ) -> None:
        self._visitor = visitor
        self._broken = error
        self._raw = raw
        self._block = bytearray()
        self._left = self._padding = 0
        self._meta = ""
        self._collected = bytearray()
        self._pax: dict[bytes, bytes] = {}
        self._pieces: list[int] = []
        self._pending: tuple[bytes, bytes] | None = None  # the header of a sparse file whose map follows
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises what ``error`` makes, if it is no tar archive, or of a kind that is not read.
        """
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            if self._left:
                at = self._content(view, at)
            elif self._padding:
                taken = min(self._padding, end - at)
                self._keep(view[at : at + taken])
                self._padding -= taken
                at += taken
            elif not self._block and end - at >= BLOCK:
                block = bytes(view[at : at + BLOCK])
                at += BLOCK
                self._keep(block)
                self._take(block)
            else:
                taken = min(BLOCK - len(self._block), end - at)
                self._block += view[at : at + taken]
                at += taken
                if len(self._block) == BLOCK:
                    block = bytes(self._block)
                    self._block.clear()
                    self._keep(block)
                    self._take(block)

    def close(self, *, marked: bool = True) -> None:
        """Say that nothing more comes. Raises what ``error`` makes, if it is cut off.

        Args:
            marked: its end is to be marked by a block of zeros, as it should be; else the end of an entry
                will do, for archives of which it is known that they are whole.
        """
        between = not (self._left or self._padding or self._block or self._pax or self._pending)
        if not self._ended if marked else not between:
            raise self._broken("it is cut off")

    def _keep(self, data: bytes | memoryview) -> None:
        if self._raw is not None:
            self._raw += data

    def _content(self, view: memoryview, at: int) -> int:
        piece = view[at : at + self._left]
        if self._meta:
            self._collected += piece
            self._keep(piece)
        else:
            self._visitor.data(piece)
        self._left -= len(piece)
        if not self._left:
            self._finish()
        return at + len(piece)

    def _finish(self) -> None:
        """The content of an entry is there."""
        if not self._meta:
            self._visitor.end()
            return
        meta, self._meta = self._meta, ""
        collected = bytes(self._collected)
        self._collected.clear()
        if meta == "pax":
            self._take_records(collected)
        elif meta in {"name", "link"}:
            key = b"path" if meta == "name" else b"linkpath"
            self._pax[key] = collected.rstrip(b"\0")

    def _take_records(self, data: bytes) -> None:
        for key, value in self._records(data):
            if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
                self._pieces.append(self._decimal(value))
            else:
                self._pax[key] = value

    def _take(self, block: bytes) -> None:
        """A block that is no content: a header, or more of the map of a sparse file."""
        if self._pending is not None:
            self._map(block)
            return
        if block == _ZEROS:
            self._ended = True
            return
        if self._ended:
            raise self._broken("something follows its end")
        if not self._is_sound(block):
            raise self._broken("a checksum is wrong")
        kind = block[156:157]
        size = self._number(block[124:136])
        if kind in _META:
            if size > _MOST_META:
                raise self._broken("an extended header is too long")
            self._meta = _META[kind]
            self._await(size)
        elif kind in _KINDS:
            self._take_entry(block, size)
        else:
            raise self._broken(f"an entry is of kind {kind!r}")

    def _take_entry(self, block: bytes, size: int) -> None:
        if block[156:157] == b"S":
            self._pieces = self._old_pieces(block, 386, 4)
            if block[482]:
                self._pending = block, b"old"
                return
        elif self._pax.get(b"GNU.sparse.major") == b"1":
            self._pending = block, b""
            return
        self._begin(block, size)

    def _is_sound(self, block: bytes) -> bool:
        claimed = self._number(block[148:156])
        # Adler-32's low half is the sum of all bytes and 1, modulo 65521 (RFC 1950): at the speed of C.
        summed = (zlib.adler32(block[:148] + _BLANKS + block[156:]) & 0xFFFF) - 1
        return 0 <= claimed < BLOCK * 256 and (claimed - summed) % 65521 == 0

    def _await(self, size: int) -> None:
        self._left = size
        self._padding = -size % BLOCK
        if not size:
            self._finish()

    # Sparse files.

    def _old_pieces(self, block: bytes, at: int, count: int) -> list[int]:
        pieces: list[int] = []
        for place in range(at, at + 24 * count, 24):
            if not block[place : place + 24].strip(b" \0"):
                break
            pieces += (
                self._number(block[place : place + 12]),
                self._number(block[place + 12 : place + 24]),
            )
        return pieces

    def _map(self, block: bytes) -> None:
        """More of a map: an extension of the old header, or lines of numbers before a file's own bytes."""
        assert self._pending is not None
        header, form = self._pending
        if form == b"old":
            self._pieces += self._old_pieces(block, 0, 21)
            if len(self._pieces) > 2 * _MOST_PIECES:
                raise self._broken("a sparse file has too many pieces")
            if not block[504]:
                self._pending = None
                self._begin(header, self._number(header[124:136]))
            return
        lines = form + block
        if len(lines) > 40 * _MOST_PIECES:
            raise self._broken("a sparse file has too many pieces")
        first, feed, _ = lines.partition(b"\n")
        count = self._decimal(first) if feed else 0
        if not feed or lines.count(b"\n") < 1 + 2 * count:
            self._pending = header, lines
            return
        self._pending = None
        self._pieces = [self._decimal(line) for line in lines.split(b"\n")[1 : 1 + 2 * count]]
        self._begin(header, self._number(header[124:136]), len(lines))

    def _arranged(self, stored: int, size: int) -> _Pieces:
        """The pieces of a sparse file, in order within it, together what is stored of it."""
        numbers = iter(self._pieces)
        pieces = tuple(zip(numbers, numbers, strict=True)) if len(self._pieces) % 2 == 0 else ((-1, -1),)
        self._pieces = []
        last = 0
        for offset, length in pieces:
            if not last <= offset <= offset + length <= size:
                raise self._broken("the map of a sparse file is no map of it")
            last = offset + length
        if sum(length for _, length in pieces) != stored:
            raise self._broken("the map of a sparse file does not fit what is stored of it")
        return tuple((offset, length) for offset, length in pieces if length)

    # Entries.

    def _begin(self, header: bytes, size: int, used: int = 0) -> None:
        pax, self._pax = self._pax, {}
        kind = _KINDS[header[156:157]]
        name = self._named(header, pax)
        if kind == "file" and header[156:157] == b"\0" and name.endswith(b"/"):
            kind = "directory"
        stored = size if b"size" not in pax else self._decimal(pax[b"size"])
        if not 0 <= stored <= _LARGEST or used > stored:
            raise self._broken("an entry's size is none")
        stored = stored - used if kind == "file" else 0
        whole, pieces = stored, None
        if b"GNU.sparse.map" in pax:
            self._pieces = [self._decimal(part) for part in pax[b"GNU.sparse.map"].split(b",") if part]
        if kind == "file" and (self._pieces or used or header[156:157] == b"S"):
            whole = self._sparse_size(header, pax, stored)
            pieces = self._arranged(stored, whole)
        mtime, nanoseconds = self._time(pax.get(b"mtime"), header[136:148])
        entry = Entry(
            name=name.rstrip(b"/"),
            kind=kind,
            mode=self._number(header[100:108]) & 0o7777,
            uid=self._decimal(pax[b"uid"]) if b"uid" in pax else self._number(header[108:116]),
            gid=self._decimal(pax[b"gid"]) if b"gid" in pax else self._number(header[116:124]),
            size=whole,
            mtime=mtime,
            link=pax.get(b"linkpath", _text(header[157:257])) if kind in {"symlink", "hardlink"} else b"",
            device=(self._number(header[329:337]), self._number(header[337:345]))
            if kind in {"char", "block"}
            else (0, 0),
            xattrs=_xattrs(pax) if pax else (),
            mtime_ns=nanoseconds,
            pieces=pieces,
        )
        self._visitor.begin(entry)
        self._await(stored)

    def _sparse_size(self, header: bytes, pax: dict[bytes, bytes], stored: int) -> int:
        size = next((self._decimal(pax[key]) for key in _PAX_SIZED if key in pax), stored)
        if header[156:157] == b"S":
            size = self._number(header[483:495])
        if not 0 <= size <= _LARGEST:
            raise self._broken("an entry's size is none")
        return size

    def _named(self, header: bytes, pax: dict[bytes, bytes]) -> bytes:
        if b"GNU.sparse.name" in pax:
            return pax[b"GNU.sparse.name"]
        if b"path" in pax:
            return pax[b"path"]
        name = _text(header[:100])
        prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
        return prefix + b"/" + name if prefix else name

    def _time(self, pax: bytes | None, field: bytes) -> tuple[int, int]:
        if pax is None:
            return self._number(field), 0
        whole, _, fraction = pax.partition(b".")
        seconds = self._decimal(whole)
        if not fraction:
            return seconds, 0
        nanoseconds = self._decimal(fraction[:_NS].ljust(_NS, b"0"))
        if nanoseconds and whole.startswith(b"-"):
            return seconds - 1, 10**_NS - nanoseconds
        return seconds, nanoseconds

    def _number(self, field: bytes) -> int:
        """A number of a header: octal digits, or base 256 if the first bit is set (GNU tar)."""
        if field[0] & 0x80:
            value = int.from_bytes(bytes((field[0] & 0x7F, *field[1:])), "big")
            return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
        digits = field.strip(b" \0")
        if not digits:
            return 0
        if digits.strip(b"01234567"):
            raise self._broken("a number is none")
        return int(digits, 8)

    def _decimal(self, field: bytes) -> int:
        if not field.removeprefix(b"-").isdigit() or len(field) > 20:
            raise self._broken("a number is none")
        return int(field)

    def _records(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The records of an extended header: ``LENGTH KEY=VALUE`` and a line feed, of LENGTH bytes in all."""
        at = 0
        while at < len(data):
            blank = data.find(b" ", at, at + 9)
            digits = data[at:blank] if blank > at else b""
            end = at + (int(digits) if digits.isdigit() else 0)
            key, equals, value = data[blank + 1 : end - 1].partition(b"=")
            if not blank < end <= len(data) or not equals or data[end - 1] != ord("\n"):
                raise self._broken("an extended header is malformed")
            yield key, value
            at = end


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _xattrs(pax: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    found = [(key[len(_XATTR) :], value) for key, value in pax.items() if key.startswith(_XATTR)]
    return tuple(sorted(found))
