"""One layer: its files' contents into an image while it comes, and all that makes it again from there.

Of a layer two files are kept beside the image: an index, which has what is laid over other layers, and a
tape, from which its tar can be made again (`atoll.image.oci.tape`).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import msgspec

from atoll.errors import ImageError
from atoll.image.decompressing import CHUNK, decompressed
from atoll.image.oci.merging import Item, shown
from atoll.image.oci.record import Layer
from atoll.image.oci.source import LayerSource, Stream
from atoll.image.oci.space import Area, Space
from atoll.image.oci.stopping import Stopping
from atoll.image.oci.tape import LONGEST, Pieces, Tape, tape_of
from atoll.image.refusing import refuse
from atoll.image.tarstream import Entry, TarStream

__all__ = ["Budget", "Cancelled", "place_of", "read_index", "receive", "write_index"]

_RAW = 1 << 16  # bytes of headers that are gathered


class Cancelled(Exception):  # noqa: N818 - no error: another layer failed
    """The image is given up."""


class Budget:
    """What is left of the limits; all layers of an image share it.

    Args:
        entries: that they may have together.
        headers: bytes of these that they may have.
    """

    def __init__(self, *, entries: int = 2_000_000, headers: int = 4 << 30) -> None:
        self._entries, self._headers = entries, headers
        self._spent_entries = self._spent_headers = 0

    def spend(self, name: bytes, headers: int) -> None:
        """Count an entry. Raises ``ImageError``: ``image.archive``: it is one too many."""
        self._spent_entries += 1  # by several threads: a handful more or less is no matter
        self._spent_headers += headers
        if self._spent_entries > self._entries:
            raise refuse(f"it has more than {self._entries} entries, at {shown(name)}")
        if self._spent_headers > self._headers:
            raise refuse(f"its headers have more than {self._headers >> 20} MiB, at {shown(name)}")


class _Receiver:
    """Takes what a tar holds: contents to the image, headers to the tape.

    Attributes:
        items: the index.
        raw: bytes of the tar that are no content and not on the tape yet.
    """

    def __init__(self, area: Area, tape: Tape, budget: Budget) -> None:
        self.items: list[Item] = []
        self.raw = bytearray()
        self._area = area
        self._tape = tape
        self._budget = budget
        self._pieces: Iterator[tuple[int, int]] = iter(())
        self._at = self._left = 0
        self._spent = 0

    def begin(self, entry: Entry) -> None:
        """See ``Visitor``."""
        self._budget.spend(entry.name, len(self.raw) - self._spent)
        self._spent = len(self.raw)
        offset = 0
        if entry.size:
            try:
                offset = self._area.begin(entry.size)
            except ImageError as error:
                hint = f"{shown(entry.name)} of {entry.size} bytes was one too many; nothing was imported"
                raise refuse(error.message, hint=hint) from error
            pieces = ((0, entry.size),) if entry.pieces is None else entry.pieces
            placed = tuple((offset + start, length) for start, length in pieces)
            self._record(placed)
            self._pieces = iter(placed)
            self._at, self._left = next(self._pieces, (0, 0))
        elif len(self.raw) > _RAW:
            self._record(())
        self.items.append(
            Item(
                entry.name,
                entry.kind,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.size,
                entry.mtime,
                entry.mtime_ns,
                offset,
                entry.link,
                entry.device,
                entry.xattrs,
            )
        )

    def data(self, piece: memoryview) -> None:
        """See ``Visitor``."""
        while piece:
            assert self._left > 0, "an archive tells as much as its entry says"
            part = piece[: self._left]
            self._area.write(self._at, part)
            self._at += len(part)
            self._left -= len(part)
            if not self._left:
                self._at, self._left = next(self._pieces, (0, 0))
            piece = piece[len(part) :]

    def end(self) -> None:
        """See ``Visitor``."""

    def bound(self) -> None:
        """Keep what gathers of one header, or behind the last, from growing without end."""
        if len(self.raw) > LONGEST:
            raise refuse("it has headers of megabytes, or as much behind its end")

    def _record(self, pieces: Pieces) -> None:
        self._tape.add(self.raw, pieces)
        self.raw.clear()
        self._spent = 0


class _Counted:
    """A layer's bytes as they come, summed.

    Args:
        stream: the bytes.
        source: what they should be.
        advance: told how many came.
        stop: they are not wanted any more.
    """

    def __init__(
        self, stream: Stream, source: LayerSource, advance: Callable[[int], None], stop: Stopping
    ) -> None:
        self._stream = stream
        self._source = source
        self._advance = advance
        self._stop = stop
        self._sum = hashlib.new(source.digest.partition(":")[0] or "sha256")
        self.size = 0

    def read(self, size: int) -> bytes:
        if self._stop:
            raise Cancelled
        data = self._stream.read(size)
        self.size += len(data)
        if self._source.size is not None and self.size > self._source.size:
            raise refuse(f"the layer {self._source.digest} has more than its {self._source.size} bytes")
        if not self._source.verified:
            self._sum.update(data)
        self._advance(len(data))
        return data

    def finish(self) -> str:
        """The digest of all, once the rest has come. Raises ``ImageError``: it is not as it should be."""
        while self.read(CHUNK):
            pass
        if self._source.verified:
            return self._source.digest
        digest = f"{self._sum.name}:{self._sum.hexdigest()}"
        if self._source.size is not None and self.size != self._source.size:
            raise refuse(f"the layer {digest} has {self.size} of {self._source.size} bytes")
        if self._source.digest not in {"", digest}:
            raise refuse(f"the layer {self._source.digest} is not what its digest says: it is {digest}")
        return digest


class _Plain:
    """The digest of a tar, computed beside what is done with it.

    Args:
        expected: what it should be; empty if nobody knows.
    """

    def __init__(self, expected: str) -> None:
        self.size = 0
        self._expected = expected
        self._sum = hashlib.new(expected.partition(":")[0] or "sha256")
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def add(self, data: bytes) -> None:
        """The next bytes; the sum is one piece behind at most."""
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(self._sum.update, data)
        self.size += len(data)

    def finish(self) -> str:
        """The digest. Raises ``ImageError``: ``image.archive``: it is not as it should be."""
        if self._last is not None:
            self._last.result()
        digest = f"{self._sum.name}:{self._sum.hexdigest()}"
        if self._expected not in {"", digest}:
            raise refuse(f"a layer is {digest}, and not {self._expected} as the image's configuration says")
        return digest


def receive(
    source: LayerSource,
    space: Space,
    place: Path,
    budget: Budget,
    *,
    advance: Callable[[int], None],
    stop: Stopping,
) -> Layer:
    """Take in a layer.

    Args:
        source: the layer.
        space: of the image.
        place: for its index and tape, without their endings.
        budget: of the image.
        advance: told of bytes as they come.
        stop: says whether the layer is given up.

    Raises:
        ImageError: ``image.archive``: it is damaged, too large, or not what its digest says.
        Cancelled: it was given up.
        OSError: the disk is full, or cannot be written.
    """
    area = Area(space)
    tape = Tape(tape_of(place))
    receiver = _Receiver(area, tape, budget)
    try:
        with source.open() as stream, stop.watching(stream), _Plain(source.diff_id) as plain:
            counted = _Counted(stream, source, advance, stop)
            tar = TarStream(receiver, raw=receiver.raw)
            unpacked = decompressed(counted)
            while data := unpacked.read(CHUNK):
                plain.add(data)
                tar.feed(data)
                receiver.bound()
            digest = counted.finish()
            diff_id = plain.finish()
        tar.close(marked=not (source.digest or source.diff_id))
        tape.add(receiver.raw, ())
        tape.close()
        area.close()
    finally:
        tape.abandon()
    write_index(place, receiver.items)
    return Layer(
        diff_id=diff_id,
        size=plain.size,
        digest="" if digest == diff_id else digest,
        blob_size=counted.size,
        media_type=source.media_type,
    )


def place_of(directory: Path, number: int) -> Path:
    """The files of a layer of the image in ``directory``, without their endings."""
    return directory / "layers" / str(number)


def index_of(place: Path) -> Path:
    """The file of a layer's index."""
    return place.with_suffix(".index")


def write_index(place: Path, items: list[Item]) -> None:
    """Write the index of a layer."""
    index_of(place).write_bytes(zlib.compress(msgspec.msgpack.encode(items), 1))


def read_index(place: Path) -> list[Item]:
    """The index of a layer. Raises ``ImageError``: ``image.corrupt``."""
    try:
        return msgspec.msgpack.decode(zlib.decompress(index_of(place).read_bytes()), type=list[Item])
    except (OSError, zlib.error, msgspec.DecodeError) as error:
        raise _corrupt(index_of(place), error) from error


def _corrupt(place: Path, error: Exception) -> ImageError:
    return ImageError(f"{place} is damaged: {error}", code="corrupt", hint="pull or import the image again")
