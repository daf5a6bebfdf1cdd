"""Images as the store keeps them, against what umoci unpacks: bytes, owners, modes, attributes, times.

The root's EROFS is read by the tests' own reader; fsck.erofs has a say on whether it is sound.
"""

import functools
import gzip
import os
import shutil
import stat
import subprocess

import erofsreader
import imagetools
import layercases
import pytest

from atoll.errors import ImageError
from atoll.events import ignore
from atoll.image.local.offering import offer
from atoll.image.oci import keeping
from atoll.image.oci.documents import Platform
from atoll.paths import Paths

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks files of several owners")

OWN = Platform(imagetools.ARCHITECTURE, "linux")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return Paths(tmp_path / "data", tmp_path / "cache")


@pytest.fixture
def tools(paths, tmp_path):
    return imagetools.Tools(paths, tmp_path / "tools")


def kept(home, place, **options):
    """The image at a place, in the store."""
    with offer(place, platform=OWN, emit=ignore) as offered:
        return keeping.add(home, offered, name="own:1", platform=OWN, **options)


def root_of(image):
    """What is in its root, which fsck.erofs finds nothing wrong with."""
    if shutil.which("fsck.erofs"):
        done = subprocess.run(["fsck.erofs", image.root], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return erofsreader.read(image.root)


def same(expected, found, case, layers):
    """Where the roots differ; directories that no entry names are dated as anybody likes."""
    exempt = layercases.implied(layers) | layercases.DATED_ANEW.get(case, set())
    return erofsreader.differences(expected, found, times=lambda path: path not in exempt)


@pytest.mark.parametrize("case", layercases.HONEST)
def test_a_root_is_what_umoci_unpacks(home, tools, tmp_path, case):
    layers = layercases.HONEST[case]
    layout = layercases.write_image(tmp_path / "layout", layers)
    expected = erofsreader.tree_of(tools.umoci_unpack(layout, tmp_path / "unpacked"))
    assert same(expected, root_of(kept(home, layout)), case, layers) == []


def test_a_root_of_many_layers_is_what_umoci_unpacks(home, tools, tmp_path):
    layers = [layer for name in layercases.TOGETHER for layer in layercases.HONEST[name]]
    layout = layercases.write_image(tmp_path / "layout", layers)
    expected = erofsreader.tree_of(tools.umoci_unpack(layout, tmp_path / "unpacked"))
    assert same(expected, root_of(kept(home, layout)), "", layers) == []


def test_a_tree_of_this_host_is_what_umoci_makes_of_its_tar(home, tools, tmp_path):
    """A part of the interpreter's own library, packed by tar(1), with all that it has."""
    source = tmp_path / "source"
    shutil.copytree(os.path.dirname(os.__file__) + "/json", source / "json", symlinks=True)
    shutil.copytree(os.path.dirname(os.__file__) + "/email", source / "email", symlinks=True)
    words = ["tar", "-c", "--format=pax", "--xattrs", "-C", source, "."]
    data = subprocess.run(words, check=True, capture_output=True).stdout
    layout = layercases.write_image(tmp_path / "layout", [data])
    expected = erofsreader.tree_of(tools.umoci_unpack(layout, tmp_path / "unpacked"))
    assert erofsreader.differences(expected, root_of(kept(home, layout))) == []
    assert erofsreader.differences(erofsreader.tree_of(source), expected) == []


@pytest.mark.parametrize("case", layercases.ALONE)
def test_what_umoci_does_not_take_is_as_others_have_it(home, tmp_path, case):
    layers, contents = layercases.ALONE[case]
    found = root_of(kept(home, layercases.write_image(tmp_path / "layout", layers)))
    assert {path: file.content for path, file in found.items() if stat.S_ISREG(file.mode)} == contents


def test_what_buildah_and_skopeo_make_is_what_umoci_unpacks(home, tools, tmp_path):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "program").write_bytes(b"x" * 5000)
    (source / "deep" / "program").chmod(0o4755)
    os.link(source / "deep" / "program", source / "again")
    layout = tools.built(tmp_path / "built", source, "--entrypoint", '["/srv/again"]')
    expected = erofsreader.tree_of(tools.umoci_unpack(layout, tmp_path / "unpacked"))
    image = kept(home, layout)
    assert image.manifest.run.entrypoint == ("/srv/again",)
    times = {"times": lambda path: path != b""}
    assert erofsreader.differences(expected, root_of(image), **times) == []
    for form in ("docker-archive", "oci-archive"):
        tools.skopeo("copy", f"oci:{layout}:latest", f"{form}:{tmp_path}/{form}:own:1")
        found = root_of(kept(home, tmp_path / form))
        assert erofsreader.differences(expected, found, **times) == []


def left(home):
    """What the store has."""
    return (
        [path.name for path in home.images.iterdir() if not path.name.endswith(".lock")]
        if home.images.exists()
        else []
    )


@pytest.mark.parametrize("case", layercases.HOSTILE)
def test_a_layer_that_means_harm_is_refused_by_its_name(home, tmp_path, case):
    layers, named = layercases.HOSTILE[case]
    layout = layercases.write_image(tmp_path / "layout", layers)
    with pytest.raises(ImageError) as caught:
        kept(home, layout)
    assert caught.value.code == "image.archive"
    assert named in f"{caught.value.message} {caught.value.hint}"
    assert left(home) == []


@pytest.mark.parametrize("case", layercases.CONFINED)
def test_a_name_that_leads_elsewhere_stays_within_the_root(home, tools, tmp_path, case):
    layers, path = layercases.CONFINED[case]
    layout = layercases.write_image(tmp_path / "layout", layers)
    expected = erofsreader.tree_of(tools.umoci_unpack(layout, tmp_path / "unpacked"))
    found = root_of(kept(home, layout))
    assert path in found
    assert same(expected, found, case, layers) == []


def test_a_bomb_is_refused_before_it_fills_the_disk(home, tmp_path):
    layer = imagetools.entry("evil", size=1 << 30) + bytes(1 << 23)
    data = gzip.compress(layer) + gzip.compress(bytes(1 << 23)) * 127 + gzip.compress(imagetools.END)
    files = imagetools.layout_files([b""], squeeze=lambda _layer: data)
    with pytest.raises(ImageError) as caught:
        kept(home, imagetools.write_files(tmp_path / "layout", files), most=64 << 20)
    assert caught.value.code == "image.archive"
    assert left(home) == []


def limited(monkeypatch, **limits):
    """Have the store take less than it does."""
    monkeypatch.setattr(keeping, "Budget", functools.partial(keeping.Budget, **limits))


def test_more_entries_than_are_allowed_are_refused(home, tmp_path, monkeypatch):
    limited(monkeypatch, entries=5000)
    file = tmp_path / "root.tar.gz"
    file.write_bytes(gzip.compress(imagetools.entry("many") * 5001) + gzip.compress(imagetools.END))
    with pytest.raises(ImageError) as caught:
        kept(home, file)
    assert caught.value.code == "image.archive"
    assert "more than 5000 entries, at 'many'" in caught.value.message
    assert left(home) == []


def test_headers_count_once_however_many_stand_together(home, tmp_path, monkeypatch):
    limited(monkeypatch, headers=5000 * 512 + 1024)
    entries = b"".join(imagetools.raw(b"l%d" % number, kind=b"2", link=b"x") for number in range(100))
    file = tmp_path / "root.tar.gz"
    file.write_bytes(gzip.compress(entries * 50) + gzip.compress(imagetools.END))
    assert len(root_of(kept(home, file))) == 101
    file.write_bytes(gzip.compress(entries * 51) + gzip.compress(imagetools.END))
    with pytest.raises(ImageError) as caught:
        kept(home, file)
    assert "its headers have more" in caught.value.message
