"""What is kept of an image that consists of layers. Light: it is imported on the way to a VM."""

from __future__ import annotations

import msgspec

__all__ = ["Layer", "Origin"]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a layer.

    Attributes:
        diff_id: digest of its tar.
        size: of the tar, bytes.
        digest: of the bytes in which it came; empty if they were not compressed.
        blob_size: of those.
        media_type: of those.
    """

    diff_id: str
    size: int
    digest: str = ""
    blob_size: int = 0
    media_type: str = ""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where an image is from.

    Attributes:
        manifest: digest of its manifest, by which it is kept.
        config: digest of its configuration, which others call its id.
        index: digest of the index that it was chosen from; empty if of none.
        layers: the lowest first.
        metadata: byte of the root at which the file system's metadata begin; before it are the contents.
    """

    manifest: str
    config: str
    index: str = ""
    layers: tuple[Layer, ...] = ()
    metadata: int = 0
