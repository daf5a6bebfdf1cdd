"""Images made by hand that say how they want to be run."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from atoll import store
from atoll.image import catalog
from atoll.image.oci.runconfig import RunConfig
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


def add(paths: Paths, name: str, archive: Path, run: RunConfig) -> catalog.Image:
    """Have an image of a root that is run like that."""
    image = catalog.import_rootfs(paths, archive, name)
    store.write_record(image.directory / "manifest.json", replace(image.manifest, run=run))
    return catalog.load(image.directory)
