"""Comparing a kept image with its digests."""

from __future__ import annotations

import hashlib
import os

from atoll.errors import ImageError
from atoll.image.manifest import Image
from atoll.image.oci.layer import place_of
from atoll.image.oci.metadata import BLOCK
from atoll.image.oci.offering import origin_of
from atoll.image.oci.tape import tar_of

__all__ = ["verify"]


def verify(image: Image) -> None:
    """Make all that an image consists of again, and compare it with its digests.

    Raises:
        ImageError: ``image.corrupt``: it differs. ``image.layers``: it does not consist of layers.
    """
    origin = origin_of(image)
    hint = "pull or import it again"
    with image.root.open("rb", buffering=0) as root:
        for number, each in enumerate(origin.layers):
            digest = hashlib.new(each.diff_id.partition(":")[0])
            for piece in tar_of(place_of(image.directory, number), root.fileno()):
                digest.update(piece)
            if digest.hexdigest() != each.diff_id.partition(":")[2]:
                message = f"layer {number + 1} of {image.manifest.name} is not what its digest says"
                raise ImageError(message, code="corrupt", hint=hint)
        whole = hashlib.sha256("".join(each.diff_id for each in origin.layers).encode())
        whole.update(os.pread(root.fileno(), BLOCK, 0))
        at = origin.metadata
        while data := os.pread(root.fileno(), 1 << 20, at):
            whole.update(data)
            at += len(data)
    if whole.hexdigest() != image.manifest.digest:
        message = f"the file system of {image.manifest.name} is not what it was when it was made"
        raise ImageError(message, code="corrupt", hint=hint)
