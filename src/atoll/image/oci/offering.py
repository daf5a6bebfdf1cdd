"""A kept image as a source again: for a registry, an archive, or another store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from atoll.errors import ImageError
from atoll.image.manifest import Image
from atoll.image.oci import documents
from atoll.image.oci.layer import place_of
from atoll.image.oci.record import Origin
from atoll.image.oci.source import LayerSource, Offered
from atoll.image.oci.tape import tar_of

__all__ = ["CONFIG", "DOCUMENT", "offer", "origin_of"]

#: Names of an image's configuration and manifest, in its directory.
CONFIG, DOCUMENT = "config.json", "oci.json"


def offer(image: Image) -> Offered:
    """An image that is here as a source: of layers as plain tars, which are made again.

    Raises:
        ImageError: ``image.layers``: it does not consist of layers. ``image.corrupt``: it is damaged.
    """
    origin = origin_of(image)
    try:
        config = (image.directory / CONFIG).read_bytes()
        manifest = (image.directory / DOCUMENT).read_bytes()
    except OSError as error:
        raise ImageError(f"{image.directory} is damaged: {error}", code="corrupt") from error
    layers = tuple(
        LayerSource(
            open=_Opener(image, number),
            digest=each.diff_id,
            size=each.size,
            media_type=documents.LAYER,
            diff_id=each.diff_id,
        )
        for number, each in enumerate(origin.layers)
    )
    return Offered(layers=layers, config=config, manifest=manifest, index_digest=origin.index)


class _Opener:
    """Opens a layer of an image as a stream."""

    def __init__(self, image: Image, number: int) -> None:
        self._image = image
        self._number = number

    @contextmanager
    def __call__(self) -> Iterator[_Tar]:
        with self._image.root.open("rb", buffering=0) as root:
            yield _Tar(tar_of(place_of(self._image.directory, self._number), root.fileno()))


class _Tar:
    """Pieces as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """The next bytes."""
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]


def origin_of(image: Image) -> Origin:
    """Where an image is from. Raises ``ImageError``: ``image.layers``: it does not consist of layers."""
    if image.manifest.origin is None:
        message = f"the image {image.manifest.name} does not consist of layers"
        raise ImageError(message, code="layers", hint="images that Atoll builds by itself are none of OCI's")
    return image.manifest.origin
