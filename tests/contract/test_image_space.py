"""Images of layers on a disk that becomes full."""

from __future__ import annotations

import io
import os
import shutil
import subprocess

import pytest
from imagetools import entry, layer

from atoll import store
from atoll.errors import StoreError
from atoll.image.oci import keeping
from atoll.image.oci.documents import platform_of
from atoll.image.oci.source import LayerSource, Offered
from atoll.paths import Paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a small disk")


@pytest.fixture
def small(tmp_path):
    """A store on a disk of 4 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", place], check=True)
    try:
        yield Paths(place / "data", place / "cache")
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_told_and_nothing_is_left(small, monkeypatch):
    monkeypatch.setattr(store, "require_space", lambda *_: None)  # it becomes full meanwhile
    data = layer(entry("small", b"x" * 5000), entry("large", os.urandom(8 << 20)))
    offered = Offered(layers=(LayerSource(open=lambda: io.BytesIO(data)),))
    with pytest.raises(StoreError) as caught:
        keeping.add(small, offered, name="x", platform=platform_of("x86_64"))
    assert caught.value.code == "store.full"
    assert [path for path in small.images.iterdir() if path.suffix != ".lock"] == []
    fits = layer(entry("small", b"x" * 5000))
    keeping.add(
        small,
        Offered(layers=(LayerSource(open=lambda: io.BytesIO(fits)),)),
        name="x",
        platform=platform_of("x86_64"),
    )
