"""What an image is taken in from: a registry, a file, a directory, another engine: all look alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec

__all__ = ["LayerSource", "Offered", "Stream"]


class Stream(Protocol):
    """Bytes as they come; no seeking. ``read`` gives at most ``size`` of them, and none at the end only."""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""


class LayerSource(msgspec.Struct, frozen=True, kw_only=True):
    """A layer that can be read, from its beginning each time.

    Attributes:
        open: its bytes as they are kept there: a tar, perhaps compressed. Threads of their own open several
            layers at once. Whatever it is that breaks off on the way is tried again in there.
        digest: of these bytes; empty where nobody knows it before they are read.
        size: of these bytes; None likewise.
        media_type: of them; what the compression is, the bytes themselves say.
        diff_id: digest of the tar; empty where nobody knows it.
        verified: the stream itself compares the bytes with digest and size, before it gives the last of them.
    """

    open: Callable[[], AbstractContextManager[Stream]]
    digest: str = ""
    size: int | None = None
    media_type: str = ""
    diff_id: str = ""
    verified: bool = False


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """An image that can be had.

    Attributes:
        layers: the lowest first.
        config: its configuration as it is kept; empty for a bare file system, which gets one of its own.
        manifest: its manifest as it is kept; empty where there is none, as in Docker's older archives.
        index_digest: of the index that it was chosen from; empty if of none.
        names: references that it has there, as ``docker.io/library/debian:12``.
        whiteouts: files whose names begin with ``.wh.`` say what of the layers below is gone.
    """

    layers: tuple[LayerSource, ...]
    config: bytes = b""
    manifest: bytes = b""
    index_digest: str = ""
    names: tuple[str, ...] = ()
    whiteouts: bool = True
