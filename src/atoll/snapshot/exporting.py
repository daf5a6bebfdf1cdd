"""Writing a snapshot as one file. All that is written is compared with the manifest on its way."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from atoll import store
from atoll.errors import StoreError
from atoll.snapshot import archive, blocks, digests
from atoll.snapshot.archive import Header
from atoll.snapshot.catalog import Snapshot, broken
from atoll.snapshot.chunks import read_into
from atoll.snapshot.index import decode as decode_index
from atoll.snapshot.manifest import MOST, Manifest, decode
from atoll.snapshot.pack import MAGIC, DamageError, Pack, encode_table
from atoll.snapshot.reading import FrameReader, OpenPack

__all__ = ["Held", "Target", "hold", "write"]


class Target(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Write some of ``data``, as ``io.RawIOBase`` does; how much."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot whose files are open: it can be written out, also if it is removed meanwhile.

    Its machine, which may then be the last that has them, does not change them (``store.read_undisturbed``).

    Attributes:
        snapshot: as it was read.
        manifest: likewise.
        written: the manifest's bytes.
        index: those of the index of its packs; empty without RAM.
        packs: its packs, open.
        files: descriptors of all other files, by their names.
        room: bytes that all of it takes at most, holes not counted.
    """

    snapshot: Snapshot
    manifest: Manifest
    written: bytes
    index: bytes
    packs: tuple[OpenPack, ...]
    files: dict[str, int]
    room: int


def hold(snapshot: Snapshot, stack: ExitStack) -> Held:
    """Open all of a snapshot; closed with ``stack``.

    Raises:
        StoreError: ``store.corrupt``: a file is missing, or has another size; ``store.missing``: the snapshot
            was removed.
    """
    with _reading(snapshot):
        place = _descriptor(snapshot.place.directory, stack, os.O_DIRECTORY)

        def open_file(name: str) -> int:
            return _descriptor(Path(f"/proc/self/fd/{place}") / name, stack)

        written = _content(open_file(archive.MANIFEST), MOST)
        manifest = decode(written, snapshot.id)
        files = {}
        for name in manifest.files:
            files[name] = store.read_undisturbed(Path(f"/proc/self/fd/{place}") / name)
            stack.callback(os.close, files[name])
        for name, entry in manifest.files.items():
            size = os.fstat(files[name]).st_size
            if size != entry.size or (archive.is_record(name) and size > archive.LARGEST_RECORD):
                raise broken(snapshot, f"{name} was changed")
        index, packs = b"", []
        if manifest.packs:
            source = open_file(archive.INDEX)
            index = _content(source, sys.maxsize)
            if hashlib.sha256(index).hexdigest() != manifest.packs:
                raise broken(snapshot, f"{archive.INDEX} was changed")
            for pack in decode_index(index)[0]:
                number = open_file(pack.file)
                packs.append(stack.enter_context(OpenPack(Path(f"/proc/self/fd/{number}"), pack)))
        room = len(written) + len(index) + sum(one.pack.size for one in packs)
        room += sum(blocks.room(fd) for fd in files.values())
    return Held(
        snapshot=snapshot,
        manifest=manifest,
        written=written,
        index=index,
        packs=tuple(packs),
        files=files,
        room=room,
    )


@contextmanager
def _reading(snapshot: Snapshot) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if snapshot.place.manifest.exists():
            raise broken(snapshot, f"{Path(error.filename).name} is missing") from error
        message = f"snapshot {snapshot.id} was removed"
        raise StoreError(
            message, code="missing", hint="`atoll snapshot ls` lists those that are here"
        ) from error
    except DamageError as error:
        raise broken(snapshot, f"{error.fault.file}, byte {error.fault.offset}: {error}") from error
    except ValueError as error:  # of the index
        raise broken(snapshot, str(error)) from error
    except OSError as error:
        raise StoreError(f"cannot read snapshot {snapshot.id}: {error.strerror}", code="io") from error


def _descriptor(path: Path, stack: ExitStack, flags: int = 0) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    stack.callback(os.close, fd)
    return fd


def _content(fd: int, most: int) -> bytes:
    content = bytearray(min(os.fstat(fd).st_size, most))
    return bytes(content[: read_into(fd, memoryview(content), 0)])


def write(held: Held, target: Target, *, modules: str = "", advance: Callable[[int], None]) -> int:
    """Write a snapshot; how many bytes that were.

    Args:
        held: the snapshot.
        target: where it goes.
        modules: as ``Header.modules``.
        advance: told how many bytes were written.

    Raises:
        StoreError: ``store.corrupt``: a file was changed; what was written is of no use then.
        OSError: ``target`` cannot be written.
    """
    out = _Out(target, advance)
    header = Header(id=held.snapshot.id, room=held.room, modules=modules)
    out.member(archive.HEADER, msgspec.json.encode(header) + b"\n")
    out.member(archive.MANIFEST, held.written)
    names = sorted(held.files)
    for name in filter(archive.is_record, names):
        out.member(name, _record(held, name))
    if held.index:
        out.member(archive.INDEX, held.index)
    for pack in held.packs:
        out.begin(pack.pack.file, pack.pack.size)
        for part in _pack(held.snapshot, pack):
            out.add(part)
        out.end(pack.pack.size)
    for name in names:
        if not archive.is_record(name):
            for number, data in enumerate(_parts(held, name)):
                out.member(archive.part_name(name, number), data)
    out.member(archive.SUM, out.sum())
    out.add(archive.END)
    return out.count


class _Out:
    """An archive that is being written."""

    def __init__(self, target: Target, advance: Callable[[int], None]) -> None:
        self._target = target
        self._advance = advance
        self._digest = hashlib.sha256()
        self.count = 0

    def add(self, data: bytes) -> None:
        self._digest.update(data)
        left = memoryview(data)
        while left:
            count = self._target.write(left)
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "it takes nothing now: it does not wait")
            left = left[count:]
        self.count += len(data)
        self._advance(self.count)

    def begin(self, name: str, size: int) -> None:
        self.add(archive.member(name, size))

    def end(self, size: int) -> None:
        self.add(bytes(archive.padding(size)))

    def member(self, name: str, data: bytes) -> None:
        self.begin(name, len(data))
        self.add(data)
        self.end(len(data))

    def sum(self) -> bytes:
        """Of all that was written."""
        return self._digest.hexdigest().encode() + b"\n"


def _record(held: Held, name: str) -> bytes:
    with _reading(held.snapshot):
        data = _content(held.files[name], archive.LARGEST_RECORD)
    whole = digests.begun(len(data))
    for number, at in enumerate(range(0, len(data), digests.CHUNK)):
        whole.update(digests.hashed(number, memoryview(data)[at : at + digests.CHUNK]))
    if whole.hexdigest() != held.manifest.files[name].digest:
        raise broken(held.snapshot, f"{name} was changed")
    return data


def _pack(snapshot: Snapshot, source: OpenPack) -> Iterator[bytes]:
    """A pack's bytes, each frame verified."""
    pack: Pack = source.pack
    reader = FrameReader()
    yield MAGIC
    for frame in range(pack.frames):
        with _reading(snapshot):
            data = bytes(reader.stored(source, frame))
        yield data
    yield encode_table(source.table.lengths, source.table.frames, source.table.chunks)


def _parts(held: Held, name: str) -> Iterator[bytes]:
    """A sparse file in parts; that it was changed is told behind the last one."""
    fd, entry = held.files[name], held.manifest.files[name]
    whole = digests.begun(entry.size)
    with _reading(held.snapshot):
        yield from blocks.packed(fd, whole)
    if whole.hexdigest() != entry.digest:
        raise broken(held.snapshot, f"{name} was changed")
