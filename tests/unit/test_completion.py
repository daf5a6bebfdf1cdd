"""Candidates for the shell."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from machines import hosted_spec

from atoll.cli.completion import complete
from atoll.cli.main import COMMANDS, main
from atoll.image.recipes import RECIPES
from atoll.machine import registry
from atoll.paths import Paths
from atoll.snapshot import catalog, storing
from atoll.snapshot.manifest import Kind, Manifest
from atoll.vm.network import catalog as catalog_of_networks

IMAGES = sorted({*RECIPES, *(f"{name}:{tag}" for name, recipe in RECIPES.items() for tag in recipe.tags)})
DEBIAN = [name for name in IMAGES if name.startswith("debian")]


@pytest.fixture(autouse=True)
def no_images(monkeypatch, tmp_path):
    monkeypatch.setenv("ATOLL_DATA_DIR", str(tmp_path))


@pytest.fixture
def candidates(capsys):
    def ask(*words):
        assert complete(words) == 0
        return capsys.readouterr().out.splitlines()

    return ask


def test_networks_are_offered_by_their_names(candidates, tmp_path):
    catalog_of_networks.create(Paths(tmp_path, tmp_path), "lab", catalog_of_networks.Wish())
    assert candidates("network", "rm", "") == ["default", "lab", "sandboxes"]
    assert candidates("network", "inspect", "l") == ["lab"]
    assert candidates("network", "connect", "la") == ["lab"]
    assert candidates("run", "--network=l") == ["--network=lab"]
    assert candidates("run", "--net") == [f"--network{kind}" for kind in ("", "=none", "=own", "=slirp")]
    assert candidates("edit", "dev", "network=l") == ["network=lab"]


def test_sources_of_a_migration_are_offered(candidates):
    assert candidates("migrate", "from", "") == ["colima", "docker", "docker-desktop", "orbstack"]


def test_the_first_word_is_a_command(candidates):
    assert candidates("") == sorted(row.name for row in COMMANDS)
    assert candidates("co") == ["completion", "config", "console"]
    assert candidates("--v") == ["--version"]
    assert candidates() == sorted(row.name for row in COMMANDS)


def test_the_second_word_of_some_commands_is_an_action(candidates):
    assert candidates("image", "") == [
        *("build", "commit", "emulator", "export", "history", "import", "inspect"),
        *("ls", "prune", "pull", "push", "rm", "tag", "tags", "verify"),
    ]
    assert candidates("config", "s") == ["show"]
    assert candidates("completion", "") == ["bash", "fish", "zsh"]


@pytest.mark.parametrize("words", [("run",), ("image", "build"), ("image", "inspect"), ("image", "rm")])
def test_images_are_offered_where_one_is_wanted(candidates, words):
    assert candidates(*words, "") == IMAGES
    assert candidates(*words, "debian:t") == ["debian:trixie"]
    assert candidates(*words, "fedora") == []


def test_options_are_offered_for_a_dash(candidates):
    assert candidates("run", "--me") == ["--memory"]
    assert {"--cpus", "--accel", "-v", "--help"} <= set(candidates("run", "-"))
    assert candidates("image", "build", "--f") == ["--force"]


def test_the_choices_of_an_option_follow_it(candidates):
    assert candidates("run", "--accel", "") == ["auto", "kvm", "tcg"]
    assert candidates("run", "--accel", "t") == ["tcg"]
    assert candidates("run", "--cpus", "") == []
    assert candidates("run", "--verbose", "") == IMAGES


def test_an_image_follows_the_options_with_their_values(candidates):
    assert candidates("run", "--accel", "tcg", "-m", "1G", "deb") == DEBIAN


@pytest.fixture
def machines(tmp_path):
    paths = Paths(data=tmp_path, cache=tmp_path)
    for name in ("dev", "web-1"):
        registry.add(paths, name, hosted_spec(), lambda place: place.data.touch())


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    "words",
    [
        *[
            (name,)
            for name in ("start", "stop", "rm", "exec", "shell", "logs", "edit", "clone", "export", "ssh")
        ],
        ("start", "dev"),
        ("rm", "-f"),
        ("wait", "--for", "stopped"),
        ("autostart", "enable"),
    ],
    ids=" ".join,
)
def test_machines_are_offered_where_one_is_wanted(candidates, words):
    assert candidates(*words, "") == ["dev", "web-1"]
    assert candidates(*words, "w") == ["web-1"]


@pytest.mark.usefixtures("machines")
def test_a_copy_begins_or_ends_in_a_machine(candidates):
    assert candidates("cp", "") == ["dev:", "web-1:"]
    assert candidates("cp", "README.md", "d") == ["dev:"]
    assert candidates("cp", "README.md", "/") == []


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    "words",
    [("export", "dev"), ("rename", "dev"), ("create",), ("exec", "dev"), ("run", "debian")],
    ids=" ".join,
)
def test_nothing_is_offered_where_something_new_or_the_guests_own_is_wanted(candidates, words):
    assert candidates(*words, "") == []


@pytest.mark.usefixtures("machines")
def test_the_fields_of_an_edit_are_offered(candidates):
    assert candidates("edit", "dev", "m") == ["memory=", "mounts="]
    assert candidates("wait", "--for", "s") == ["starting", "stopped", "stopping", "suspended"]


def test_a_machine_whose_record_is_damaged_is_offered_all_the_same(candidates, tmp_path):
    (tmp_path / "machines" / "old").mkdir(parents=True)
    (tmp_path / "machines" / "old" / "machine.json").write_text("{")
    assert candidates("rm", "") == ["old"]


def test_nothing_is_offered_after_two_dashes(candidates):
    assert candidates("run", "debian", "--", "") == []
    assert candidates("run", "debian", "--", "ls", "-") == []


def test_a_broken_configuration_still_completes(candidates, monkeypatch):
    monkeypatch.setenv("ATOLL_CPUS", "none")
    assert candidates("run", "d") == DEBIAN


def test_words_that_are_no_command_have_no_candidates(candidates):
    assert candidates("nonsense", "x") == []


def test_the_program_answers_the_shell(capsys):
    assert main(["__complete", "image", "b"]) == 0
    assert capsys.readouterr().out == "build\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("atoll ima", ["image"]),
        ("atoll run --accel k", ["kvm"]),
        ("atoll image r", ["rm"]),
        ("atoll run --network = s", ["sandboxes", "slirp"]),
        ("atoll run --network =", ["default", "none", "own", "sandboxes", "slirp"]),
        ("atoll edit dev network = sa", ["sandboxes"]),
    ],
)
def test_bash_completes_with_the_script(tmp_path, line, expected):
    program = tmp_path / "atoll"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m atoll.cli.main "$@"\n')
    program.chmod(0o755)
    script = """
eval "$(atoll completion bash)"
COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_atoll
printf '%s\\n' "${COMPREPLY[@]}"
"""
    path = f"{tmp_path}:/usr/bin:/bin"
    command = ["bash", "--norc", "-c", f"PATH={path}; export PATH{script}", "bash", line]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_that_is_here_is_valid(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "atoll __complete" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script.encode(), check=True)


def test_templates_follow_where_one_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ATOLL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data" / "templates" / "mine").mkdir(parents=True)
    (tmp_path / "cache" / "templates" / "debian.1").mkdir(parents=True)
    for words, wanted in (
        (["run", "--template", ""], ["mine"]),
        (["template", "rm", ""], ["debian.1", "mine"]),
        (["template", "rm", "m"], ["mine"]),
    ):
        complete(words)
        assert capsys.readouterr().out.split() == wanted


def test_snapshots_follow_where_one_is_wanted_by_their_ids_where_several_have_a_name(candidates, tmp_path):
    paths = Paths(data=tmp_path, cache=tmp_path)
    for name, owner, kind in (
        ("ready", "1", Kind.SANDBOX),
        ("old", "2", Kind.MACHINE),
        ("twice", "2", Kind.MACHINE),
        ("twice", "3", Kind.MACHINE),
    ):
        with storing.staging(paths, owner) as place:
            manifest = Manifest(name=name, kind=kind, machine="x", machine_id=owner, created=1.0)
            catalog.seal(paths, place, manifest)
    (paths.snapshots / "damaged").mkdir()
    twice = sorted(one.id for one in catalog.listed(paths) if one.manifest and one.manifest.name == "twice")
    for words in (("inspect",), ("rm",), ("rm", "old"), ("verify",)):
        assert candidates("snapshot", *words, "") == sorted([*twice, "old", "ready"])
    assert candidates("snapshot", "restore", "dev", "") == sorted([*twice, "old"])
    assert candidates("run", "--snapshot", "") == ["ready"]
