"""How virtiofsd is found and called, and which users of a guest are which of the host."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import PreflightError
from atoll.hypervisor.qemu import virtiofs
from atoll.hypervisor.qemu.virtiofs import Daemon, Flavour, Range, enclosed, map_ids, parse_ranges, serve

C = Daemon("/usr/lib/qemu/virtiofsd", Flavour.C)
RUST = Daemon("/usr/libexec/virtiofsd", Flavour.RUST)


def executable(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_qemus_own_is_the_one_in_c_and_others_are_its_successor(tmp_path):
    old, new = executable(tmp_path / "qemu" / "virtiofsd"), executable(tmp_path / "libexec" / "virtiofsd")
    assert virtiofs.find(lambda _: None, (new, old)) == Daemon(new, Flavour.RUST)
    assert virtiofs.find(lambda _: None, ("/nowhere", old)) == Daemon(old, Flavour.C)
    assert virtiofs.find(lambda _: new, ()) == Daemon(new, Flavour.RUST)


def test_a_host_without_it_is_told_what_to_install():
    with pytest.raises(PreflightError) as caught:
        virtiofs.find(lambda _: None, ("/nowhere",))
    assert "apt install" in caught.value.hint


def test_the_one_in_c_is_called_with_its_options():
    assert serve(C, "/home/me/work", 7) == (
        "/usr/lib/qemu/virtiofsd",
        "-f",
        "--fd=7",
        "--rlimit-nofile=0",
        "-o",
        "source=/home/me/work,cache=auto,sandbox=namespace,log_level=warn,announce_submounts",
    )


def test_its_successor_is_called_with_others():
    words = serve(RUST, "/home/me/a,b", 7)
    assert words[0] == "/usr/libexec/virtiofsd"
    assert {"--fd=7", "--shared-dir=/home/me/a,b", "--cache=auto", "--sandbox=namespace"} <= set(words)


@pytest.mark.parametrize(
    ("source", "escaped"), [("/a,b", "/a\\,b"), ("/a\\b", "/a\\\\b"), ("/a,o=x", "/a\\,o=x")]
)
def test_a_directorys_name_cannot_become_an_option(source, escaped):
    assert serve(C, source, 3)[-1].startswith(f"source={escaped},cache=auto,")


def test_the_surroundings_are_made_by_a_program_that_needs_nothing_of_atoll():
    words = enclosed(("/bin/true",), "/src", read_only=True, users=(Range(0, 1000),), groups=(Range(0, 100),))
    assert words[:3] == (sys.executable, "-I", "-S")
    assert words[4:] == (
        *("--source", "/src", "--read-only", "--users", "0:1000:1", "--groups", "0:100:1"),
        *("--", "/bin/true"),
    )


def test_root_gets_no_users_of_its_own():
    assert "--users" not in enclosed(("/bin/true",), "/src", read_only=False)


def test_ranges_are_those_of_the_name_and_of_the_number():
    text = "me:100000:65536\nother:200000:65536\n1000:300000:10\n# me:1:1\nme:x:1\n"
    assert parse_ranges(text, "me", 1000) == ((100_000, 65_536), (300_000, 10))


def test_the_machines_user_is_the_user_and_all_others_are_strangers():
    assert map_ids(1000, 1000, ((100_000, 65_536),)) == (
        Range(0, 100_000, 1000),
        Range(1000, 1000, 1),
        Range(1001, 101_000, 64_535),
    )


def test_without_ranges_only_the_guests_root_is_the_user():
    assert map_ids(1000, 500, ()) == (Range(0, 1000),)


@given(
    st.integers(0, 65_535),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
)
def test_no_number_is_mapped_twice_and_the_owner_always_is(owner, counts):
    ranges = tuple((100_000 * (place + 1), count) for place, count in enumerate(counts))
    mapped = map_ids(1000, owner, ranges)
    inner = [number for one in mapped for number in range(one.inner, one.inner + one.count)]
    outer = [number for one in mapped for number in range(one.outer, one.outer + one.count)]
    assert len(set(inner)) == len(inner)
    assert len(set(outer)) == len(outer)
    assert dict(zip(inner, outer, strict=True))[owner] == 1000
    assert max(inner) < 65_536
    assert set(outer) - {1000} <= {
        number for first, count in ranges for number in range(first, first + count)
    }


def test_the_owners_number_does_not_depend_on_who_runs_the_test():
    assert map_ids(os.getuid(), 0, ())[0].outer == os.getuid()
