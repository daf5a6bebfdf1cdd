"""What is at hand already as an image that can be had: every form is seen for what it is."""

import bz2
import contextlib
import gzip
import http.server
import io
import json
import lzma
import os
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import imagetools
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from imagetools import archive_of, entry, layer

from atoll.errors import AtollError, ImageError
from atoll.events import Warned, ignore
from atoll.image.local import engines
from atoll.image.local.offering import offer
from atoll.image.oci.documents import Platform, digest_of

HERE = Path(__file__)
OWN = Platform(imagetools.ARCHITECTURE, "linux")
OTHER = Platform({"amd64": "arm64", "arm64": "amd64"}[OWN.architecture], "linux")
LOWER = layer(entry("etc/", kind="directory"), entry("etc/passwd", b"root\n"))
UPPER = layer(entry("etc/hosts", b"x" * 5000))
LAYERS = (LOWER, UPPER)
SQUEEZES = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory, monkeypatch):
    """What is kept meanwhile has no name, and no descriptor stays open."""
    place = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(place))
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert list(place.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def whole(source):
    with source.open() as stream:
        return b"".join(iter(lambda: stream.read(1000), b""))


def taken(place, *, platform=OWN, emit=ignore, **options):
    """The image at a place, and its layers without compression."""
    with offer(place, platform=platform, emit=emit, **options) as offered:
        layers = [whole(one) for one in offered.layers]
        for one, data in zip(offered.layers, layers, strict=True):
            assert one.size in {None, len(data)}
            assert one.digest in {"", digest_of(data)}
    return offered, [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in layers]


def refused(place, **options):
    with pytest.raises(AtollError) as caught:
        taken(place, **options)
    return caught.value


def at(tmp_path, data):
    file = tmp_path / "archive"
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("squeeze", SQUEEZES.values(), ids=SQUEEZES)
@pytest.mark.parametrize(
    "files",
    [
        imagetools.layout_files(LAYERS),
        imagetools.layout_files(LAYERS, squeeze=None, name=""),
        imagetools.saved_files([(LAYERS, ["own:1"])]),
        imagetools.old_files(LAYERS, "own:1"),
    ],
    ids=["layout", "plain-layout", "saved", "old-saved"],
)
def test_an_archive_of_an_image_is_that_image_however_it_is_compressed(tmp_path, files, squeeze):
    offered, layers = taken(at(tmp_path, squeeze(archive_of(files))))
    assert layers == list(LAYERS)
    assert [one.diff_id for one in offered.layers] == list(map(digest_of, LAYERS))
    assert offered.whiteouts
    assert json.loads(offered.config)["architecture"] == OWN.architecture


@pytest.mark.parametrize("squeeze", SQUEEZES.values(), ids=SQUEEZES)
def test_any_other_tar_is_a_root_whose_bytes_are_offered_as_they_are(tmp_path, squeeze):
    data = squeeze(LOWER)
    with offer(at(tmp_path, data), platform=OWN, emit=ignore) as offered:
        assert [whole(one) for one in offered.layers] == [data]
    assert (offered.config, offered.manifest, offered.whiteouts) == (b"", b"", False)


@pytest.mark.parametrize(
    "files",
    [{"manifest.json": b'{"name": "an app"}', "app": b"x"}, {"index.json": b"{}", "oci-layout": b"no"}],
)
def test_a_root_with_files_that_are_called_like_those_of_images_is_a_root(tmp_path, files):
    offered, layers = taken(at(tmp_path, archive_of(files)))
    assert layers == [archive_of(files)]
    assert not offered.whiteouts


def test_directories_of_images_are_those_images(tmp_path):
    for name, files in (
        ("layout", imagetools.layout_files(LAYERS)),
        ("saved", imagetools.saved_files([(LAYERS * 2, ["own:1"])])),
    ):
        offered, layers = taken(imagetools.write_files(tmp_path / name, files))
        assert layers == list(LAYERS) * (2 if name == "saved" else 1)
        assert offered.config


def test_a_layer_may_be_a_link_to_anothers(tmp_path):
    data = archive_of(imagetools.saved_files([((LOWER, UPPER, LOWER), ["own:1"])]))
    offered, layers = taken(at(tmp_path, data))
    assert layers == [LOWER, UPPER, LOWER]
    assert offered.names == ("docker.io/library/own:1",)


def test_a_layouts_manifest_and_names_are_kept(tmp_path):
    notes = {"io.containerd.image.name": "docker.io/library/own:1"}
    files = imagetools.layout_files(LAYERS, name="1", annotations=notes)
    offered, _ = taken(at(tmp_path, archive_of(files)))
    assert offered.names == ("docker.io/library/own:1",)
    assert files[f"blobs/{digest_of(offered.manifest).replace(':', '/')}"] == offered.manifest


@pytest.mark.parametrize("form", ["layout", "saved"])
def test_of_several_images_one_is_chosen_by_its_name_and_none_without(tmp_path, form):
    if form == "layout":
        files = imagetools.several([([LOWER], "one:1", {}), ([UPPER], "example.org/two:2", {})])
    else:
        files = imagetools.saved_files([([LOWER], ["one:1"]), ([UPPER], ["example.org/two:2"])])
    file = at(tmp_path, archive_of(files))
    assert taken(file, name="one:1")[1] == [LOWER]
    assert taken(file, name="docker.io/library/one:1")[1] == [LOWER]
    offered, layers = taken(file, name="example.org/two:2")
    assert layers == [UPPER]
    known = offered.manifest or offered.config
    assert taken(file, name=digest_of(known))[1] == [UPPER]
    assert taken(file, name=digest_of(known)[7:19])[1] == [UPPER]
    error = refused(file)
    assert error.code == "image.several"
    assert "example.org/two:2, one:1" in error.hint
    assert refused(file, name="three").code == "image.unknown"


def test_of_several_platforms_the_one_that_is_asked_for_is_taken(tmp_path):
    images = [([LOWER], "own:1", {}), ([UPPER], "own:1", {"architecture": OTHER.architecture})]
    file = at(tmp_path, archive_of(imagetools.several(images, platforms=True)))
    assert taken(file)[1] == [LOWER]
    assert taken(file, platform=OTHER)[1] == [UPPER]


def test_the_index_of_an_image_in_a_layout_is_followed(tmp_path):
    images = [([LOWER], "", {}), ([UPPER], "", {"architecture": OTHER.architecture})]
    files = imagetools.several(images, platforms=True)
    inner = files["index.json"]
    digest = digest_of(inner)
    files[f"blobs/{digest.replace(':', '/')}"] = inner
    listed = {"mediaType": imagetools.INDEX, "digest": digest, "size": len(inner)}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode()
    offered, layers = taken(at(tmp_path, archive_of(files)), platform=OTHER)
    assert layers == [UPPER]
    assert offered.index_digest == digest


@pytest.mark.parametrize("form", ["layout", "saved", "old"])
def test_an_image_of_another_platform_alone_is_refused(tmp_path, form):
    if form == "layout":
        files = imagetools.layout_files(LAYERS, architecture=OTHER.architecture)
    else:
        make = imagetools.saved_files if form == "saved" else None
        files = make([(LAYERS, ["own:1"])]) if make else imagetools.old_files(LAYERS, "own:1")
    wanted = OWN if form == "layout" else OTHER
    error = refused(at(tmp_path, archive_of(files)), platform=wanted)
    assert error.code == "image.platform"
    assert "--platform linux/" in error.hint


def damage(form):
    """Archives whose parts do not fit, by what is wrong."""
    files = (
        imagetools.layout_files(LAYERS) if form == "layout" else imagetools.saved_files([(LAYERS, ["own:1"])])
    )
    if form == "layout":
        index = json.loads(files["index.json"])
        described = index["manifests"][0]
        manifest = f"blobs/{described['digest'].replace(':', '/')}"
        told = json.loads(files[manifest])
        of_layer = f"blobs/{told['layers'][0]['digest'].replace(':', '/')}"
        yield {name: data for name, data in files.items() if name != of_layer}
        yield {**files, of_layer: files[of_layer] + b"x"}
        yield {**files, manifest: files[manifest].replace(b"schemaVersion", b"schemaversion")}
        yield {**files, "index.json": b"\xff{"}
        yield {**files, "index.json": b'{"manifests": []}'}
        yield {
            **files,
            "index.json": b'{"manifests": [{"mediaType": "", "digest": "sha256:../../x", "size": 1}]}',
        }
        yield {**files, "index.json": bytes(5 << 20)}
    else:
        (told,) = json.loads(files["manifest.json"])
        yield {name: data for name, data in files.items() if name != told["Config"]}
        yield {**files, told["Config"]: b"{}"}
        yield {**files, told["Config"]: files[told["Config"]] + b" "}
        yield {**files, "manifest.json": json.dumps([{**told, "Layers": told["Layers"][:1]}]).encode()}
        yield {**files, "manifest.json": json.dumps([{**told, "Layers": ["../x", "/etc/passwd"]}]).encode()}
        yield {**files, told["Layers"][0]: "layer.tar"}


@pytest.mark.parametrize("form", ["layout", "saved"])
@pytest.mark.parametrize("directory", [False, True])
def test_an_archive_whose_parts_do_not_fit_is_refused(tmp_path, form, directory):
    for number, files in enumerate(damage(form)):
        if directory:
            place = imagetools.write_files(tmp_path / str(number), files)
        else:
            place = at(tmp_path, archive_of(files))
        assert refused(place).code in {"image.archive", "image.platform"}, number


def test_nothing_outside_of_a_layout_is_read_through_links(tmp_path):
    files = imagetools.saved_files([(LAYERS, ["own:1"])])
    (told,) = json.loads(files["manifest.json"])
    (tmp_path / "secret").write_bytes(LOWER)
    place = imagetools.write_files(tmp_path / "saved", {**files, told["Layers"][0]: "../../secret"})
    assert refused(place).code == "image.archive"


@pytest.mark.parametrize("squeeze", SQUEEZES.values(), ids=SQUEEZES)
def test_what_ends_early_or_is_no_archive_is_refused(tmp_path, squeeze):
    data = squeeze(archive_of(imagetools.layout_files(LAYERS)))
    assert refused(at(tmp_path, data[: len(data) // 2])).code == "image.archive"
    assert refused(at(tmp_path, squeeze(b"no tar" * 500))).code == "image.archive"


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    bomb = gzip.compress(entry("blobs/sha256/x", bytes(3 << 20)) + imagetools.END)
    assert refused(at(tmp_path, bomb), most=1 << 20).code == "image.archive"


def test_what_is_not_there_is_named():
    error = refused("/nowhere/archive.tar")
    assert error.code == "image.missing"
    assert "/nowhere/archive.tar" in str(error)


@given(st.binary(max_size=2000), st.integers(0, 6000), st.sampled_from(["layout", "saved", "old"]))
def test_a_damaged_archive_is_an_image_or_refused(damage, place, form):
    files = {
        "layout": lambda: imagetools.layout_files(LAYERS),
        "saved": lambda: imagetools.saved_files([(LAYERS, ["own:1"])]),
        "old": lambda: imagetools.old_files(LAYERS, "own:1"),
    }[form]()
    whole_one = archive_of(files)
    data = whole_one[:place] + damage + whole_one[place + len(damage) :]
    file = os.memfd_create("archive")
    try:
        os.write(file, data)
        with (
            contextlib.suppress(AtollError),
            offer(f"/proc/self/fd/{file}", platform=OWN, emit=ignore) as offered,
        ):
            for one in offered.layers:
                whole(one)
    finally:
        os.close(file)


def through_input(data, *, pipe):
    """What a program finds at its standard input."""
    code = (
        "import sys; from atoll.image.local.offering import offer; from atoll.events import ignore\n"
        "from atoll.image.oci.documents import Platform\n"
        f"with offer('-', platform=Platform({OWN.architecture!r}, 'linux'), emit=ignore) as offered:\n"
        "    for one in offered.layers:\n"
        "        with one.open() as stream: print(len(stream.read(1 << 20)), one.diff_id)\n"
    )
    command = [sys.executable, "-c", code]
    if pipe:
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode()
    with io.FileIO(os.memfd_create("archive"), "rb+") as file:
        file.write(data)
        return subprocess.run(command, stdin=file, capture_output=True, check=True).stdout.decode()


@pytest.mark.parametrize("pipe", [True, False])
def test_standard_input_is_taken(pipe):
    data = archive_of(imagetools.layout_files(LAYERS, squeeze=None))
    said = through_input(data, pipe=pipe)
    assert said == "".join(f"{len(one)} {digest_of(one)}\n" for one in LAYERS)


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A socket that answers as Docker's engine does."""

    daemon_threads = True
    answers = None


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.server.answers.get(self.path)
        self.send_response(200 if body is not None else 404)
        if body is None:
            body = b'{"message": "No such image"}'
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = None if not body.endswith(b"cut off") else -7
        for at_ in range(0, len(body[:end]), 4000):
            piece = body[:end][at_ : at_ + 4000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if end is None:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def engine(tmp_path):
    server = Engine(str(tmp_path / "engine.sock"), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_of_a_running_engine_is_taken_from_its_socket(engine, tmp_path):
    data = archive_of(imagetools.saved_files([(LAYERS, ["example.org/own:1"])]))
    engine.answers = {
        "/images/example.org/own:1/get": data,
        "/containers/box/export": LOWER,
        "/images/half/get": data[:5000] + b"cut off",
    }
    environment = {"DOCKER_HOST": f"unix://{tmp_path}/engine.sock"}
    offered, layers = taken("docker://example.org/own:1", environment=environment)
    assert (layers, offered.names) == (list(LAYERS), ("example.org/own:1",))
    offered, layers = taken("container:box", environment=environment)
    assert (layers, offered.whiteouts) == ([LOWER], False)
    error = refused("docker://none", environment=environment)
    assert (error.code, error.detail) == ("image.unknown", "No such image")
    assert refused("docker://half", environment=environment).code == "image.engine"


def test_the_engine_is_the_docker_clients(tmp_path, engine):
    own = tmp_path / "engine.sock"
    meta = tmp_path / ".docker/contexts/meta" / digest_of(b"mine")[7:]
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": f"unix://{own}"}}}))
    (tmp_path / ".docker/config.json").write_text('{"currentContext": "mine"}')
    assert engines.socket_of({}, tmp_path) == own
    assert engines.socket_of({"DOCKER_HOST": "unix:///run/x.sock"}, tmp_path) == Path("/run/x.sock")
    with pytest.raises(ImageError) as caught:
        engines.socket_of({"DOCKER_HOST": "ssh://elsewhere"}, tmp_path)
    assert caught.value.code == "image.engine"
    environment = {"DOCKER_CONTEXT": "default", "XDG_RUNTIME_DIR": str(tmp_path)}
    if not Path("/var/run/docker.sock").exists():
        assert engines.socket_of(environment, tmp_path, [own]) == own
        with pytest.raises(ImageError):
            engines.socket_of(environment, tmp_path)


def test_a_directory_is_a_root(tmp_path):
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_text("x")
    said = []
    offered, (data,) = taken(root, emit=said.append)
    assert set(imagetools.members(data)) == {"etc/hosts"}
    assert not offered.whiteouts
    assert not [event for event in said if isinstance(event, Warned)]
    assert refused(root, name="own").code == "image.unknown"
