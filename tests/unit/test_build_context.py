"""What of a directory is built: patterns that leave files out, and what is sent of what is there already."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.building import context
from atoll.building.context import Item, Plan
from atoll.building.ignoring import parse
from atoll.errors import BuildError

#: Lines, a path, and whether it is left out: as Docker's client has it.
TABLE = [
    ("*.key", "a.key", True),
    ("*.key", "sub/a.key", False),
    ("**/*.key", "a.key", True),
    ("**/*.key", "sub/deep/a.key", True),
    ("sub", "sub/deep/a.key", True),
    ("sub/", "sub/deep", True),
    ("/sub", "sub/x", True),
    ("./sub", "sub/x", True),
    ("sub/../other", "other/x", True),
    ("sub/../other", "sub/x", False),
    ("  sub  ", "sub", True),
    ("#sub", "#sub", False),
    (" #sub", "#sub", True),
    ("\\#sub", "#sub", True),
    ("*", "anything", True),
    ("*\n!keep", "keep", False),
    ("*\n!keep", "keep/deep/x", False),
    ("*\n!keep\nkeep/x", "keep/x", True),
    ("*\n!keep\nkeep/x\n!keep/x/y", "keep/x/y", False),
    ("!keep\n*", "keep", True),
    ("docs\n! docs/a.md", "docs/a.md", False),
    ("docs\n!docs/a.md", "docs/b.md", True),
    ("a/**/b", "a/b", True),
    ("a/**/b", "a/x/y/b", True),
    ("a/**/b", "a/xb", False),
    ("a/**", "a/x/y", True),
    ("a/**", "a", False),
    ("**", "any/thing", True),
    ("**/", "any/thing", True),
    ("**a", "b/ca", False),
    ("**a", "b/a", True),
    ("temp?", "temp1", True),
    ("temp?", "temp", False),
    ("temp?", "temp/", False),
    ("[a-c]x", "bx", True),
    ("[^a-c]x", "bx", False),
    ("[^a-c]x", "dx", True),
    ("[a-c]x", "a/x", False),
    ("\\*", "*", True),
    ("\\*", "x", False),
    ("a.b", "axb", False),
    ("a(b|c)+{1}$", "a(b|c)+{1}$", True),
    ("\ufeffbom", "bom", True),
    ("\n\n  \nx", "x", True),
    ("x\r", "x", True),
    (".", "x", False),
]


@pytest.mark.parametrize(("lines", "path", "excluded"), TABLE)
def test_a_path_is_left_out_as_its_lines_say(lines, path, excluded):
    assert parse(lines, name="x").excludes(path) is excluded


@pytest.mark.parametrize("line", ["[", "[]", "[b-a]", "a\\", "!", "[a-]"])
def test_a_line_that_is_no_pattern_is_named(line):
    with pytest.raises(BuildError, match="file, line 2") as caught:
        parse(f"good\n{line}", name="file")
    assert caught.value.code == "build.ignore"


WORDS = st.lists(st.sampled_from(["a", "b", "*", "**", "?", "ab"]), min_size=1, max_size=3).map("/".join)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=4).map("/".join)


def plainly(pattern, path):
    """Whether a pattern of whole words fits, word by word."""

    def fits(words, parts):
        if not words:
            return not parts
        if words[0] == "**":
            return any(fits(words[1:], parts[count:]) for count in range(len(parts) + 1)) and (
                bool(parts) or len(words) > 1
            )
        return (
            bool(parts)
            and bool(re.fullmatch(words[0].replace("*", ".*").replace("?", "."), parts[0]))
            and fits(words[1:], parts[1:])
        )

    return fits(pattern.split("/"), path.split("/"))


@given(st.lists(st.tuples(st.booleans(), WORDS), max_size=4), PATHS)
def test_the_last_line_that_fits_a_path_or_what_it_lies_in_decides(lines, path):
    parts = path.split("/")
    ways = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    excluded = False
    for keep, pattern in lines:
        if any(plainly(pattern, way) for way in ways):
            excluded = not keep
    ignored = parse("\n".join(f"{'!' if keep else ''}{pattern}" for keep, pattern in lines), name="x")
    assert ignored.excludes(path) is excluded
    if not excluded:
        for way in ways[:-1]:
            assert not ignored.excludes(way) or ignored.may_keep_below(way)


@pytest.fixture
def tree(tmp_path):
    place = tmp_path / "tree"
    for name in ("a", "sub/b", "sub/deep/c", "other/d"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)
    (place / "sub" / "link").symlink_to("/etc/passwd")
    return place


def look(place, lines="", *, now=None):
    items, strange = context.survey(
        place, parse(lines, name="x"), now=time.time_ns() + 10**10 if now is None else now
    )
    return items, strange


def names(items):
    return [item.path.decode() for item in items]


def test_what_is_left_out_is_not_looked_at_but_for_what_is_taken_in_again(tree):
    assert names(look(tree)[0]) == [
        "a",
        "other",
        "other/d",
        "sub",
        "sub/b",
        "sub/deep",
        "sub/deep/c",
        "sub/link",
    ]
    assert names(look(tree, "sub\nother\n!sub/deep")[0]) == ["a", "sub", "sub/deep", "sub/deep/c"]
    assert names(look(tree, "*\n!**/c")[0]) == ["sub", "sub/deep", "sub/deep/c"]


def test_links_are_links_and_pipes_are_told_of(tree):
    os.mkfifo(tree / "pipe")
    items, strange = look(tree)
    assert strange == [b"pipe"]
    found = {item.path: item for item in items}
    assert (found[b"sub/link"].kind, found[b"sub/link"].link) == ("l", b"/etc/passwd")


def test_a_directory_that_became_a_link_is_not_followed(tree, tmp_path):
    items, _ = look(tree)
    shutil.move(tree / "sub", tmp_path / "away")
    (tree / "sub").symlink_to(tmp_path / "away")
    with pytest.raises(BuildError) as caught:
        list(context.tar(tree, [item for item in items if item.path == b"sub/b"]))
    assert caught.value.code == "build.context"


def test_the_file_beside_the_containerfile_holds_before_those_of_the_context(tree, tmp_path):
    (tree / ".dockerignore").write_text("a")
    assert context.ignored_by(tree, None).excludes("a")
    (tree / ".containerignore").write_text("b")
    assert not context.ignored_by(tree, tmp_path / "Other").excludes("a")
    (tmp_path / "Other.dockerignore").write_text("c")
    assert context.ignored_by(tree, tmp_path / "Other").excludes("c")
    assert not context.ignored_by(tree, tmp_path / "Other").excludes("b")
    assert not context.ignored_by(tree / "sub", None)


def test_what_was_sent_is_not_sent_again_unless_it_changed(tree):
    before, _ = look(tree)
    assert context.plan([], before).sent == tuple(before)
    assert context.plan(before, look(tree)[0]) == Plan((), ())
    (tree / "sub" / "b").write_text("X")
    os.utime(tree / "sub" / "b", ns=(0, {item.path: item for item in before}[b"sub/b"].mtime))
    planned = context.plan(before, look(tree)[0])
    assert names(planned.sent) == ["sub", "sub/b"]
    shutil.rmtree(tree / "sub")
    (tree / "sub").write_text("a file now")
    (tree / "a").unlink()
    planned = context.plan(before, look(tree)[0])
    assert planned.removed == (b"a", b"sub")
    assert names(planned.sent) == ["sub"]


def test_what_was_changed_just_before_the_look_is_sent_once_more(tree):
    now = (tree / "a").stat().st_ctime_ns + 1
    before, _ = look(tree, now=now)
    assert b"a" in {item.path for item in context.plan(before, look(tree, now=now)[0]).sent}


def test_what_is_kept_beside_a_copy_is_read_again_or_nothing(tree):
    items, _ = look(tree)
    assert context.decode(context.encode(items)) == items
    assert context.decode(b"\xc1 torn") == []


def test_a_copy_becomes_what_the_context_is(tree, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    before = []
    for change in (
        lambda: None,
        (tree / "sub" / "b").unlink,
        lambda: (shutil.rmtree(tree / "other"), (tree / "other").symlink_to("sub")),
        lambda: os.mkdir(tree / "new", 0o700),
    ):
        change()
        items, _ = look(tree)
        planned = context.plan(before, items)
        for path in planned.removed:
            subprocess.run(["rm", "-rf", os.fsencode(copy) + b"/" + path], check=True)
        data = b"".join(context.tar(tree, planned.sent))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(copy, filter="fully_trusted")
        before = items
        strip = [(item.path, item.kind, item.mode, item.size, item.link) for item in items]
        assert strip == [(item.path, item.kind, item.mode, item.size, item.link) for item in look(copy)[0]]


def test_a_file_that_became_shorter_ends_with_zeros_and_one_that_has_gone_is_left_out(tree):
    items, _ = look(tree)
    (tree / "a").write_text("")
    (tree / "other" / "d").unlink()
    data = b"".join(context.tar(tree, items))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.extractfile("a").read() == b"\0"
        assert "other/d" not in archive.getnames()


@given(st.lists(st.tuples(PATHS, st.sampled_from("fdl"), st.integers(0, 2)), max_size=8), st.data())
def test_each_path_of_a_plan_is_removed_once_and_each_that_differs_is_sent(drawn, data):
    def items(choice):
        found = {
            path.encode(): Item(path.encode(), kind, 0o644, size, 0, stamp=(1, size))
            for path, kind, size in choice
        }
        for path in list(found):
            parts = path.split(b"/")
            for count in range(1, len(parts)):
                parent = b"/".join(parts[:count])
                found[parent] = Item(parent, "d", 0o755, 0, 0)
        return sorted(found.values(), key=lambda item: item.path.split(b"/"))

    before = items(drawn)
    after = items(
        data.draw(st.lists(st.tuples(PATHS, st.sampled_from("fdl"), st.integers(0, 2)), max_size=8))
    )
    planned = context.plan(before, after)
    copy = {item.path: item for item in before}
    for path in planned.removed:
        assert path in copy
        copy = {
            name: item for name, item in copy.items() if name != path and not name.startswith(path + b"/")
        }
    for item in planned.sent:
        parent = item.path.rpartition(b"/")[0]
        assert not parent or copy[parent].kind == "d"
        copy[item.path] = item
    assert copy == {item.path: item for item in after}
