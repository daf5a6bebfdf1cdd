"""Images from and to files, directories and pipes, by the command."""

import os
import shutil
import subprocess

import imagetools
import layercases
import pytest
from command import COMMAND, assert_error

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="reads files of several owners"),
    pytest.mark.usefixtures("no_leftovers"),
]


@pytest.fixture
def private(tmp_path):
    """Directories of this test alone."""
    (tmp_path / "scratch").mkdir()
    return {
        "ATOLL_DATA_DIR": str(tmp_path / "data"),
        "ATOLL_CACHE_DIR": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "scratch"),
    }


def done(*words, env, **options):
    """The command's output; it must succeed."""
    run = subprocess.run(
        [COMMAND, *words],
        check=False,
        capture_output=True,
        env={**os.environ, **env},
        **{"stdin": subprocess.DEVNULL, **options},
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


def test_an_image_goes_through_files_and_pipes_and_stays_what_it_is(private, tmp_path):
    layout = layercases.write_image(tmp_path / "layout", layercases.HONEST["opaque-deep"])
    done("image", "import", str(layout), "own:1", env=private)
    digest = done("image", "export", "own:1", str(tmp_path / "own.tar"), env=private)
    assert digest.startswith(b"sha256:")
    piped = done("image", "export", "--format", "docker", "own:1", "-", env=private)
    done("image", "import", "-", "again", env=private, stdin=None, input=piped)
    assert done("image", "export", "again", "-", env=private) != b""
    again = tmp_path / "again"
    done("image", "export", "--format", "oci-dir", "own:1", str(again), env=private)
    kept = imagetools.members((tmp_path / "own.tar").read_bytes())
    blobs = {name: data for name, data in kept.items() if name.startswith("blobs/")}
    assert {name: (again / name).read_bytes() for name in blobs} == blobs
    assert os.listdir(tmp_path / "scratch") == []


def test_a_directory_becomes_an_image_and_what_cannot_be_is_said(private, tmp_path, atoll):
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy2("/bin/true", root / "bin" / "true")
    done("image", "import", str(root), "bare", env=private)
    assert done("image", "export", "--compression", "none", "bare", "-", env=private)
    both = imagetools.several([([b""], "one:1", {}), ([imagetools.layer()], "two:2", {})])
    layout = imagetools.write_files(tmp_path / "both", both)
    failed = atoll("image", "import", str(layout), "own", env=private)
    assert_error(failed, "image.several")
    assert b"--name: one:1, two:2" in failed.stderr
    done("image", "import", "--name", "two:2", str(layout), "own", env=private)
    assert_error(atoll("image", "import", "/nowhere", "own", env=private), "image.missing")
    assert_error(atoll("image", "import", str(root), "debian", env=private), "image.name")
    assert_error(atoll("image", "export", "own", str(root), env=private), "store.already_exists")
    assert_error(atoll("image", "export", "nothing", "-", env=private), "image.missing")
