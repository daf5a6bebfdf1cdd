"""Images of others' tools taken, and ours given to them: skopeo, umoci and buildah from Debian packages."""

import functools
import hashlib
import json
import os

import erofsreader
import imagetools
import layercases
import pytest

from atoll.events import ignore
from atoll.image.decompressing import decompressed
from atoll.image.local.exporting import export
from atoll.image.local.offering import offer
from atoll.image.oci.documents import Platform, config_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacks files of several owners")

OWN = Platform(imagetools.ARCHITECTURE, "linux")
LAYERS = layercases.HONEST["opaque-deep"]


@pytest.fixture
def tools(paths, tmp_path):
    return imagetools.Tools(paths, tmp_path / "tools")


@pytest.fixture
def layout(tmp_path):
    return layercases.write_image(tmp_path / "layout", LAYERS)


def plain_layers(offered):
    """The layers without compression, each of which is what its digests say."""
    found = []
    for one in offered.layers:
        with one.open() as stream:
            read = functools.partial(decompressed(stream).read, 10_000)
            found.append(b"".join(iter(read, b"")))
        assert one.diff_id == imagetools.digest_of(found[-1])
        with one.open() as stream:
            data = b"".join(iter(lambda: stream.read(10_000), b""))
        assert one.digest in {"", imagetools.digest_of(data)}
    return found


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci"])
def test_what_skopeo_writes_is_the_image_that_it_read(tools, layout, tmp_path, form):
    out = tmp_path / "copied"
    tools.skopeo("copy", f"oci:{layout}:latest", f"{form}:{out}:example.org/own:1")
    with offer(out, platform=OWN, emit=ignore) as offered:
        assert plain_layers(offered) == list(LAYERS)
        assert offered.names == ("example.org/own:1",)


def test_of_several_images_of_skopeos_one_is_taken_by_its_name(tools, layout, tmp_path):
    other = layercases.write_image(tmp_path / "other", layercases.HONEST["plain"])
    tools.skopeo("copy", f"oci:{layout}:latest", f"oci:{tmp_path}/both:one")
    tools.skopeo("copy", f"oci:{other}:latest", f"oci:{tmp_path}/both:two")
    with offer(tmp_path / "both", platform=OWN, name="two", emit=ignore) as offered:
        assert plain_layers(offered) == layercases.HONEST["plain"]


def test_what_buildah_builds_is_taken(tools, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"x" * 10_000)
    settings = ("--entrypoint", '["/srv/file"]', "--env", "A=b", "--workingdir", "/srv", "--user", "5:6")
    layout = tools.built(tmp_path / "built", source, *settings)
    with offer(layout, platform=OWN, emit=ignore) as offered:
        (data,) = plain_layers(offered)
        run = config_of(offered.config).config
    assert imagetools.members(data)["srv/file"] == b"x" * 10_000
    assert (run.entrypoint, run.working_dir, run.user) == (("/srv/file",), "/srv", "5:6")
    assert "A=b" in run.env


def test_what_umoci_repacks_is_taken(tools, layout, tmp_path):
    bundle = tmp_path / "bundle"
    root = tools.umoci_bundle(layout, bundle)
    (root / "var" / "data").unlink()
    (root / "added").write_text("x")
    tools.umoci("repack", "--image", f"{layout}:changed", bundle)
    with offer(layout, platform=OWN, name="changed", emit=ignore) as offered:
        *before, own = plain_layers(offered)
    assert before == list(LAYERS)
    assert set(imagetools.members(own)) == {"added", "var/.wh.data"}


@pytest.mark.parametrize(
    ("form", "as_skopeo_says"), [("oci", "oci-archive"), ("docker", "docker-archive"), ("oci-dir", "oci")]
)
def test_others_read_what_is_exported(tools, layout, tmp_path, form, as_skopeo_says):
    out = tmp_path / "exported"
    with offer(layout, platform=OWN, emit=ignore) as offered:
        digest = export(offered, out, form=form, names=("example.org/own:1",), emit=ignore)
    told = json.loads(tools.skopeo("inspect", f"{as_skopeo_says}:{out}"))
    assert len(told["Layers"]) == len(LAYERS)
    tools.skopeo("copy", f"{as_skopeo_says}:{out}", f"oci:{tmp_path}/again:latest")
    if form != "docker":
        assert told["Digest"] == digest
    expected = tools.umoci_unpack(layout, tmp_path / "expected")
    found = tools.umoci_unpack(tmp_path / "again", tmp_path / "found")
    assert erofsreader.differences(erofsreader.tree_of(expected), erofsreader.tree_of(found)) == []


def test_a_directory_of_the_host_is_the_root_that_umoci_unpacks(tools, tmp_path):
    layers = [layer for name in layercases.TOGETHER for layer in layercases.HONEST[name]]
    source = layercases.write_image(tmp_path / "source", layers)
    tree = tools.umoci_unpack(source, tmp_path / "unpacked")
    out = tmp_path / "exported"
    with offer(tree, platform=OWN, emit=ignore) as offered:
        export(offered, out, form="oci-dir", names=("latest",), emit=ignore)
    found = tools.umoci_unpack(out, tmp_path / "found")
    assert erofsreader.differences(erofsreader.tree_of(tree), erofsreader.tree_of(found)) == []


def test_the_same_export_is_the_same_file(layout, tmp_path):
    sums = set()
    for name in ("one", "two"):
        with offer(layout, platform=OWN, emit=ignore) as offered:
            export(offered, tmp_path / name, form="docker", names=("own",), emit=ignore)
        sums.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(sums) == 1
