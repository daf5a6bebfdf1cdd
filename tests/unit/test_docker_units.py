"""Units of the Docker socket: whatever is in a path reaches systemd and the listener as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_autostart import NASTY, setting, words

from atoll.config import load
from atoll.containers import units
from atoll.containers.launching import program
from atoll.containers.listener import Timing
from atoll.errors import ConfigError, PreflightError
from atoll.machine import autostart

#: What a setting that takes its line as it is cannot hold.
UNSPEAKABLE = ["/line\nbreak", "/with blanks/and\ttabs", "/ends with a blank ", "/ends with\\"]


def config(data):
    return load({"data_dir": data}, environment={}, files=()).config


@pytest.mark.parametrize("path", NASTY)
def test_a_service_runs_just_what_is_meant(path):
    command = program(config(Path(path)), Timing(idle=12.5))
    (found,) = setting(units.service_unit(command), "ExecStart")
    assert words(found, command=True) == list(command)
    assert path in command
    assert "--idle=12.5" in command


@pytest.mark.parametrize("path", [path for path in NASTY if path not in UNSPEAKABLE])
def test_a_socket_is_just_where_it_is_meant(path):
    (found,) = setting(units.socket_unit(Path(path)), "ListenStream")
    assert found.replace("%%", "\0").count("%") == 0
    assert found.replace("%%", "%") == path


@pytest.mark.parametrize("path", UNSPEAKABLE)
def test_a_path_that_a_unit_cannot_hold_is_refused(path):
    with pytest.raises(PreflightError, match="cannot be written into a unit"):
        units.socket_unit(Path(path))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("path", [path for path in NASTY if path not in UNSPEAKABLE])
def test_systemd_finds_nothing_wrong(path, tmp_path):
    files = [tmp_path / "atoll.docker.socket", tmp_path / "atoll.docker.service"]
    files[0].write_text(units.socket_unit(Path(path)))
    files[1].write_text(units.service_unit((sys.executable, "-m", "atoll", path)))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", *map(str, files)],
        capture_output=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in done.stderr.decode().splitlines() if "atoll.docker" in line]
    assert not complaints, done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="tests systemd's units")
def test_units_are_written_found_and_removed_where_systemd_runs_and_nothing_is_left_elsewhere(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing of the host's is told
    units_place = tmp_path / "config" / "systemd" / "user"
    systemctl = tmp_path / "systemctl"
    for answer in ("", "exit 1", "test $2 = daemon-reload"):
        if answer:
            systemctl.write_text(f"#!/bin/sh\n{answer}\n")
            systemctl.chmod(0o755)
        with pytest.raises(PreflightError, match="systemd does not hold it"):
            units.enable(config(tmp_path), Timing())
        assert not units_place.exists() or not list(units_place.iterdir())
    systemctl.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/told\n')
    path = units.enable(config(tmp_path), Timing())
    assert path == units_place / "atoll.docker.socket"
    assert (tmp_path / "told").read_text().endswith("--user enable --now atoll.docker.socket\n")
    assert units.enabled(config(tmp_path))
    assert not units.enabled(config(tmp_path / "other"))
    assert autostart.enabled() == []
    assert units.disable()
    assert not units.disable()
    assert not units.enabled(config(tmp_path))
    with pytest.raises(ConfigError) as caught:
        units.enable(config(tmp_path / ("x" * 100)), Timing())
    assert caught.value.code == "config.socket"
    assert list(path.parent.iterdir()) == []
