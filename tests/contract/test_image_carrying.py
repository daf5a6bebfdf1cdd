"""Images from a registry into the store of this host and back, also by command."""

from __future__ import annotations

import gzip
import json

import pytest
from dockers import registry
from images_in_registries import LAYERS, PLATFORM, image, nobody, read
from meddling import Meddler, corrupted, serving
from programs import packaged

from atoll.cli.main import main
from atoll.config import load
from atoll.errors import ImageError, RegistryError
from atoll.image import catalog
from atoll.image.oci import documents, offering
from atoll.image.oci.reference import parse
from atoll.image.registry.carrying import named, pull, push_kept
from atoll.image.registry.pulling import inspect, offer
from atoll.image.registry.pushing import push


@pytest.fixture(scope="module")
def registered(paths, tmp_path_factory):
    """A registry with an image ``team/app:1``: its port."""
    place = tmp_path_factory.mktemp("carrying")
    with registry(packaged(paths, "docker-registry"), place / "r") as port:
        push(image(*LAYERS), parse(f"127.0.0.1:{port}/team/app:1"), registries={}, keyring=nobody(place))
        yield port


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The settings of a user who has nothing yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ATOLL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(tmp_path / "cache"))
    return load().config


def test_a_pulled_image_is_here_under_its_name_and_pushed_as_it_was(registered, own):
    name = f"127.0.0.1:{registered}/team/app:1"
    pulled = pull(own, name, PLATFORM)
    assert catalog.find(own.paths, name, architecture="x86_64").directory == pulled.directory
    offered = offering.offer(pulled)
    assert [read(layer) for layer in offered.layers] == [gzip.decompress(LAYERS[0]), LAYERS[1]]
    done = push_kept(own, name, f"127.0.0.1:{registered}/other/app:2", platform=PLATFORM)
    assert (done.digest, done.sent) == (documents.digest_of(offered.manifest), 0)
    assert pull(own, f"127.0.0.1:{registered}/other/app:2", PLATFORM).directory == pulled.directory


def test_into_a_registry_that_has_nothing_of_it_all_is_sent(paths, registered, own, tmp_path):
    name = f"127.0.0.1:{registered}/team/app:1"
    pulled = pull(own, name, PLATFORM)
    with registry(packaged(paths, "docker-registry"), tmp_path / "empty") as port:
        done = push_kept(own, name, f"127.0.0.1:{port}/app:1", platform=PLATFORM, tags=("2",))
        assert done.there == 0
        reference = parse(f"127.0.0.1:{port}/app:2")
        with offer(reference, PLATFORM, registries={}, keyring=nobody(tmp_path)) as offered:
            assert [gzip.decompress(read(layer)) for layer in offered.layers] == [
                gzip.decompress(LAYERS[0]),
                LAYERS[1],
            ]
            assert offered.config == offering.offer(pulled).config


def test_nothing_is_here_of_an_image_that_arrived_damaged(registered, own):
    meddler = Meddler(registered)
    with serving(meddler) as port:
        name = f"127.0.0.1:{port}/team/app:1"
        meddler.planned = [lambda handler, passed: handler.answer(*passed()), corrupted, corrupted]
        with pytest.raises((RegistryError, ImageError)):
            pull(own, name, PLATFORM)
    assert catalog.installed(own.paths) == []
    assert not own.paths.references.exists()


def test_a_name_that_atoll_builds_is_not_pulled(own):
    with pytest.raises(ImageError, match="Atoll builds") as caught:
        named("debian", own)
    assert "docker.io/library/debian" in caught.value.hint
    assert str(named("docker.io/library/debian", own)) == "docker.io/library/debian:latest"


def test_by_command_it_is_the_same(registered, own, capsys):
    name = f"127.0.0.1:{registered}/team/app:1"
    found = inspect(parse(name), PLATFORM, registries={}, keyring=nobody(own.data_dir))
    assert main(["image", "inspect", "--remote", "--platform", "linux/amd64", name]) == 0
    assert found.digest in capsys.readouterr().out
    assert main(["image", "pull", "-q", "--platform", "linux/amd64", name]) == 0
    assert capsys.readouterr().out == f"{found.digest}\n"
    again = f"127.0.0.1:{registered}/by/command:a"
    words = ["image", "push", "--json", "--platform", "amd64", "--tag", "b", name, again]
    assert main(words) == 0
    result = capsys.readouterr().out
    assert json.loads(result[result.index("{\n") :])["tags"] == ["a", "b"]
    assert main(["image", "tags", again]) == 0
    assert capsys.readouterr().out.split() == ["a", "b"]


def test_a_refusal_is_one_line_with_its_code_and_a_hint(registered, own, capsys):
    assert main(["image", "pull", f"127.0.0.1:{registered}/team/app:11"]) == 1
    said = capsys.readouterr().err
    assert "error[registry.missing]" in said
    assert main(["image", "pull", "Not/A/Name"]) == 1
    assert "error[image.name]" in capsys.readouterr().err
