"""Images into a real registry: what is sent, what is not, and that nothing half is ever seen."""

from __future__ import annotations

import gzip
import io
import json

import msgspec
import pytest
from dockers import layer_of, registry
from images_in_registries import LAYERS, PLATFORM, QUICK, image, layer_source, nobody, read
from imagetools import Tools
from meddling import Meddler, serving
from programs import packaged

from atoll.errors import ImageError, RegistryError
from atoll.image.oci import documents
from atoll.image.oci.reference import parse
from atoll.image.oci.source import LayerSource
from atoll.image.registry.pulling import inspect, offer, tags
from atoll.image.registry.pushing import push


@pytest.fixture(scope="module")
def registered(paths, tmp_path_factory):
    """A registry: its port."""
    with registry(packaged(paths, "docker-registry"), tmp_path_factory.mktemp("push") / "r") as port:
        yield port


@pytest.fixture
def meddler(registered):
    """A server before it."""
    meddling = Meddler(registered)
    with serving(meddling) as port:
        meddling.port = port
        yield meddling


def pushed(offered, port, name, place, **more):
    reference = parse(f"127.0.0.1:{port}/{name}")
    return push(offered, reference, registries={}, keyring=nobody(place), patience=QUICK, **more)


def looked_at(port, name, place):
    return inspect(parse(f"127.0.0.1:{port}/{name}"), PLATFORM, registries={}, keyring=nobody(place))


def test_tars_are_compressed_on_the_way_to_the_same_bytes_each_time(registered, tmp_path):
    first = pushed(image(LAYERS[1]), registered, "same/one:1", tmp_path)
    second = pushed(image(LAYERS[1]), registered, "same/two:1", tmp_path)
    assert first.digest == second.digest
    assert second.sent > 0
    manifest = looked_at(registered, "same/one:1", tmp_path).manifest
    assert manifest.layers[0].media_type == documents.LAYER_GZIP
    assert manifest.media_type == documents.MANIFEST


def test_all_tags_are_given(registered, tmp_path):
    done = pushed(image(LAYERS[1]), registered, "many:a", tmp_path, tags=("b", "a", "c"))
    assert done.tags == ("a", "b", "c")
    for tag in "abc":
        assert looked_at(registered, f"many:{tag}", tmp_path).digest == done.digest
    assert done.reference == f"127.0.0.1:{registered}/many:a@{done.digest}"


def test_what_is_there_is_not_sent_again(registered, tmp_path):
    first = pushed(image(*LAYERS), registered, "again:1", tmp_path)
    second = pushed(image(*LAYERS), registered, "again:1", tmp_path)
    assert (second.sent, second.there, second.digest) == (0, 3, first.digest)
    third = pushed(image(LAYERS[0], layer_of("new", b"new")), registered, "again:1", tmp_path)
    assert third.there == 1
    assert third.sent < len(LAYERS[0])


def test_the_manifest_of_what_was_pulled_stays_as_it_is(registered, tmp_path):
    pushed(image(*LAYERS), registered, "from/here:1", tmp_path)
    reference = parse(f"127.0.0.1:{registered}/from/here:1")
    with offer(reference, PLATFORM, registries={}, keyring=nobody(tmp_path)) as offered:
        there = pushed(offered, registered, "to/there:2", tmp_path)
        assert there.digest == documents.digest_of(offered.manifest)
        assert there.sent == 0  # mounted from the other repository
        elsewhere = msgspec.structs.replace(offered, names=())
        assert pushed(elsewhere, registered, "to/elsewhere:2", tmp_path).digest == there.digest
    data = looked_at(registered, "to/elsewhere:2", tmp_path).manifest_data
    assert data == offered.manifest


def test_a_kept_image_whose_layers_are_tars_again_finds_their_compressed_form(registered, tmp_path):
    pushed(image(*LAYERS), registered, "kept:1", tmp_path)
    reference = parse(f"127.0.0.1:{registered}/kept:1")
    with offer(reference, PLATFORM, registries={}, keyring=nobody(tmp_path)) as offered:
        tars = [gzip.decompress(read(layer)) for layer in offered.layers]
    kept = msgspec.structs.replace(offered, layers=tuple(map(layer_source, tars)))
    done = pushed(kept, registered, "kept-too:1", tmp_path)
    assert (done.digest, done.sent) == (documents.digest_of(offered.manifest), 0)


def test_the_same_layer_twice_is_sent_once(meddler, tmp_path):
    done = pushed(image(LAYERS[1], LAYERS[1]), meddler.port, "twice:1", tmp_path)
    assert len([path for method, path, _ in meddler.seen if method == "PATCH"]) == 1
    assert len(looked_at(meddler.port, "twice:1", tmp_path).manifest.layers) == 2
    assert done.sent > 0


def test_what_broke_off_is_sent_again(meddler, tmp_path):
    meddler.refused = {"PATCH": [503, 503], "PUT": [502], "POST": [500]}
    done = pushed(image(*LAYERS), meddler.port, "retried:1", tmp_path)
    assert not any(meddler.refused.values())
    reference = parse(f"127.0.0.1:{meddler.port}/retried:1")
    with offer(reference, PLATFORM, registries={}, keyring=nobody(tmp_path)) as offered:
        assert read(offered.layers[0]) == LAYERS[0]
        assert documents.digest_of(offered.manifest) == done.digest


def test_nothing_is_seen_of_what_could_not_be_sent_whole(meddler, tmp_path):
    meddler.refused = {"PATCH": [503] * 20}
    with pytest.raises(RegistryError) as caught:
        pushed(image(*LAYERS), meddler.port, "half:1", tmp_path)
    assert caught.value.code == "registry.unavailable"
    with pytest.raises(RegistryError) as caught:
        looked_at(meddler.port, "half:1", tmp_path)
    assert caught.value.code == "registry.missing"


def test_a_layer_that_is_not_what_the_configuration_says_is_not_pushed(registered, tmp_path):
    wrong = msgspec.structs.replace(image(LAYERS[1]), layers=(layer_source(layer_of("x", b"other")),))
    with pytest.raises(ImageError) as caught:
        pushed(wrong, registered, "wrong:1", tmp_path)
    assert caught.value.code == "image.archive"
    with pytest.raises(RegistryError) as caught:
        tags(parse(f"127.0.0.1:{registered}/wrong"), registries={}, keyring=nobody(tmp_path))
    assert caught.value.code == "registry.missing"


def test_a_source_that_fails_in_the_middle_ends_the_push(registered, tmp_path):
    class Failing(io.BytesIO):
        def read(self, size=-1, /):
            if self.tell() > 100:
                raise ImageError("the file is gone", code="archive")
            return super().read(min(size, 200))

    offered = image(LAYERS[1])
    broken = LayerSource(open=lambda: Failing(LAYERS[1]))
    with pytest.raises(ImageError, match="the file is gone"):
        pushed(msgspec.structs.replace(offered, layers=(broken,)), registered, "gone:1", tmp_path)


def test_a_digest_cannot_be_pushed_to(tmp_path):
    with pytest.raises(ImageError) as caught:
        pushed(image(LAYERS[1]), 1, f"a@sha256:{'0' * 64}", tmp_path)
    assert caught.value.code == "image.name"


def test_skopeo_reads_what_was_pushed(paths, registered, tmp_path):
    done = pushed(image(*LAYERS), registered, "read/by:1", tmp_path)
    tools = Tools(paths, tmp_path / "tools")
    source = f"docker://127.0.0.1:{registered}/read/by:1"
    said = json.loads(tools.skopeo("inspect", "--tls-verify=false", source))
    assert said["Digest"] == done.digest
    target = tmp_path / "layout"
    tools.skopeo("copy", "--src-tls-verify=false", source, f"oci:{target}:x")
    manifest = documents.manifest_of((target / "blobs/sha256" / done.digest.partition(":")[2]).read_bytes())
    layers = [
        (target / "blobs/sha256" / one.digest.partition(":")[2]).read_bytes() for one in manifest.layers
    ]
    assert layers[0] == LAYERS[0]
    assert gzip.decompress(layers[1]) == LAYERS[1]
