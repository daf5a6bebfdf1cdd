"""QEMU's migration stream, taken apart: guest RAM to images, and a stream of devices that goes with them.

A VM whose RAM lies in a shared file is migrated without it (capability ``x-ignore-shared``). One whose RAM is
private has it in the stream, page by page, and so has one that runs on meanwhile (capability
``background-snapshot``). What is left when those pages are taken out is the stream of a VM whose RAM is in
files: QEMU takes it up beside the images that the pages were written to.

Without I/O, of QEMU 7.2 and later, for guests with pages of 4 KiB. Sources: "Stream structure" in QEMU's
docs/devel/migration.rst (docs/devel/migration/main.rst); headers and footers of sections and the order in
which they come, migration/savevm.c, and of a VM that runs on, ``bg_migration_thread`` in
migration/migration.c; the section ``ram``, migration/ram.c (``ram_save_setup``,
``save_page_header``, ``ram_load_precopy``). All numbers are big-endian::

    u32 0x5145564d "QEVM", u32 3
    u8 7 configuration: u32 length, name of the machine; subsections
    u8 1 section start: u32 id, string "ram", u32 instance 0, u32 version 4
        u64 bytes | MEM_SIZE; for each block: string name, u64 size, u64 address; u64 EOS; footer
        (no address without ``x-ignore-shared``)
    u8 2 section part: u32 id; pages; u64 EOS; footer             any number of them
    u8 3 section end: u32 id; pages; u64 EOS; footer              not of a VM that runs on
    u8 4 section full: a device; footer                           any number of them, of no known length
    u8 0 end; u8 6 description: u32 length, JSON

A string is a byte with its length and as many bytes. A footer is u8 0x7e and the id. A page is u64 offset |
flags, the name of its block unless that is the one of the page before (CONTINUE), and 4096 bytes (PAGE), or
one byte 0 for a page of zeroes (ZERO).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from atoll.errors import AtollError

__all__ = ["PAGE", "Block", "Split", "StreamError", "Write", "block_names", "split"]

#: Bytes of a page of the guest.
PAGE = 4096

#: Takes what belongs at an offset of a block's image: the block's name, the offset, and whole pages in a row.
Write: TypeAlias = Callable[[str, int, Sequence[memoryview]], None]

#: Pages that are handed over at once, at most: pwritev(2) takes 1,024 pieces.
_AT_ONCE = 1024

#: migration/savevm.h.
_MAGIC, _VERSION = 0x5145564D, 3
_EOF, _START, _PART, _END, _FULL, _SUBSECTION, _DESCRIPTION, _CONFIGURATION, _FOOTER = (
    *(0, 1, 2, 3, 4, 5, 6, 7),
    0x7E,
)
_RAM_VERSION = 4

#: By which a stream says that it was written with ``x-ignore-shared``: name, version, how many, which.
_CAPABILITIES = "configuration/capabilities"
_LEFT_OUT = ("x-ignore-shared",)

#: migration/ram.c, ``RAM_SAVE_FLAG_``.
_ZERO, _MEM_SIZE, _DATA, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20

#: Bytes that come with a page, by its flag.
_CONTENT = {_ZERO: 1, _DATA: PAGE}

#: What cannot come unless it was turned on, by its flag.
_REFUSED = {
    0x40: "xbzrle",
    0x80: "rdma",
    0x100: "compress",
    0x200: "multifd",
}

_WORD = struct.Struct(">Q")
_LONG = struct.Struct(">I")
_ZERO_RECORD = struct.Struct(">QB")

#: Pages of zeroes in a row, of the same block as the page before: offset, flags and the byte that fills them.
_ZEROES = re.compile(
    rb"(?:.{6}[\x00\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0]\x22\x00)+", re.DOTALL
)

_EMPTY_PAGE = memoryview(bytes(PAGE))


class StreamError(AtollError):
    """A migration stream is cut off, broken, or has what this program does not know."""

    family = "snapshot.stream"


class Block(msgspec.Struct, frozen=True):
    """A block of the guest's memory, as its QEMU has it.

    Attributes:
        name: by which QEMU knows it: of a memory backend, its id.
        size: bytes.
        address: in the region of memory that it is a part of.
    """

    name: str
    size: int
    address: int


class Split(msgspec.Struct, frozen=True):
    """What a stream had in it.

    Attributes:
        blocks: all blocks of memory.
        devices: a stream without the pages that were taken out.
    """

    blocks: tuple[Block, ...]
    devices: bytes


class _Description(msgspec.Struct, frozen=True):
    """What is needed of the description at a stream's end."""

    page_size: int


def split(
    stream: memoryview,
    images: Mapping[str, str],
    write: Write,
    *,
    addresses: Mapping[str, int] | None = None,
    passed: Callable[[int], None] | None = None,
) -> Split:
    """Take the pages of some blocks out of a stream.

    Args:
        stream: all of it, bytes in a row: of a file that is mapped, say.
        images: names of the blocks that are taken out, and what the QEMU that goes on calls them.
        write: given the pages of those blocks, in the order of the stream. Images begin as zeroes: a page of
            zeroes is given only if the page had other content before. What it is given are views of
            ``stream``.
        addresses: of the blocks that are taken out, where the stream was written without ``x-ignore-shared``
            and does not have them; None if it was written with it.
        passed: told up to where the stream is of no more use; nobody needs to keep that.

    Raises:
        StreamError: ``snapshot.stream.short``: it is cut off; ``snapshot.stream.unknown``: it has what is
            not known here; ``snapshot.stream.invalid``: it contradicts itself, or has not all blocks of
            ``images``. What was written by then is of no use.
    """
    reader = _Reader(stream)
    head, number, ram = _begin(reader, images, write, addresses)
    ram.require_images()
    ram.passed = passed
    kind = reader.byte()
    while True:
        if kind not in {_PART, _END}:
            raise _unknown(f"a section of type {kind} before the end of RAM")
        if reader.long() != number:
            raise _invalid("a section of something else before the end of RAM")
        ram.read_pages()
        reader.footer(number)
        last, kind = kind, reader.peek()
        if last == _END or kind not in {_PART, _END}:  # of a VM that runs on, the last one is like the others
            break
        reader.skip(1)
    rest = bytes(stream[reader.at :])
    _check_rest(rest)
    devices = b"".join([head, *_sections(number, ram), rest])
    return Split(tuple(ram.blocks.values()), devices)


def block_names(stream: memoryview, *, addressed: bool) -> tuple[str, ...]:
    """Names of the blocks of memory in a stream, with their addresses or without. Raises as ``split``."""
    addresses: dict[str, int] | None = None if addressed else {}
    return tuple(_begin(_Reader(stream), {}, lambda *_: None, addresses)[2].blocks)


def _begin(
    reader: _Reader, images: Mapping[str, str], write: Write, addresses: Mapping[str, int] | None
) -> tuple[bytes, int, _Ram]:
    """Read up to the pages: how the stream of the rest begins, the number of the section, and the RAM."""
    left_out, configured = _skip_head(reader)
    if left_out != (addresses is None):
        raise _unknown("blocks with addresses" if left_out else "blocks without addresses")
    head = bytes(reader.data[: reader.at])
    if not left_out:
        head = head[:configured] + _left_out() + head[configured:]
    number = _start_of_ram(reader)
    ram = _Ram(reader, images, write)
    ram.read_blocks(addresses)
    reader.footer(number)
    return head, number, ram


def _left_out() -> bytes:
    """The subsection that says so."""
    named = b"".join(_string(name) for name in _LEFT_OUT)
    return bytes([_SUBSECTION]) + _string(_CAPABILITIES) + struct.pack(">II", 1, len(_LEFT_OUT)) + named


def _sections(number: int, ram: _Ram) -> Iterable[bytes | memoryview]:
    """The section ``ram`` again, with those pages that were not taken out."""
    footer = bytes([_FOOTER]) + _LONG.pack(number)
    blocks = ram.blocks.values()
    yield bytes([_START]) + _LONG.pack(number) + _string("ram") + _LONG.pack(0) + _LONG.pack(_RAM_VERSION)
    yield _WORD.pack(sum(block.size for block in blocks) | _MEM_SIZE)
    for block in blocks:
        name = ram.images.get(block.name, block.name)
        yield _string(name) + _WORD.pack(block.size) + _WORD.pack(block.address)
    yield _WORD.pack(_EOS) + footer
    yield bytes([_END]) + _LONG.pack(number)
    yield from ram.kept
    yield _WORD.pack(_EOS) + footer


def _string(name: str) -> bytes:
    encoded = name.encode("ascii")
    return bytes([len(encoded)]) + encoded


def _short() -> StreamError:
    return StreamError("the migration stream is cut off", code="short", hint="have QEMU write it again")


def _unknown(what: str) -> StreamError:
    return StreamError(f"the migration stream has {what}, which is not known here", code="unknown")


def _invalid(what: str) -> StreamError:
    return StreamError(f"the migration stream has {what}", code="invalid", hint="have QEMU write it again")


class _Reader:
    """Reads from a stream, never past its end.

    Attributes:
        at: what is read next.
    """

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def skip(self, count: int) -> int:
        """Go on by ``count`` bytes; where they begin."""
        at = self.at
        if count > len(self.data) - at:
            raise _short()
        self.at = at + count
        return at

    def byte(self) -> int:
        return self.data[self.skip(1)]

    def long(self) -> int:
        return int(_LONG.unpack_from(self.data, self.skip(4))[0])

    def word(self) -> int:
        return int(_WORD.unpack_from(self.data, self.skip(8))[0])

    def string(self) -> str:
        length = self.byte()
        at = self.skip(length)
        try:
            return bytes(self.data[at : at + length]).decode("ascii")
        except UnicodeDecodeError:
            raise _invalid("a name that is none") from None

    def peek(self) -> int:
        """The next byte, which is still to be read."""
        at = self.skip(1)
        self.at = at
        return self.data[at]

    def footer(self, number: int) -> None:
        if self.byte() != _FOOTER or self.long() != number:
            raise _invalid("a section that does not end where it should")


def _skip_head(reader: _Reader) -> tuple[bool, int]:
    """Go to the first section; whether shared RAM is left out, and where the subsections begin."""
    if reader.long() != _MAGIC or reader.long() != _VERSION:
        raise _unknown("another format")
    if reader.byte() != _CONFIGURATION:
        raise _unknown("no configuration")
    reader.skip(reader.long())
    configured, left_out = reader.at, False
    while reader.byte() == _SUBSECTION:
        name = reader.string()
        reader.long()  # version
        if name == _CAPABILITIES:
            found = tuple(reader.string() for _ in range(reader.long()))
            if found != _LEFT_OUT:
                raise _unknown(f"the capabilities {' '.join(found)}")
            left_out = True
        elif name == "configuration/target-page-bits":
            if reader.long() != PAGE.bit_length() - 1:
                raise _unknown("pages of another size than 4 KiB")
        else:
            raise _unknown(f"the configuration {name!r}")
    reader.at -= 1
    return left_out, configured


def _start_of_ram(reader: _Reader) -> int:
    """The number of the section that has the RAM, which must be the first."""
    kind = reader.byte()
    if kind not in {_START, _FULL}:
        raise _unknown(f"a section of type {kind} before RAM")
    number = reader.long()
    name = reader.string()
    if kind != _START or name != "ram":
        raise _unknown(f"{name!r} before RAM")
    if reader.long() != 0 or reader.long() != _RAM_VERSION:
        raise _unknown("RAM of another version")
    return number


def _check_rest(rest: bytes) -> None:
    """What comes after RAM must end as streams do: the sections of devices do not tell how long they are."""
    if not rest:
        raise _short()
    if rest[0] not in {_FULL, _EOF}:
        raise _unknown(f"a section of type {rest[0]} after RAM")
    end = rest.rfind(bytes([_EOF, _DESCRIPTION]))  # there is no such byte in JSON
    text = rest[end + 6 :]
    ends_section = end == 0 or rest[max(end - 5, 0)] == _FOOTER
    if end < 0 or not ends_section or rest[end + 2 : end + 6] != _LONG.pack(len(text)):
        raise _short()
    try:
        described = msgspec.json.decode(text, type=_Description)
    except msgspec.DecodeError:
        raise _short() from None
    if described.page_size != PAGE:
        raise _unknown("pages of another size than 4 KiB")


class _Ram:
    """Reads the section ``ram``.

    Attributes:
        blocks: all blocks, by their names.
        images: names of those that are taken out, and what they are called then.
        kept: pages of the others, as they are to be in a stream.
        passed: told up to where the stream has been read and is not kept.
    """

    def __init__(self, reader: _Reader, images: Mapping[str, str], write: Write) -> None:
        self.blocks: dict[str, Block] = {}
        self.images = images
        self.kept: list[bytes | memoryview] = []
        self._reader = reader
        self._write = write
        self._block: Block | None = None
        self._kept_of: Block | None = None
        self._written: dict[str, set[int]] = {name: set() for name in images}
        self._run: list[memoryview] = []
        self._run_of = ""
        self._run_end = 0
        self.passed: Callable[[int], None] | None = None

    def read_blocks(self, addresses: Mapping[str, int] | None) -> None:
        """Which blocks there are; the stream does not have their addresses if they are given."""
        reader = self._reader
        total = reader.word()
        if total & (PAGE - 1) != _MEM_SIZE:
            raise _unknown("no list of blocks")
        left = total - _MEM_SIZE
        while left:
            name, size = reader.string(), reader.word()
            address = reader.word() if addresses is None else addresses.get(name, 0)
            block = Block(name, size, address)
            if block.name in self.blocks or not 0 < block.size <= left or block.size % PAGE:
                raise _invalid("a list of blocks that cannot be")
            self.blocks[block.name] = block
            left -= block.size
        if reader.word() != _EOS:
            raise _invalid("a list of blocks that cannot be")

    def require_images(self) -> None:
        """All blocks are there that are to be taken out."""
        missing = self.images.keys() - self.blocks.keys()
        if missing:
            raise _invalid(f"no block {' or '.join(sorted(missing))}")

    def read_pages(self) -> None:
        """The pages of one section."""
        reader = self._reader
        while True:
            word = reader.word()
            flags = word & (PAGE - 1)
            if word == _EOS:
                break
            if flags & ~_CONTINUE not in {_ZERO, _DATA}:
                self._refuse(flags)
            block = self._block_of(flags)
            offset = word - flags
            if offset >= block.size:
                raise _invalid("a page beyond its block")
            if block.name not in self.images:
                self._keep(block, offset, flags)
            elif flags & _ZERO:
                if reader.byte() != 0:
                    raise _unknown("a page filled with something else than zeroes")
                self._clear(block, [offset, *self._zeroes_in_a_row()])
            else:
                at = reader.skip(PAGE)
                self._take(block, offset, reader.data[at : at + PAGE])
                self._take_more(block)
        self._flush()

    def _refuse(self, flags: int) -> None:
        names = [name for flag, name in _REFUSED.items() if flags & flag]
        raise _unknown(f"RAM in a form of its own ({' '.join(names) or hex(flags)})")

    def _block_of(self, flags: int) -> Block:
        if not flags & _CONTINUE:
            name = self._reader.string()
            if name not in self.blocks:
                raise _invalid(f"a page of no block ({name!r})")
            self._block = self.blocks[name]
        if self._block is None:
            raise _invalid("a page of no block")
        return self._block

    def _keep(self, block: Block, offset: int, flags: int) -> None:
        """A page that stays in the stream. What was before it there may have been taken out."""
        form = flags & ~_CONTINUE
        if block is self._kept_of:
            self.kept.append(_WORD.pack(offset | form | _CONTINUE))
        else:
            self.kept.append(_WORD.pack(offset | form) + _string(block.name))
        self._kept_of = block
        reader = self._reader
        at = reader.skip(_CONTENT[form])
        self._skip_more(block)
        pages = reader.data[at : reader.at]
        self.kept.append(pages if self.passed is None else bytes(pages))

    def _skip_more(self, block: Block) -> None:
        """The pages of the same block that come next, as they are."""
        reader = self._reader
        data, at, unpack = reader.data, reader.at, _WORD.unpack_from
        last = len(data) - PAGE - 8
        while at <= last:
            (word,) = unpack(data, at)
            flags = word & (PAGE - 1)
            if flags not in {_DATA | _CONTINUE, _ZERO | _CONTINUE}:
                break
            if word >= block.size:
                raise _invalid("a page beyond its block")
            at += 8 + _CONTENT[flags & ~_CONTINUE]
        reader.at = at

    def _zeroes_in_a_row(self) -> list[int]:
        """Offsets of the pages of zeroes that come next: most of the pages of a guest, found at once."""
        reader = self._reader
        found = _ZEROES.match(reader.data, reader.at)
        if found is None:
            return []
        reader.at = found.end()
        records = _ZERO_RECORD.iter_unpack(reader.data[found.start() : found.end()])
        return [word - (_ZERO | _CONTINUE) for word, _ in records]

    def _clear(self, block: Block, offsets: list[int]) -> None:
        if max(offsets) >= block.size:
            raise _invalid("a page beyond its block")
        written = self._written[block.name]
        if not written.isdisjoint(offsets):
            for offset in offsets:
                if offset in written:
                    self._take(block, offset, _EMPTY_PAGE)

    def _take_more(self, block: Block) -> None:
        """The pages of the same block that come next."""
        reader = self._reader
        data, at, unpack = reader.data, reader.at, _WORD.unpack_from
        last = len(data) - PAGE - 8
        while at <= last:
            (word,) = unpack(data, at)
            if word & (PAGE - 1) != _DATA | _CONTINUE:
                break
            offset = word - (_DATA | _CONTINUE)
            if offset >= block.size:
                raise _invalid("a page beyond its block")
            at += 8 + PAGE
            reader.at = at
            self._take(block, offset, data[at - PAGE : at])

    def _take(self, block: Block, offset: int, page: memoryview) -> None:
        if offset != self._run_end or block.name != self._run_of or len(self._run) == _AT_ONCE:
            self._flush()
            self._run_of = block.name
        self._run.append(page)
        self._run_end = offset + PAGE
        self._written[block.name].add(offset)

    def _flush(self) -> None:
        if self._run:
            self._write(self._run_of, self._run_end - PAGE * len(self._run), self._run)
            self._run = []
            if self.passed is not None:
                self.passed(self._reader.at - PAGE)  # the last page may be of the next run
