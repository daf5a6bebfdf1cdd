"""Images made by hand that say how they want to be run."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from atoll.image.architectures import PACKAGED
from atoll.image.kernel import host_architecture
from atoll.image.manifest import Image
from atoll.image.oci import keeping, names
from atoll.image.oci.documents import ImageConfig, RootFs, digest_of, encode, platform_of
from atoll.image.oci.reference import parse
from atoll.image.oci.runconfig import RunConfig
from atoll.image.oci.source import LayerSource, Offered
from atoll.paths import Paths

__all__ = ["add", "tar_of"]


def tar_of(files: Mapping[str, bytes | str | Path | None]) -> bytes:
    """A tar: of a path its content, or the program that is there; text is a link, None a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            data = content.read_bytes() if isinstance(content, Path) else content
            if data is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(data, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, data
            else:
                entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data) if isinstance(data, bytes) else None)
    return buffer.getvalue()


def add(paths: Paths, name: str, archive: bytes, run: RunConfig) -> Image:
    """Have an image of one layer that is run like that, under a name."""
    architecture = host_architecture()
    config = ImageConfig(
        architecture=PACKAGED[architecture],
        os="linux",
        config=run,
        rootfs=RootFs("layers", (digest_of(archive),)),
    )
    layer = LayerSource(open=lambda: contextlib.closing(io.BytesIO(archive)))
    image = keeping.add(
        paths, Offered(layers=(layer,), config=encode(config)), name=name, platform=platform_of(architecture)
    )
    assert image.manifest.origin is not None
    names.point(paths, parse(name).tagged(), architecture, image.manifest.origin.manifest)
    return image
