"""Reading a tar archive piece by piece as it passes, without keeping it. Pure.

Formats: POSIX ustar and pax (pax(1), "Extended header"), and GNU tar's long names and base-256 numbers.
Sparse entries are refused: engines write none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from atoll.errors import EngineError

__all__ = ["Entry", "TarStream", "Visitor"]

_BLOCK = 512

#: Bytes of an extended header: names and attributes are a few kilobytes at most.
_MOST_META = 1 << 20

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}
_META = {b"x": "pax", b"g": "global", b"L": "name", b"K": "link"}

_XATTR = b"SCHILY.xattr."


class Entry(msgspec.Struct, frozen=True):
    """One entry.

    Attributes:
        name: as it is written, without slashes at the end.
        kind: file, directory, symlink, hardlink, char, block or fifo.
        mode: permissions with setuid, setgid and sticky.
        uid: owner, as a number; ``gid`` likewise.
        size: bytes of content that follow; 0 unless it is a file.
        mtime: seconds since the epoch, whole.
        link: target of a link; empty else.
        device: major and minor number.
        xattrs: extended attributes, sorted.
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


class Visitor(Protocol):
    """Who is told what an archive holds."""

    def begin(self, entry: Entry) -> None:
        """An entry begins."""

    def data(self, piece: memoryview) -> None:
        """So much more of its content has come; the memory is not to be kept."""

    def end(self) -> None:
        """It is whole."""


class TarStream:
    """An archive that is fed.

    Args:
        visitor: told of its entries.
    """

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._header = bytearray()
        self._left = 0
        self._padding = 0
        self._meta = ""
        self._collected = bytearray()
        self._pax: dict[bytes, bytes] = {}
        self._open = False
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            EngineError: ``engine.archive``: it is no tar archive, or of a kind that is not read.
        """
        view = memoryview(data)
        while view:
            if self._left:
                view = self._content(view)
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                view = self._head(view)

    def close(self) -> None:
        """Say that nothing more comes. Raises ``EngineError``: ``engine.archive``: it is cut off."""
        if not self._ended or self._left or self._header:
            raise _broken("it is cut off")

    def _content(self, view: memoryview) -> memoryview:
        piece = view[: self._left]
        if self._meta:
            self._collected += piece
        else:
            self._visitor.data(piece)
        self._left -= len(piece)
        if not self._left:
            self._finish()
        return view[len(piece) :]

    def _finish(self) -> None:
        """The content of an entry is there."""
        if not self._meta:
            self._visitor.end()
            return
        meta, self._meta = self._meta, ""
        collected = bytes(self._collected)
        self._collected.clear()
        if meta == "pax":
            self._pax.update(_records(collected))
        elif meta in {"name", "link"}:
            key = b"path" if meta == "name" else b"linkpath"
            self._pax[key] = collected.rstrip(b"\0")

    def _head(self, view: memoryview) -> memoryview:
        taken = view[: _BLOCK - len(self._header)]
        self._header += taken
        if len(self._header) == _BLOCK:
            header = bytes(self._header)
            self._header.clear()
            self._take(header)
        return view[len(taken) :]

    def _take(self, header: bytes) -> None:
        if header.count(0) == _BLOCK:
            self._ended = True
            return
        if self._ended:
            raise _broken("something follows its end")
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise _broken("a checksum is wrong")
        kind = header[156:157]
        size = _number(header[124:136])
        if kind in _META:
            if size > _MOST_META:
                raise _broken("an extended header is too long")
            self._meta = _META[kind]
        elif kind in _KINDS:
            entry = self._entry(header, _KINDS[kind], size)
            self._visitor.begin(entry)
            size = entry.size
        else:
            raise _broken(f"an entry is of kind {kind!r}")
        self._left = size
        self._padding = -size % _BLOCK
        if not size:
            self._finish()

    def _entry(self, header: bytes, kind: str, size: int) -> Entry:
        pax, self._pax = self._pax, {}
        if any(key.startswith(b"GNU.sparse.") for key in pax):
            raise _broken("an entry is sparse")
        name = _text(header[:100])
        prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
        if prefix:
            name = prefix + b"/" + name
        whole = _decimal(pax.get(b"size"), size)
        devices = (
            (_number(header[329:337]), _number(header[337:345])) if kind in {"char", "block"} else (0, 0)
        )
        return Entry(
            name=pax.get(b"path", name).rstrip(b"/"),
            kind=kind,
            mode=_number(header[100:108]) & 0o7777,
            uid=_decimal(pax.get(b"uid"), _number(header[108:116])),
            gid=_decimal(pax.get(b"gid"), _number(header[116:124])),
            size=whole if kind == "file" else 0,
            mtime=_decimal(pax.get(b"mtime", b"").partition(b".")[0] or None, _number(header[136:148])),
            link=pax.get(b"linkpath", _text(header[157:257])) if kind in {"symlink", "hardlink"} else b"",
            device=devices,
            xattrs=tuple(
                sorted(
                    (key.removeprefix(_XATTR), value) for key, value in pax.items() if key.startswith(_XATTR)
                )
            ),
        )


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or base 256 if the first bit is set (GNU tar)."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F, *field[1:])), "big")
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise _broken("a number is none")
    return int(digits, 8)


def _decimal(field: bytes | None, otherwise: int) -> int:
    if field is None:
        return otherwise
    if not field.removeprefix(b"-").isdigit() or len(field) > 20:
        raise _broken("a number is none")
    return int(field)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of an extended header: ``LENGTH KEY=VALUE`` and a line feed, of LENGTH bytes in all."""
    while data:
        digits, blank, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[len(digits) + 1 : length - 1]
        key, equals, value = record.partition(b"=")
        if not blank or not equals or data[length - 1 : length] != b"\n":
            raise _broken("an extended header is malformed")
        yield key, value
        data = data[length:]


def _broken(why: str) -> EngineError:
    return EngineError(f"an engine's tar archive cannot be read: {why}", code="archive")
