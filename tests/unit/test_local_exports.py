"""Images that are given away, and what they are when they are taken again."""

import gzip
import hashlib
import io
import json
import os
import subprocess

import imagetools
import pytest
from imagetools import archive_of, entry, layer

from atoll.errors import AtollError, ImageError, StoreError
from atoll.events import ignore
from atoll.image.local.exporting import export
from atoll.image.local.offering import offer
from atoll.image.oci import squeezing
from atoll.image.oci.documents import Platform, digest_of

OWN = Platform(imagetools.ARCHITECTURE, "linux")
LAYERS = (
    layer(entry("etc/", kind="directory"), entry("etc/passwd", b"root\n" * 300_000)),
    layer(entry("etc/hosts", os.urandom(70_000))),
    layer(entry("etc/hosts", b"x" * 5000)),
)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(place))
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert list(place.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def given(tmp_path):
    """An image's file, of plain or compressed layers."""

    def given(files=None, **options):
        file = tmp_path / "given"
        file.write_bytes(archive_of(files or imagetools.layout_files(LAYERS, **options)))
        return file

    return given


def exported(file, out, **options):
    with offer(file, platform=OWN, emit=ignore) as offered:
        return export(offered, out, emit=ignore, **options), offered


def layers_of(place):
    with offer(place, platform=OWN, emit=ignore) as offered:
        found = []
        for one in offered.layers:
            with one.open() as stream:
                data = b"".join(iter(lambda: stream.read(9999), b""))
            assert one.digest == digest_of(data)
            found.append(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        return found, offered


@pytest.mark.parametrize("squeeze", [None, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["oci", "docker", "oci-dir"])
@pytest.mark.parametrize("how", ["none", "gzip", None])
def test_an_exported_image_is_the_same_when_it_is_taken_again(given, tmp_path, squeeze, form, how):
    out = tmp_path / "out"
    digest, before = exported(given(squeeze=squeeze), out, form=form, layers=how, names=("own:1",))
    layers, after = layers_of(out)
    assert layers == list(LAYERS)
    assert after.config == before.config
    assert after.names == ("docker.io/library/own:1",)
    assert digest_of(after.manifest) == digest
    kept = (squeeze is None) == ((how or ("none" if form == "docker" else "gzip")) == "none")
    assert (after.manifest == before.manifest) == kept


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_the_same_image_is_the_same_bytes(given, form):
    one, other = io.BytesIO(), io.BytesIO()
    file = given(squeeze=None)
    exported(file, one, form=form)
    exported(file, other, form=form)
    assert one.getvalue() == other.getvalue()


def test_a_pipe_takes_it_too(given):
    file = given()
    with subprocess.Popen(["sha256sum"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        exported(file, child.stdin, form="oci")
        said, _ = child.communicate()
    memory = io.BytesIO()
    exported(file, memory, form="oci")
    assert said.split()[0].decode() == hashlib.sha256(memory.getvalue()).hexdigest()


def test_dockers_list_names_the_plain_layers(given):
    out = io.BytesIO()
    exported(given(), out, form="docker", names=("example.org/a:1", "b"))
    files = imagetools.members(out.getvalue())
    (told,) = json.loads(files["manifest.json"])
    assert told["RepoTags"] == ["example.org/a:1", "b:latest"]
    assert [files[path] for path in told["Layers"]] == list(LAYERS)
    assert digest_of(files[told["Config"]]).endswith(told["Config"][-64:])
    notes = [
        one["annotations"]["io.containerd.image.name"] for one in json.loads(files["index.json"])["manifests"]
    ]
    assert notes == ["example.org/a:1", "docker.io/library/b:latest"]


def test_a_bare_root_gets_a_configuration(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("x")
    exported(tmp_path / "root", tmp_path / "out", form="oci")
    (data,), offered = layers_of(tmp_path / "out")
    told = json.loads(offered.config)
    assert told["rootfs"]["diff_ids"] == [digest_of(data)]
    assert told["architecture"] == imagetools.ARCHITECTURE


def test_a_layer_that_is_there_twice_is_written_once(given, tmp_path):
    files = imagetools.layout_files((LAYERS[2], LAYERS[1], LAYERS[2]), squeeze=None)
    out = tmp_path / "out"
    exported(given(files), out, form="oci", layers="none")
    assert layers_of(out)[0] == [LAYERS[2], LAYERS[1], LAYERS[2]]
    assert out.stat().st_size < given(files).stat().st_size + len(LAYERS[2])


@pytest.mark.parametrize("how", ["none", "gzip"])
@pytest.mark.parametrize("form", ["oci", "oci-dir"])
def test_a_layer_that_is_not_what_it_should_be_is_not_exported(given, tmp_path, how, form):
    files = imagetools.layout_files(LAYERS, squeeze=None)
    path = f"blobs/{digest_of(LAYERS[1]).replace(':', '/')}"
    files[path] = files[path][:5000] + b"?" + files[path][5001:]
    out = tmp_path / "out"
    with pytest.raises(ImageError) as caught:
        exported(given(files), out, form=form, layers=how)
    assert caught.value.code == "image.archive"
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


@pytest.mark.parametrize("form", ["oci", "oci-dir"])
def test_what_is_there_is_not_replaced(given, tmp_path, form):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StoreError) as caught:
        exported(given(), tmp_path / "out", form=form)
    assert caught.value.code == "store.already_exists"
    assert (tmp_path / "out").read_text() == "mine"


def test_a_stream_that_takes_no_more_ends_it(given):
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises((OSError, AtollError)):
        exported(given(), full, form="oci")


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_compressed_bytes_do_not_depend_on_the_processors(monkeypatch, size):
    data = (os.urandom(1000) * (size // 1000 + 1))[:size]
    made = []
    for processors in (1, 7):
        monkeypatch.setattr(os, "cpu_count", lambda count=processors: count)
        made.append(b"".join(squeezing.squeezed(io.BytesIO(data), "gzip")))
    assert gzip.decompress(made[0]) == data
    assert made[0] == made[1]
    assert size < 10_000 or len(made[0]) < size // 10


def test_zstd_is_written_too(given, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    exported(given(), tmp_path / "out", form="oci", layers="zstd")
    with offer(tmp_path / "out", platform=OWN, emit=ignore) as offered:
        with offered.layers[0].open() as stream:
            reader = zstandard.ZstdDecompressor().stream_reader(stream)
            assert reader.read(len(LAYERS[0]) + 1) == LAYERS[0]
        assert offered.layers[0].media_type.endswith("+zstd")
