"""What is told of two trees is how they differ, whatever was written over which root."""

from __future__ import annotations

import asyncio
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.cli.output import quoted
from atoll.errors import GuestError, ProtocolError
from atoll.guest.file_messages import Records
from atoll.guest.survey import End, Entry, Pieces, Record, alike
from atoll.image.extents import Extent
from atoll.snapshot.differences import Change, Changed, difference_of, pairs_of, verdict

NAMES = st.sampled_from([b"a", b"b", b"c", b"odd\n\xff"])
FILES = st.tuples(st.sampled_from([b"", b"one", b"two", b"other"]), st.sampled_from([0o600, 0o644]))
TREES = st.recursive(FILES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8).filter(
    lambda tree: isinstance(tree, dict)
)


def flat(tree, path=b""):
    """All files of a tree by their paths: contents and mode, or None for a directory."""
    found = {path: None}
    for name, inner in tree.items():
        below = path + b"/" + name if path else name
        found |= flat(inner, below) if isinstance(inner, dict) else {below: inner}
    return found


def entry(file):
    if file is None:
        return Entry("directory", 0o755, 0, 0, 0)
    return Entry("file", file[1], 0, 0, len(file[0]))


def records(base, tree, *, touched=()):
    """What an overlay of ``tree`` over ``base`` holds; ``touched`` files were written as they were."""
    before, after = flat(base), flat(tree)
    return [
        Record(
            path,
            entry(after[path]) if path in after else None,
            entry(before[path]) if path in before else None,
        )
        for path in before.keys() | after.keys()
        if before.get(path, ()) != after.get(path, ()) or path in touched
    ]


def told(one, other, first, second, *, shared):
    """What is told of two trees whose contents can be looked at."""
    before, after = flat(first), flat(second)
    found = {}
    for pair in pairs_of(one, other, shared=shared):
        said = verdict(pair, Changed(None))
        if said is True:
            said = verdict(pair, Changed(None), before[pair.path][0] == after[pair.path][0])
        if said:
            found[pair.path] = said
    return found


def expected(first, second):
    before, after = flat(first), flat(second)
    found = {}
    for path in before.keys() | after.keys():
        if path not in after:
            found[path] = Change.DELETED
        elif path not in before:
            found[path] = Change.ADDED
        elif (before[path] is None) != (after[path] is None):
            found[path] = Change.TYPE
        elif before[path] != after[path]:
            found[path] = Change.CONTENT if before[path][0] != after[path][0] else Change.METADATA
    return found


@given(TREES, TREES, TREES, st.data())
def test_trees_over_the_same_root_differ_as_they_do(base, first, second, data):
    common = sorted(flat(base).keys() & flat(first).keys())
    touched = data.draw(st.sets(st.sampled_from(common))) if common else ()
    one, other = records(base, first, touched=touched), records(base, second)
    assert told(one, other, first, second, shared=True) == expected(first, second)


@given(TREES, TREES)
def test_trees_over_different_roots_differ_as_they_do(first, second):
    one, other = (
        [Record(path, entry(file)) for path, file in flat(tree).items()] for tree in (first, second)
    )
    assert told(one, other, first, second, shared=False) == expected(first, second)


def test_differences_come_by_path_as_a_tree_is_walked():
    one = [Record(path, entry((b"", 0o600))) for path in (b"a-b", b"a/b", b"a", b"")]
    assert [pair.path for pair in pairs_of(one, [], shared=False)] == [b"", b"a", b"a/b", b"a-b"]


def placed(*runs, inode=7):
    place = struct.pack("<QQQ", inode, 1, 2) + b"".join(struct.pack("<QQQI", 0, *run, 1) for run in runs)
    return Entry("file", 0o600, 0, 0, 9, place=place)


def test_a_file_that_lies_where_nothing_was_written_is_the_same():
    changed = Changed([Extent(131072, 65536, 0, 0), Extent(0, 4096, -1, 0)])
    assert not changed.holds(placed((4096, 126976)), placed((4096, 126976)))
    assert not changed.holds(placed(), placed())
    assert changed.holds(placed((4096, 126977)), placed((4096, 126977)))
    assert changed.holds(placed((4096, 1)), placed((8192, 1)))
    assert changed.holds(placed((4096, 1)), placed((4096, 1), inode=8))
    assert Changed(None).holds(placed((4096, 1)), placed((4096, 1)))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=6),
    st.integers(0, 80),
    st.integers(1, 20),
)
def test_a_run_is_touched_by_what_lies_in_it(runs, at, length):
    changed = Changed([Extent(start, size, 0, 0) for start, size in runs])
    touched = {byte for start, size in runs for byte in range(start, start + size)}
    assert changed.touches(at, length) is bool(touched & set(range(at, at + length)))


def stream(content, cuts, *, holes=True):
    """A file as the guest tells of it, in pieces of these sizes; what is zero may be left out."""
    at, found = 0, b""
    for cut in [*cuts, len(content)]:
        part = content[at : at + cut]
        if part and not (holes and not any(part)):
            found += struct.pack("<QI", at, len(part)) + part
        at += len(part)
    return found + struct.pack("<QI", len(content), 0)


async def pieces(data, step):
    cutter = Pieces()
    for at in range(0, len(data), step):
        cutter.feed(data[at : at + step])
        while (piece := cutter.take()) is not None:
            yield piece


CONTENTS = st.lists(st.sampled_from([b"\0", b"\0\0\0", b"a", b"bc"]), max_size=8).map(b"".join)
CUTS = st.lists(st.integers(1, 4), max_size=6)


@given(st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=3), CUTS, CUTS, st.integers(1, 20))
def test_contents_are_compared_however_they_are_cut(files, one, other, step):
    left = b"".join(stream(first, one) for first, _ in files)
    right = b"".join(stream(second, other, holes=False) for _, second in files)

    async def compare():
        first, second = pieces(left, step), pieces(right, 7)
        return [await alike(first, second) for _ in files]

    assert asyncio.run(compare()) == [first == second for first, second in files]


@given(st.binary(max_size=60))
def test_what_a_guest_makes_up_is_refused_or_read(data):
    cutter = Pieces()
    cutter.feed(data)
    try:
        while (piece := cutter.take()) is not None:
            assert isinstance(piece, End) or piece.data
    except (ProtocolError, GuestError):
        pass
    records = Records(Record, limit=32)
    records.feed(data)
    try:
        for record in records:
            assert len(record.path) <= 4096
    except ProtocolError:
        pass


def test_a_record_is_checked():
    def read(**fields):
        body = msgspec.msgpack.encode(fields)
        records = Records(Record, limit=200)
        records.feed(struct.pack("<I", len(body)) + body)
        return next(records)

    whole = {"type": "file", "mode": 0o644, "uid": 0, "gid": 0, "size": 5}
    assert read(path=b"a", here=whole).here == Entry("file", 0o644, 0, 0, 5)
    for wrong in ({"type": "door"}, {"mode": 1 << 20}, {"size": -1}, {"uid": 1 << 33}):
        with pytest.raises(ProtocolError):
            read(path=b"a", here={**whole, **wrong})
    with pytest.raises(ProtocolError, match="bytes about files"):
        read(path=b"a" * 300)
    with pytest.raises(ProtocolError, match="twice"):
        pairs_of([Record(b"a"), Record(b"a")], [], shared=True)


def test_a_name_takes_one_line_and_stays_exact():
    one = Record(b"new\nline\\\xff", Entry("symlink", 0o777, 0, 0, 0, target=b"\xfe"))
    (pair,) = pairs_of([], [one], shared=False)
    found = difference_of(pair, Change.ADDED)
    assert found.path == "/new\nline\\\udcff"
    assert found.after.target == "\udcfe"
    assert quoted(found.path) == "/new\\nline\\\\\\xff"
    assert quoted("/å b\x1b\u202e") == "/å b\\x1b\\xe2\\x80\\xae"


def test_extended_attributes_are_told_by_name():
    packed = b"user.a\0" + struct.pack("<I", 2) + b"xy" + b"user.b\0" + struct.pack("<I", 0)
    one = Record(b"a", Entry("file", 0o644, 0, 0, 0, xattrs=packed))
    other = Record(b"a", Entry("file", 0o644, 0, 0, 0))
    (pair,) = pairs_of([one], [other], shared=False)
    assert verdict(pair, Changed(None)) is Change.METADATA
    assert difference_of(pair, Change.METADATA).before.xattrs == {"user.a": b"xy", "user.b": b""}
    broken = pair._replace(before=Entry("file", 0o644, 0, 0, 0, xattrs=packed[:-1]))
    with pytest.raises(ProtocolError):
        difference_of(broken, Change.METADATA)
