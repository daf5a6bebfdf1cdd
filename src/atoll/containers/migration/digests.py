"""What passes between two engines, known by digests: the tree of a volume, the parts of images. Pure."""

from __future__ import annotations

import hashlib
import posixpath
import re

import msgspec

from atoll.errors import EngineError
from atoll.image.tarstream import Entry, TarStream

__all__ = ["ImageScan", "TreeDigest"]

#: Bytes of an archive's list of images.
_MOST_LIST = 16 << 20

#: Where the file is in archives of Docker 25 and newer, and before; its name is the digest of what it holds.
_BLOB = re.compile(rb"(?:\./)?(?:blobs/sha256/([0-9a-f]{64})|([0-9a-f]{64})\.json)")
_LIST = b"manifest.json"


def _broken(why: str) -> EngineError:
    return EngineError(f"an engine's tar archive cannot be read: {why}", code="archive")


class TreeDigest:
    """The digest of a directory out of the archive that an engine makes of it.

    Two trees have the same if their names, kinds, modes, owners, sizes, contents, links, device numbers and
    extended attributes are the same; dates are not part of it. Engines walk a tree in the order of names, so
    that nothing is sorted.

    Attributes:
        entries: how many there were.
        bytes: of content.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0
        self._whole = hashlib.sha256()
        self._content = hashlib.sha256()
        self._root: bytes | None = None
        self._stream = TarStream(self, _broken)

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises ``EngineError``: ``engine.archive``."""
        self._stream.feed(data)

    def finish(self) -> str:
        """The digest of all. Raises ``EngineError``: ``engine.archive``: the archive is cut off."""
        self._stream.close()
        if self._root is None:
            raise EngineError("an engine's archive of a directory is empty", code="archive")
        return f"sha256:{self._whole.hexdigest()}"

    def begin(self, entry: Entry) -> None:
        """See ``Visitor``."""
        if entry.pieces is not None:
            raise _broken("an entry is sparse")
        if self._root is None:
            if entry.kind != "directory":
                raise EngineError("an engine's archive is none of a directory", code="archive")
            self._root = entry.name
        described = (
            self._within(entry.name),
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            self._within(entry.link) if entry.kind == "hardlink" else entry.link,
            entry.device,
            entry.xattrs,
        )
        encoded = msgspec.msgpack.encode(described)
        self._whole.update(len(encoded).to_bytes(4, "big") + encoded)
        self._content = hashlib.sha256()
        self.entries += 1
        self.bytes += entry.size

    def data(self, piece: memoryview) -> None:
        """See ``Visitor``."""
        self._content.update(piece)

    def end(self) -> None:
        """See ``Visitor``."""
        self._whole.update(self._content.digest())

    def _within(self, name: bytes) -> bytes:
        """A name without that of the directory itself, which differs from engine to engine."""
        root = self._root or b""
        if name == root:
            return b""
        if not name.startswith(root + b"/"):
            raise EngineError("an engine's archive holds more than was asked for", code="archive")
        return name[len(root) + 1 :]


class _Listed(msgspec.Struct, rename="pascal"):
    config: str


class ImageScan:
    """An archive of images as it passes: each part whose name is its digest must have it."""

    def __init__(self) -> None:
        self._stream = TarStream(self, _broken)
        self._expected = ""
        self._content = hashlib.sha256()
        self._list: bytearray | None = None
        self._listing = False

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        Raises:
            EngineError: ``engine.archive``; ``engine.verify``: a part is not what its name says.
        """
        self._stream.feed(data)

    def finish(self) -> tuple[str, ...]:
        """The ids that the images in it have where an image's id is its configuration's digest.

        Raises:
            EngineError: ``engine.archive``: it is cut off, or has no list of images.
        """
        self._stream.close()
        try:
            listed = msgspec.json.decode(bytes(self._list or b""), type=list[_Listed])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EngineError(f"an archive of images has no list of them: {error}", code="archive") from error
        names = (posixpath.basename(one.config).removesuffix(".json") for one in listed)
        return tuple(f"sha256:{name}" for name in names)

    def begin(self, entry: Entry) -> None:
        """See ``Visitor``."""
        found = _BLOB.fullmatch(entry.name) if entry.kind == "file" else None
        self._expected = (found[1] or found[2]).decode() if found is not None else ""
        self._listing = entry.kind == "file" and entry.name.removeprefix(b"./") == _LIST
        if self._listing:
            if entry.size > _MOST_LIST:
                raise EngineError("an archive's list of images is too long", code="archive")
            self._list = bytearray()
        self._content = hashlib.sha256()

    def data(self, piece: memoryview) -> None:
        """See ``Visitor``."""
        if self._expected:
            self._content.update(piece)
        if self._listing and self._list is not None:
            self._list += piece

    def end(self) -> None:
        """See ``Visitor``."""
        if self._expected and self._content.hexdigest() != self._expected:
            message = f"the part sha256:{self._expected} of an image arrived changed"
            raise EngineError(message, code="verify", hint="run the same command again")
