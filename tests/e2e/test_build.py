"""Images that are built of Containerfiles, and of machines, by the command."""

import os
import signal
import subprocess
import time

import pytest
from builds import built_image, take_image
from command import COMMAND, assert_error
from machines import kill_all_at
from programs import packaged

from atoll.building.builder import NAME
from atoll.image import catalog
from atoll.image.engine import BUILDER
from atoll.image.oci import offering
from atoll.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

LIMIT = 400

FILE = """\
ARG BASE=base:1
FROM $BASE AS made
RUN mkdir /out && ls / | sort > /out/list && cat /run/x 2>/dev/null || id -u > /out/id
FROM base:1
COPY --from=made /out /out
COPY . /context
RUN --mount=type=secret,id=key cat /run/secrets/key > /out/seen
ARG WHAT=nothing
LABEL what=$WHAT
USER 1000:1000
ENTRYPOINT ["/bin/busybox", "cat"]
CMD ["/out/id", "/out/seen"]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, paths):
    place = tmp_path_factory.mktemp("builder")
    own = Paths(data=place / "data", cache=paths.cache)
    image = built_image(paths, "engine")
    if not any(program.name == BUILDER and program.path for program in image.manifest.programs):
        catalog.build(paths, "engine", force=True)  # one of an earlier state of this checkout
    take_image(paths, own, "engine")
    yield own
    kill_all_at(own.data)


@pytest.fixture(scope="module")
def own(home, environment):
    return {**environment, "ATOLL_DATA_DIR": str(home.data), "ATOLL_BUILD_MEMORY": "1G"}


@pytest.fixture(scope="module")
def run(own):
    def act(*words, **options):
        done = subprocess.run(
            [COMMAND, *words],
            check=False,
            capture_output=True,
            timeout=LIMIT,
            env=own,
            **{"stdin": subprocess.DEVNULL, **options},
        )
        done.text = (done.stdout + done.stderr).decode()
        return done

    return act


@pytest.fixture(scope="module")
def base(run, paths, tmp_path_factory):
    """An image that is on this host alone."""
    root = tmp_path_factory.mktemp("base")
    (root / "bin").mkdir()
    busybox = packaged(paths, "busybox-static")
    (root / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    for name in ("sh", "cat", "ls", "sort", "mkdir", "cp", "id", "sleep", "rm", "ln"):
        (root / "bin" / name).symlink_to("busybox")
    assert run("image", "import", str(root), "base:1").returncode == 0


@pytest.fixture
def context(tmp_path):
    place = tmp_path / "context"
    (place / "kept").mkdir(parents=True)
    (place / "kept" / "file").write_text("one")
    (place / "no.key").write_text("never sent")
    (place / ".dockerignore").write_text("*.key\n")
    (place / "Containerfile").write_text(FILE)
    return place


def members(home, name):
    """Paths that the last layers of a kept image hold, by reading it as a source."""
    import io
    import tarfile

    found = {}
    for layer in offering.offer(catalog.find(home, name)).layers:
        with layer.open() as stream:
            data = b""
            while piece := stream.read(1 << 20):
                data += piece
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                found[entry.name.rstrip("/")] = archive.extractfile(entry).read() if entry.isreg() else entry
    return found


def test_an_image_is_built_kept_and_built_again_of_what_is_there(run, home, base, context, tmp_path):
    (tmp_path / "key").write_text("of the key")
    words = ("build", "-t", "mine:1", "--secret", f"id=key,src={tmp_path}/key", "--build-arg", "WHAT=it")
    first = run(*words, str(context))
    assert first.returncode == 0, first.text
    assert "Using cache" not in first.text
    image = catalog.find(home, "mine:1").manifest
    assert image.run.user == "1000:1000"
    assert image.run.labels["what"] == "it"
    assert image.run.entrypoint == ("/bin/busybox", "cat")
    there = members(home, "mine:1")
    assert there["context/kept/file"] == b"one"
    assert there["out/seen"] == b"of the key"
    assert "context/no.key" not in there
    assert b"bin\n" in there["out/list"]

    second = run(*words, "-t", "mine:2", str(context))
    assert second.returncode == 0, second.text
    assert second.text.count("Using cache") >= 5
    assert catalog.find(home, "mine:2").directory == catalog.find(home, "mine:1").directory

    (context / "kept" / "file").write_text("two")
    (context / "Containerfile").write_text(FILE + "RUN /bin/nothing\n")
    failed = run(*words, str(context))
    assert_error(failed, "build.failed", "RUN /bin/nothing")
    assert "Using cache" in failed.text

    run_ = run("run", "mine:1")
    assert run_.stdout.decode() == "0\nof the key", run_.text


def test_a_build_that_is_broken_off_ends_in_the_builder(run, own, base, context):
    (context / "Containerfile").write_text("FROM base:1\nRUN echo begun; sleep 7777\n")
    for number in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(
            [COMMAND, "build", str(context)], env=own, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child:
            try:
                while (line := child.stderr.readline()).strip() != b"begun":
                    assert line, "it ended by itself"
                child.send_signal(number)
                child.wait(60)
            finally:
                child.kill()
        for _ in range(300):
            look = "ls /var/lib/atoll-builder/work /run/atoll-builder/builds; ps ax | grep '[s]leep 7777'"
            if "7777" not in (
                seen := run("exec", NAME, "sh", "-c", look).stdout.decode()
            ) and seen.split() == [
                "/run/atoll-builder/builds:",
                "/var/lib/atoll-builder/work:",
            ]:
                break
            time.sleep(0.1)
        else:
            pytest.fail(seen)


def test_a_machine_becomes_an_image_of_one_layer_more(run, home, base):
    assert run("create", "m", "--image", "base:1", "--init", "minimal", "--memory", "256M").returncode == 0
    try:
        assert run("start", "m").returncode == 0
        change = "mkdir /app; echo data > /app/one; ln /app/one /app/two; rm /bin/id; echo x > /tmp/x"
        assert run("exec", "m", "/bin/sh", "-c", change).returncode == 0
        done = run("image", "commit", "m", "made:1", "-c", 'CMD ["/bin/cat", "/app/two"]', "-m", "by hand")
        assert done.returncode == 0, done.text
    finally:
        run("rm", "--force", "m")
    image = catalog.find(home, "made:1")
    layers = image.manifest.origin.layers
    assert layers[:-1] == catalog.find(home, "base:1").manifest.origin.layers
    there = members(home, "made:1")
    assert there["app/one"] == b"data\n"
    assert there["app/two"].islnk()
    assert there["bin/.wh.id"] == b""
    assert not {"tmp/x", "etc/hosts", "etc/machine-id"} & set(there)
    assert run("image", "verify", "made:1").returncode == 0
    ran = run("run", "made:1")
    assert ran.stdout == b"data\n", ran.text


def test_what_cannot_be_built_is_said_before_anything_is_started(run, tmp_path):
    assert_error(run("build", "https://example.com/x.git"), "build.context")
    assert_error(run("build", str(tmp_path)), "build.file")
    assert_error(run("image", "commit", "nothing", "x:1"), "store.missing")
    assert os.listdir(tmp_path) == []
