"""A layer on its way to a registry: compressed, and summed before and behind that. Pure.

The same tar gives the same bytes with the same zlib: the gzip header has neither name nor time (RFC 1952).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator

from atoll.errors import ImageError
from atoll.image.oci import documents
from atoll.image.oci.documents import Descriptor

__all__ = ["Packed", "found_form", "is_compressed"]

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"

#: zlib: a gzip header, and its largest window.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_LEVEL = 6


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
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        plain = hashlib.new(self._diff_id.partition(":")[0])
        for piece in self._pieces:
            plain.update(piece)
            yield from self._summed(compressor.compress(piece))
        if self._diff_id != f"{plain.name}:{plain.hexdigest()}":
            message = f"a layer of the image is not the one that its configuration names: {self._diff_id}"
            raise ImageError(
                message, code="archive", hint="nothing was pushed; `atoll image inspect` tells more"
            )
        yield from self._summed(compressor.flush())

    def descriptor(self) -> Descriptor:
        """What was sent, when all was."""
        return Descriptor(documents.LAYER_GZIP, f"sha256:{self._hasher.hexdigest()}", self._size)

    def _summed(self, packed: bytes) -> Iterator[bytes]:
        if packed:
            self._hasher.update(packed)
            self._size += len(packed)
            yield packed
