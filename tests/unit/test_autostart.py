"""Units of service managers: whatever is in a path reaches the program as it is."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys

import pytest

from atoll.config import load
from atoll.machine import autostart

PROGRAM = ("/opt/my tools/python", "-P", "-m", "atoll")

#: Directories that a shell, systemd or a template would take apart.
NASTY = [
    "/plain",
    "/with blanks/and\ttabs",
    "/with \"quotes\" and 'others'",
    "/100%/of %h and %%",
    "/with $HOME and ${HOME} and $$",
    "/back\\slash\\n and \\x41",
    "/line\nbreak",
    "/semi;colon # and = and {braces} and *",
    "/größer/日本",
]


def setting(unit, name):
    return [line.partition("=")[2] for line in unit.split("\n") if line.startswith(f"{name}=")]


def words(text, *, command):
    """How systemd reads it: quotes, C escapes, specifiers, and for commands variables (systemd.syntax(7))."""
    found, word, quoted, rest = [], None, False, iter(text)
    escapes = {"n": "\n", "t": "\t", "\\": "\\", '"': '"', "'": "'"}
    for char in rest:
        if char == "\\":
            word = (word or "") + escapes[next(rest)]
        elif char == '"':
            quoted, word = not quoted, word or ""
        elif char == " " and not quoted:
            if word is not None:
                found.append(word)
            word = None
        elif char in "%$" and (char == "%" or command):
            assert next(rest) == char, f"{text}: a lone {char}"
            word = (word or "") + char
        else:
            word = (word or "") + char
    assert not quoted
    return found if word is None else [*found, word]


@pytest.mark.parametrize("path", NASTY)
def test_a_unit_of_systemd_says_just_what_is_meant(path):
    unit = autostart.systemd_unit("web-1", (path, *PROGRAM[1:]), {"ATOLL_DATA_DIR": path})
    (command,) = setting(unit, "ExecStart")
    assert words(command, command=True) == [path, "-P", "-m", "atoll", "supervise", "web-1"]
    (variable,) = setting(unit, "Environment")
    assert words(variable, command=False) == [f"ATOLL_DATA_DIR={path}"]


@pytest.mark.parametrize("path", NASTY)
def test_an_agent_of_launchd_says_just_what_is_meant(path):
    agent = plistlib.loads(autostart.launchd_plist("web-1", (path, *PROGRAM[1:]), {"ATOLL_DATA_DIR": path}))
    assert agent["ProgramArguments"] == [path, "-P", "-m", "atoll", "supervise", "web-1"]
    assert agent["EnvironmentVariables"] == {"ATOLL_DATA_DIR": path}
    assert agent["Label"] == "atoll.web-1"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("path", NASTY)
def test_systemd_finds_nothing_wrong_with_a_unit(path, tmp_path):
    unit = tmp_path / "atoll-web.service"
    unit.write_text(
        autostart.systemd_unit("web", (sys.executable, "-P", "-m", "atoll"), {"ATOLL_DATA_DIR": path})
    )
    words = ["systemd-analyze", "--user", "verify", str(unit)]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    complaints = [line for line in done.stderr.decode().splitlines() if "atoll-web" in line]
    assert not complaints, done.stderr


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no systemctl: nothing of the host's is told


def settings(data):
    return load({"data_dir": data}, environment={}, files=()).config


@pytest.mark.skipif(sys.platform == "darwin", reason="tests systemd's units")
@pytest.mark.usefixtures("home")
def test_a_unit_is_written_listed_and_removed_and_systemd_need_not_be_there(tmp_path):
    told = []
    path = autostart.enable(settings(tmp_path / "data"), "web", told.append)
    assert path == tmp_path / "config" / "systemd" / "user" / "atoll-web.service"
    assert "systemctl --user enable atoll-web.service" in told[0].hint
    assert autostart.enabled() == ["web"]
    assert autostart.disable("web")
    assert not autostart.disable("web")
    assert autostart.enabled() == []


@pytest.mark.usefixtures("home")
def test_a_machine_of_the_same_name_elsewhere_has_no_part_in_a_unit(tmp_path):
    autostart.enable(settings(tmp_path / "one"), "web")
    assert autostart.is_own(settings(tmp_path / "one"), "web")
    assert not autostart.is_own(settings(tmp_path / "other"), "web")
    assert not autostart.is_own(settings(tmp_path / "one"), "db")


@pytest.mark.skipif(sys.platform == "darwin", reason="tests systemd's units")
def test_a_relative_place_for_settings_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(autostart.unit_path("web")) == f"{tmp_path}/.config/systemd/user/atoll-web.service"
