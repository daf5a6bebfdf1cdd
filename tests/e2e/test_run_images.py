"""`atoll run` with images that say how they want to be run."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import own_images
import programs
import pytest
from command import assert_error

from atoll.image.oci.runconfig import RunConfig
from atoll.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("no_leftovers")]

SOURCE = Path(__file__).parents[1] / "inside.c"


@pytest.fixture(scope="module")
def data(tmp_path_factory, paths):
    """A data directory with images of one program."""
    place = tmp_path_factory.mktemp("data")
    archive = own_images.tar_of({"inside": programs.compiled(paths, SOURCE)})
    kept = Paths(data=place, cache=paths.cache)
    shown = RunConfig(entrypoint=("/inside",), cmd=("show", "own"), env=("A=1",), working_dir="/w", user="5")
    own_images.add(kept, "shown", archive, shown)
    own_images.add(kept, "quits", archive, RunConfig(cmd=("/inside", "wait"), stop_signal="QUIT"))
    own_images.add(kept, "stays", archive, RunConfig(cmd=("/inside", "wait")))
    own_images.add(kept, "empty", archive, RunConfig())
    return {"ATOLL_DATA_DIR": str(place)}


def test_an_image_is_run_as_it_says_or_as_the_user_says(atoll, data, tmp_path):
    done = atoll("run", "--cold", "shown", env=data)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert (lines[0], lines[-2:]) == ("word own", ["cwd /w", "ids 5 0 0"])
    assert "env A=1" in lines
    (tmp_path / "file").write_text("of the host\n")
    volume = ("-v", f"{tmp_path}:/host:ro", "-v", "/empty", "-u", "0")
    done = atoll("run", *volume, "--entrypoint", "/inside", "shown", "cat", "/host/file", env=data)
    assert (done.returncode, done.stdout) == (0, b"of the host\n"), done.stderr
    words = ("-e", "A=2", "-w", "/made", "-u", "6:7", "--entrypoint", "")
    done = atoll("run", "--cold", *words, "shown", "/inside", "show", env=data)
    lines = done.stdout.decode().splitlines()
    assert {"env A=2", "cwd /made", "ids 6 7 7"} <= set(lines), done.stderr


def test_what_cannot_be_run_is_said_with_advice(atoll, data):
    assert_error(atoll("run", "--cold", "empty", env=data), "image.command")
    done = atoll("run", "--cold", "empty", "sh", env=data)
    assert done.returncode == 127
    assert b'cannot run sh: exec: "sh": not found in $PATH\n' in done.stderr
    assert_error(atoll("run", "-v", "debian", "--", "true", env=data), "usage.mount", "--verbose")
    assert_error(atoll("run", "-v", "name:/data", "empty", env=data), "usage.mount", "./name")


@pytest.mark.parametrize(("image", "status"), [("quits", 7), ("stays", 128 + signal.SIGTERM)])
def test_a_signal_asks_an_image_to_end_as_that_wants_it_and_not_for_ever(spawn_atoll, data, image, status):
    words = ("run", "--cold", "--stop-timeout", "0.5", image)
    child = spawn_atoll(*words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, more=data)
    assert child.stdout.readline() == b"waiting\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == status
