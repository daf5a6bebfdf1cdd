"""A layer on its way to a registry: compressed, and summed before and behind that. Pure.

The same tar gives the same bytes with the same zlib, as exports do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from atoll.errors import ImageError
from atoll.image.oci import documents
from atoll.image.oci.documents import Descriptor
from atoll.image.oci.squeezing import squeezed

__all__ = ["Packed", "found_form", "is_compressed"]

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def is_compressed(beginning: bytes) -> bool:
    """Whether bytes that begin so are gzip's or zstd's; else they are a tar."""
    return beginning.startswith((_GZIP, _ZSTD))


def found_form(pieces: Iterable[bytes]) -> Descriptor:
    """What a layer is that is compressed already."""
    hasher, size, beginning = hashlib.sha256(), 0, b""
    for piece in pieces:
        beginning = beginning or piece[: len(_ZSTD)]
        hasher.update(piece)
        size += len(piece)
    media_type = documents.LAYER_ZSTD if beginning.startswith(_ZSTD) else documents.LAYER_GZIP
    return Descriptor(media_type, f"sha256:{hasher.hexdigest()}", size)


class Packed:
    """The bytes of a tar as they are sent, to be iterated over once.

    Args:
        pieces: of the tar.
        diff_id: its digest.
    """

    def __init__(self, pieces: Iterable[bytes], diff_id: str) -> None:
        self._pieces = pieces
        self._diff_id = diff_id
        self._hasher = hashlib.sha256()
        self._size = 0

    def __iter__(self) -> Iterator[bytes]:
        """The bytes. Raises ``ImageError``: ``image.archive``: the tar is not that of the digest."""
        plain = _Plain(self._pieces, self._diff_id)
        for packed in squeezed(plain, "gzip"):
            plain.check()
            self._hasher.update(packed)
            self._size += len(packed)
            yield packed

    def descriptor(self) -> Descriptor:
        """What was sent, when all was."""
        return Descriptor(documents.LAYER_GZIP, f"sha256:{self._hasher.hexdigest()}", self._size)


class _Plain:
    """Pieces of a tar as a stream, which are summed.

    Args:
        pieces: of the tar.
        diff_id: its digest.
    """

    def __init__(self, pieces: Iterable[bytes], diff_id: str) -> None:
        self._pieces = iter(pieces)
        self._diff_id = diff_id
        self._hasher = hashlib.new(diff_id.partition(":")[0])
        self._rest = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        data = self._rest or next(filter(None, self._pieces), b"")
        self._rest = data[size:]
        self._hasher.update(data[:size])
        self._ended = not data
        return data[:size]

    def check(self) -> None:
        """Refuse what has ended and is not what its digest says, before the last of it is sent."""
        if self._ended and self._diff_id != f"{self._hasher.name}:{self._hasher.hexdigest()}":
            message = f"a layer of the image is not the one that its configuration names: {self._diff_id}"
            raise ImageError(
                message, code="archive", hint="nothing was pushed; `atoll image verify` tells more"
            )
