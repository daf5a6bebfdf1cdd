"""Programs of a root: found as its own kernel would find them, never outside of it."""

import hashlib
import os

import pytest

from atoll.image.programs import Program, measure, wanting

GOOD = Program("tool", "/usr/bin/tool", 4, 0o100755, "digest")


def put(tree, path, data=b"#!x", mode=0o755):
    file = tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(mode)


def link(tree, path, target):
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).symlink_to(target)


def only(tree):
    (found,) = measure(tree, ["tool"])
    return found


def test_a_program_is_measured_where_it_is_found_first(tmp_path):
    put(tmp_path, "usr/bin/tool", b"second")
    put(tmp_path, "usr/sbin/tool", b"first", 0o4755)
    digest = hashlib.sha256(b"first").hexdigest()
    assert only(tmp_path) == Program("tool", "/usr/sbin/tool", 5, 0o104755, digest)


def test_links_are_followed_inside_the_root(tmp_path):
    put(tmp_path, "usr/lib/real", b"it")
    link(tmp_path, "etc/alternatives/tool", "/usr/lib/real")
    link(tmp_path, "usr/bin/tool", "../../../../../etc/alternatives/tool")
    found = only(tmp_path)
    assert (found.path, found.size) == ("/usr/lib/real", 2)


def test_what_only_the_host_has_is_not_found(tmp_path):
    tree = tmp_path / "tree"
    put(tmp_path, "outside", b"secret")
    link(tree, "usr/bin/tool", "../../../outside")
    assert only(tree) == Program("tool")
    link(tree, "usr/sbin/tool", str(tmp_path / "outside"))
    assert only(tree) == Program("tool")


def test_links_in_a_circle_end(tmp_path):
    link(tmp_path, "usr/bin/tool", "tool")
    assert only(tmp_path) == Program("tool")


def test_a_fifo_is_not_opened(tmp_path):
    (tmp_path / "bin").mkdir()
    os.mkfifo(tmp_path / "bin/tool", 0o755)
    assert wanting(["tool"], [only(tmp_path)]) == "/bin/tool is no regular file"


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ((), "tool is missing"),
        ((Program("other", "/bin/other", 1, 0o100755, "d"),), "tool is missing"),
        ((Program("tool", "/bin/tool", 1, 0o040755, "d"),), "/bin/tool is no regular file"),
        ((Program("tool", "/bin/tool", 1, 0o100644, "d"),), "/bin/tool is not executable"),
        ((Program("tool", "/bin/tool", 0, 0o100755, "d"),), "/bin/tool is empty"),
        ((Program("tool", "/bin/tool", 1, 0o100755, ""),), "/bin/tool cannot be read"),
        ((GOOD,), ""),
    ],
)
def test_the_first_thing_that_is_wrong_is_said(recorded, said):
    assert wanting(["tool"], recorded) == said
