"""``atoll template`` with templates that no VM was needed for."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from atoll import store
from atoll.cli.main import build_parser, main
from atoll.paths import Paths
from atoll.template import cache
from atoll.template.cache import Manifest


@pytest.fixture
def paths(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOLL_CACHE_DIR", str(tmp_path))
    return Paths(data=tmp_path, cache=tmp_path)


@pytest.fixture
def enter(paths):
    """Enter a template; one that failed has no files."""

    def enter(name, failure=""):
        place = paths.template(name)
        place.directory.mkdir(parents=True)
        manifest = Manifest(
            name=name,
            identity="one",
            image="debian:trixie",
            accelerator="tcg",
            vcpus=2,
            memory=256 << 20,
            hypervisor="QEMU 7.2",
            created=1_790_000_000.0,
            failure=failure,
        )
        if not failure:
            place.ram.write_bytes(b"ram")
            place.state.write_bytes(b"state")
            stamps = {"ram": store.stamp(place.ram), "state": store.stamp(place.state)}
            manifest = replace(manifest, digest=cache.digest_of(place.ram), **stamps)
        store.write_record(place.manifest, manifest)
        return place

    return enter


def parsed(words):
    return build_parser(words).parse_args(words)


def listed(capsys, *options):
    status = main(["template", "ls", "--json", *options])
    return status, json.loads(capsys.readouterr().out)


def test_a_template_is_described_in_full(enter, capsys):
    place = enter("whole")
    disk = (place.ram.stat().st_blocks + place.state.stat().st_blocks) * 512
    assert listed(capsys) == (
        0,
        [
            {
                "name": "whole",
                "image": "debian:trixie",
                "accelerator": "tcg",
                "vcpus": 2,
                "memory": 256 << 20,
                "disk": disk,
                "created": 1_790_000_000.0,
                "hypervisor": "QEMU 7.2",
                "digest": cache.digest_of(place.ram),
                "state": "ready",
            }
        ],
    )


def test_one_that_failed_says_why_and_one_that_is_damaged_that_it_is(enter, capsys):
    enter("failed", failure="the guest hangs")
    enter("damaged").state.unlink()
    status, (damaged, failed) = listed(capsys)
    assert status == 0
    assert damaged == {"name": "damaged", "state": "broken"}
    assert (failed["state"], failed["disk"], failed["digest"]) == ("the guest hangs", 0, "")


def test_a_table_has_a_row_for_each(enter, capsys):
    enter("damaged").ram.unlink()
    enter("failed", failure="the guest hangs")
    enter("whole")
    assert main(["template", "ls"]) == 0
    head, damaged, failed, whole = capsys.readouterr().out.splitlines()
    assert head.split() == ["TEMPLATE", "IMAGE", "VCPUS", "MEMORY", "DISK", "CREATED", "STATE"]
    assert damaged.split() == ["damaged", "-", "-", "-", "-", "-", "broken"]
    assert failed.startswith("failed")
    assert failed.endswith("the guest hangs")
    assert whole.split()[:5] == ["whole", "debian:trixie", "2", "256.0", "MiB"]
    assert whole.endswith("ready")


def test_verifying_tells_a_changed_page_from_a_sealed_one(enter, paths, capsys):
    enter("whole")
    assert listed(capsys, "--verify")[1][0]["state"] == "verified"
    place = enter("changed")
    place.ram.write_bytes(b"RAM")
    sealed = store.read_record(place.manifest, Manifest)
    store.write_record(place.manifest, replace(sealed, ram=store.stamp(place.ram)))
    status, found = listed(capsys, "--verify")
    assert status == 1
    assert {one["name"]: one["state"] for one in found} == {"changed": "changed", "whole": "verified"}
    assert listed(capsys)[0] == 0


def test_where_nothing_was_made_the_list_is_empty(paths, capsys):
    assert listed(capsys) == (0, [])


def test_templates_are_removed_by_name(enter, paths, capsys):
    for name in ("a", "b", "c"):
        enter(name)
    assert main(["template", "rm", "a", "c", "a"]) == 0
    assert capsys.readouterr().out == "a\nc\n"
    assert [one.name for one in cache.installed(paths)] == ["b"]


@pytest.mark.parametrize("name", ["x", "", ".", "..", "../images", ".b.lock"])
def test_a_name_that_is_none_removes_nothing(enter, paths, capsys, name):
    enter("b")
    (paths.cache / "images").mkdir()
    assert main(["template", "rm", "b", name]) == 1
    assert "error[store.missing]: there is no template" in capsys.readouterr().err
    assert [one.name for one in cache.installed(paths)] == ["b"]
    assert (paths.cache / "images").is_dir()


def test_all_are_removed_with_what_killed_makers_left(enter, paths, capsys):
    enter("a")
    enter("failed", failure="the guest hangs")
    (paths.templates / ".partial-a-0123abcd").mkdir()
    assert main(["template", "rm", "--all"]) == 0
    assert capsys.readouterr().out == "a\nfailed\n"
    assert [entry.name for entry in paths.templates.iterdir()] == []


def test_nothing_named_is_a_mistake(enter, paths, capsys):
    enter("a")
    assert main(["template", "rm"]) == 2
    assert "hint: " in capsys.readouterr().err
    assert [one.name for one in cache.installed(paths)] == ["a"]


def test_build_takes_what_shapes_a_vm():
    found = parsed(
        ["template", "build", "-f", "-m", "1G", "--cpus", "2", "--accel", "tcg", "debian:bookworm"]
    )
    assert (found.name, found.force, found.memory, found.cpus) == ("debian:bookworm", True, "1G", "2")
    assert not parsed(["template", "build", "debian"]).force


@pytest.mark.parametrize(
    "words", [["template"], ["template", "make"], ["template", "build"], ["template", "ls", "x"]]
)
def test_what_is_no_command_is_a_mistake(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(words)
    assert caught.value.code == 2


def test_run_asks_for_a_boot_only_if_it_is_told_to():
    assert parsed(["run", "--cold", "debian"]).cold is True
    assert parsed(["run", "debian"]).cold is None
