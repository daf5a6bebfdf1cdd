"""Trees on the wire: what goes in comes out however it is cut, and nothing but a tree gets through."""

from __future__ import annotations

import itertools
import struct

import msgspec
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ProtocolError
from atoll.guest import tree
from atoll.guest.tree import (
    Content,
    Decoder,
    Directory,
    Fifo,
    File,
    FileEnded,
    Limits,
    Link,
    Symlink,
)

MAX = (1 << 63) - 1
DEFAULTS = Limits()
META = {"mode": 0o755, "uid": 1000, "gid": 100, "mtime": 1_700_000_000_000_000_000}

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)
metadata = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 2**32 - 2),
        "gid": st.integers(0, 2**32 - 2),
        "mtime": st.integers(-(1 << 63), MAX),
    }
)
link_texts = st.binary(min_size=1, max_size=300).filter(lambda text: b"\0" not in text)


@st.composite
def contents(draw):
    """A file's size and its segments."""
    segments, at = [], 0
    for hole, data in draw(st.lists(st.tuples(st.integers(0, 1 << 40), st.binary(min_size=1)), max_size=4)):
        segments.append((at + hole, data))
        at += hole + len(data)
    return at + draw(st.integers(0, 1 << 40)), segments


@st.composite
def trees(draw):
    """Records with their segments, as ``[(entry, segments), ...]``."""
    found = []
    directories, files, taken = [], [], {b""}

    def add(kind, path, **more):
        segments = []
        if kind is File:
            more["size"], segments = draw(contents())
            files.append(path)
        elif kind is Directory:
            directories.append(path)
        elif kind is Symlink:
            more["target"] = draw(link_texts)
        elif kind is Link:
            more["target"] = draw(st.sampled_from(files))
        found.append((kind(path=path, **draw(metadata), **more), segments))

    top = draw(st.sampled_from([Directory, Directory, Directory, File, Symlink, Fifo]))
    add(top, b"")
    for _ in range(draw(st.integers(0, 8)) if top is Directory else 0):
        directory = draw(st.sampled_from(directories))
        path = b"/".join(filter(None, [directory, draw(names)]))
        if path not in taken:
            taken.add(path)
            kinds = [File, Directory, Symlink, Fifo, *([Link] if files else [])]
            add(draw(st.sampled_from(kinds)), path)
    return found


def wire(sent):
    return b"".join(encoded(entry, segments) for entry, segments in sent)


def encoded(entry, segments=()):
    parts = [tree.encode(entry)]
    if isinstance(entry, File):
        parts += [tree.segment(offset, len(data)) + data for offset, data in segments]
        parts.append(tree.segment(entry.size, 0))
    return b"".join(parts)


def record(**fields):
    body = msgspec.msgpack.encode(fields)
    return struct.pack("<I", len(body)) + body


def cut(data, points):
    edges = sorted({min(point, len(data)) for point in points} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def decode(*pieces, limits=DEFAULTS):
    decoder = Decoder(limits)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    decoder.finish()
    return events


def joined(events):
    """Events with content that was cut put together again."""
    found = []
    for event in events:
        if isinstance(event, Content):
            last = found[-1]
            if isinstance(last, Content) and last.offset + len(last.data) == event.offset:
                found[-1] = Content(last.offset, last.data + bytes(event.data))
            else:
                found.append(Content(event.offset, bytes(event.data)))
        else:
            found.append(event)
    return found


def expected(sent):
    for entry, segments in sent:
        yield entry
        if isinstance(entry, File):
            yield from (Content(offset, data) for offset, data in segments)
            yield FileEnded()


TOP = tree.encode(Directory(path=b"", **META))


@given(trees(), st.lists(st.integers(0, 3000)))
def test_a_tree_comes_out_as_it_went_in_however_it_is_cut(sent, points):
    # adjacent segments may come out as one
    assert joined(decode(*cut(wire(sent), points))) == joined(expected(sent))


@given(trees())
def test_a_tree_comes_out_byte_by_byte(sent):
    data = wire(sent)
    assert joined(decode(*(data[at : at + 1] for at in range(len(data))))) == joined(expected(sent))


@given(trees(), st.data())
@examples(3)
def test_damaged_bytes_are_a_protocol_error_or_another_tree(sent, data):
    stream = bytearray(wire(sent))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        match data.draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                stream[at] = data.draw(st.integers(0, 255))
            case "insert":
                stream[at:at] = data.draw(st.binary(max_size=20))
            case "remove":
                del stream[at : at + data.draw(st.integers(1, 20))]
            case "cut":
                del stream[at:]
        if not stream:
            break
    check(bytes(stream))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_protocol_error_or_a_tree(data):
    check(data)
    check(TOP + data)


def check(stream):
    """What is let through obeys the rules; what is not is a ``ProtocolError``."""
    try:
        events = decode(stream)
    except ProtocolError:
        return
    kinds, current = {}, None
    for event in events:
        if isinstance(event, Content):
            assert 0 <= event.offset <= event.offset + len(event.data) <= current.size
        elif not isinstance(event, FileEnded):
            assert event.path not in kinds
            parts = event.path.split(b"/") if event.path else []
            assert not {b"", b".", b".."} & set(parts)
            assert bool(parts) is bool(kinds)
            assert not parts or kinds[b"/".join(parts[:-1])] is Directory
            assert not isinstance(event, Link) or kinds[event.target] is File
            kinds[event.path] = type(event)
            current = event


def test_records_are_what_section_8_says():
    data = tree.encode(Symlink(path=b"a/\xff", target=b"b", **META))
    (length,) = struct.unpack_from("<I", data)
    assert length == len(data) - 4
    assert msgspec.msgpack.decode(data[4:]) == {
        "path": b"a/\xff",
        "type": "symlink",
        "target": b"b",
        **META,
    }
    assert tree.segment(3, 5) == struct.pack("<QI", 3, 5)


def test_keys_that_are_not_known_are_ignored():
    events = decode(record(path=b"", type="fifo", **META, colour="blue"))
    assert events == [Fifo(path=b"", **META)]


@pytest.mark.parametrize(
    "path",
    [
        *(b"..", b".", b"a/..", b"/etc", b"a//b", b"a/", b"/", b"../x", b"a/../b", b"a\0b", b"x" * 256),
        b"missing/x",
        b"",
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(path):
    stream = TOP + tree.encode(Directory(path=b"a", **META))
    with pytest.raises(ProtocolError):
        decode(stream + tree.encode(Fifo(path=path, **META)))


@pytest.mark.parametrize("kind", ["device", "socket", "", None, 1])
def test_other_kinds_are_refused(kind):
    with pytest.raises(ProtocolError):
        decode(record(path=b"", type=kind, **META))


@pytest.mark.parametrize(
    "changes",
    [
        *({"mode": value} for value in (-1, 0o10000, "x", None, 1.5)),
        *({"uid": value} for value in (-1, 2**32 - 1, 2**64 - 1)),
        *({"mtime": value} for value in (2**63, 1.0)),
        *({"size": value} for value in (-1, 2**63, None)),
        *({"path": value} for value in ("", None, 3)),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_refused(changes):
    fields = {"path": b"", "type": "file", "size": 0, **META}
    assert decode(record(**fields) + tree.segment(0, 0))
    with pytest.raises(ProtocolError):
        decode(record(**fields | changes) + tree.segment(0, 0))


@pytest.mark.parametrize("missing", ["path", "type", "mode", "uid", "gid", "mtime", "size"])
def test_a_record_that_lacks_a_key_is_refused(missing):
    fields = {"path": b"", "type": "file", "size": 0, **META}
    del fields[missing]
    with pytest.raises(ProtocolError):
        decode(record(**fields) + tree.segment(0, 0))


@pytest.mark.parametrize("target", [b"", b"a\0b", b"x" * 4096])
def test_a_symbolic_link_that_no_system_takes_is_refused(target):
    with pytest.raises(ProtocolError):
        decode(tree.encode(Symlink(path=b"", target=target, **META)))


@pytest.mark.parametrize("target", [b"", b"dir", b"link", b"later", b"../x", b"/etc/passwd", b"self"])
def test_a_link_to_what_is_no_earlier_file_is_refused(target):
    stream = TOP + tree.encode(Directory(path=b"dir", **META))
    stream += tree.encode(Symlink(path=b"link", target=b"file", **META))
    with pytest.raises(ProtocolError):
        decode(stream + tree.encode(Link(path=b"self", target=target, **META)) + encoded(file(b"later", 0)))


def file(path, size):
    return File(path=path, size=size, **META)


@pytest.mark.parametrize(
    "segments",
    [
        [(0, 11)],
        [(11, 1)],
        [(2**64 - 1, 1)],
        [(2**64 - 1, 2**32 - 1)],
        [(5, 2), (6, 2)],
        [(5, 2), (4, 1)],
        [(5, 2), (5, 2)],
        [(4, 0)],
        [(0, 0)],
        [(11, 0)],
        [(5, 2), (7, 0)],
    ],
)
def test_segments_out_of_order_or_of_the_file_are_refused(segments):
    stream = tree.encode(file(b"", 10))
    for offset, length in segments:
        stream += tree.segment(offset, length) + bytes(min(length, 20))
    with pytest.raises(ProtocolError):
        decode(stream + tree.segment(10, 0))


def test_a_segment_may_be_as_large_as_the_limit_and_no_larger():
    size = tree.MAX_SEGMENT + 1
    whole = bytes(size)
    assert decode(encoded(file(b"", size), [(1, whole[1:])]))
    with pytest.raises(ProtocolError):
        decode(encoded(file(b"", size), [(0, whole)]))


def test_a_record_of_no_or_too_many_bytes_is_refused_at_once():
    for length in (0, tree.MAX_RECORD + 1, 2**32 - 1):
        with pytest.raises(ProtocolError):
            list(Decoder().feed(struct.pack("<I", length)))


def test_a_path_too_long_for_a_record_is_told_by_the_sender():
    with pytest.raises(ProtocolError) as caught:
        tree.encode(Fifo(path=b"x" * 17_000, **META))
    assert caught.value.code == "protocol.too_large"
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("end", [0, 3, 10, -1, -5, -13])
def test_a_tree_that_is_cut_short_is_refused(end):
    stream = encoded(file(b"", 3), [(0, b"abc")])
    with pytest.raises(ProtocolError):
        decode(stream[:end])


@pytest.mark.parametrize(
    ("limits", "path"),
    [(Limits(entries=2), b"b"), (Limits(depth=1), b"a/b"), (Limits(names=10), b"x" * 10)],
    ids=["entries", "depth", "names"],
)
def test_limits_are_told_by_their_code(limits, path):
    stream = TOP + tree.encode(Directory(path=b"a", **META))
    assert len(decode(stream, limits=limits)) == 2
    with pytest.raises(ProtocolError) as caught:
        decode(stream + tree.encode(Fifo(path=path, **META)), limits=limits)
    assert caught.value.code == "protocol.too_large"
