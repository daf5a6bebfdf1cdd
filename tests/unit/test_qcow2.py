"""Overlays, with qemu-img as the judge of what is written and of what is read."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tracemalloc
from contextlib import contextmanager

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import ImageError, StoreError
from atoll.image import qcow2
from atoll.image.extents import ZEROES, Extent, joined, overlaid, raw_extents, read_range
from atoll.image.qcow2 import CLUSTER

MIB = 1 << 20
TIB = 1 << 40


def qemu_img(*words):
    return subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, check=True).stdout


def qemu_io(path, *commands):
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", *words, str(path)], capture_output=True, check=True)


@contextmanager
def descriptor(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def extents(path):
    with descriptor(path) as fd:
        return qcow2.read_extents(fd, path, 0)


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "layer.raw"
    path.write_bytes(b"base" * (CLUSTER // 4))
    os.truncate(path, 16 * MIB)
    return path


@pytest.fixture
def overlay(tmp_path, base):
    path = tmp_path / "active.qcow2"
    qcow2.create(path, 16 * MIB, base.name, "raw")
    return path


def test_a_new_overlay_is_what_qemu_calls_one(overlay, base):
    told = json.loads(qemu_img("info", "--output=json", overlay))
    assert (told["format"], told["virtual-size"], told["cluster-size"]) == ("qcow2", 16 * MIB, CLUSTER)
    assert (told["backing-filename"], told["backing-filename-format"]) == (base.name, "raw")
    assert json.loads(qemu_img("check", "--output=json", overlay))["check-errors"] == 0
    assert qcow2.read_header(overlay) == qcow2.Header(16 * MIB, base.name, 3 * CLUSTER, 8192)
    assert (extents(overlay), qcow2.is_empty(overlay)) == ([], True)
    assert overlay.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [0, 512, 4 * TIB, 4 * TIB + 512, 9 * TIB])
def test_a_disk_of_any_size_has_an_overlay(tmp_path, base, size):
    path = tmp_path / "x.qcow2"
    qcow2.create(path, size, base.name, "raw")
    assert json.loads(qemu_img("info", "--output=json", path))["virtual-size"] == size
    assert json.loads(qemu_img("check", "--output=json", path))["check-errors"] == 0
    header = qcow2.read_header(path)
    assert (header.size, header.room) == (size, max(-(-size // (4 * TIB)), 1) * 4 * TIB)


def test_what_qemu_wrote_is_found_where_qemu_finds_it(overlay):
    qemu_io(overlay, "write -P 7 1M 100k", "write -z 5M 1M", "discard 9M 1M", "write -P 1 16777000 216")
    told = [one for one in json.loads(qemu_img("map", "--output=json", overlay)) if one["depth"] == 0]
    wanted = [
        Extent(one["start"], one["length"], 0 if one["data"] else ZEROES, one.get("offset", 0))
        for one in told
    ]
    assert extents(overlay) == joined(wanted)
    assert len(wanted) == 4
    assert not qcow2.is_empty(overlay)


def test_a_written_overlay_reads_as_it_was_meant(tmp_path, base):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(8 * CLUSTER))
    path = tmp_path / "x.qcow2"
    size = 16 * MIB - 512
    with descriptor(source) as fd:
        wanted = [
            Extent(0, CLUSTER, ZEROES),
            Extent(3 * CLUSTER, 2 * CLUSTER, 0, CLUSTER),
            Extent(7 * CLUSTER, CLUSTER, 0, 7 * CLUSTER + 100),  # past the end of its file: zeroes
            Extent(16 * MIB - CLUSTER, CLUSTER - 512, 0, 0),
        ]
        qcow2.write(path, size, base.name, "raw", wanted, [fd])
    assert json.loads(qemu_img("check", "--output=json", path))["check-errors"] == 0
    flat = tmp_path / "flat"
    qemu_img("convert", "-O", "raw", path, flat)
    data = source.read_bytes()
    expected = bytearray(base.read_bytes()[:size])
    expected[:CLUSTER] = bytes(CLUSTER)
    expected[3 * CLUSTER : 5 * CLUSTER] = data[CLUSTER : 3 * CLUSTER]
    expected[7 * CLUSTER : 8 * CLUSTER] = data[7 * CLUSTER + 100 :].ljust(CLUSTER, b"\0")
    expected[16 * MIB - CLUSTER :] = data[: CLUSTER - 512]
    assert flat.read_bytes() == expected
    assert [(one.at, one.length) for one in extents(path)] == [(one.at, one.length) for one in wanted]


def test_runs_may_cross_from_one_table_into_the_next(tmp_path, base):
    path, holes = tmp_path / "x.qcow2", tmp_path / "holes"
    holes.touch()
    os.truncate(holes, 3 << 30)
    with descriptor(holes) as fd:
        small = [Extent(512 * MIB - CLUSTER, 2 * CLUSTER, 0, 0), Extent(1 << 30, 1 << 30, ZEROES)]
        qcow2.write(path, 8 << 30, base.name, "raw", small, [fd])
    assert json.loads(qemu_img("check", "--output=json", path))["check-errors"] == 0
    assert [(one.at, one.length, one.source) for one in extents(path)] == [run[:3] for run in small]


def test_a_disk_grows_in_its_header_and_qemu_agrees(overlay):
    qemu_io(overlay, "write -P 7 1M 64k")
    before = extents(overlay)
    assert qcow2.grow(overlay, TIB)
    assert not qcow2.grow(overlay, 5 * TIB)
    assert qcow2.grow(overlay, 1)
    assert json.loads(qemu_img("info", "--output=json", overlay))["virtual-size"] == TIB
    assert json.loads(qemu_img("check", "--output=json", overlay))["check-errors"] == 0
    assert extents(overlay) == before


def test_nothing_is_left_of_an_overlay_that_cannot_be_written(tmp_path, overlay):
    with pytest.raises(StoreError):
        qcow2.create(tmp_path / "none" / "x.qcow2", MIB, "x", "raw")
    before = overlay.read_bytes()
    with pytest.raises(StoreError):
        qcow2.create(overlay, MIB, "x", "raw")
    assert overlay.read_bytes() == before


def put(path, at, kind, value):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(kind, value))


@pytest.mark.parametrize(
    ("at", "kind", "value"),
    [
        (0, ">I", 0),  # magic
        (4, ">I", 2),  # version
        (8, ">Q", 1 << 40),  # the name below lies outside
        (16, ">I", 5000),
        (20, ">I", 9),  # cluster_bits
        (24, ">Q", 5 * TIB),  # more than the L1 table reaches
        (32, ">I", 1),  # encrypted
        (36, ">I", 1 << 31),  # L1 entries
        (40, ">Q", 1),  # L1 not aligned
        (40, ">Q", 1 << 62),
        (72, ">Q", 2),  # marked corrupt
        (72, ">Q", 4),  # external data
        (72, ">Q", 16),  # extended L2 entries
        (100, ">I", 8),  # header_length
        (3 * CLUSTER, ">Q", 1 << 40),  # L2 past the end
        (3 * CLUSTER, ">Q", 512),
        (3 * CLUSTER, ">Q", 4 * CLUSTER | 1),
        (3 * CLUSTER + 8, ">Q", 4 * CLUSTER),  # the same L2 table twice
        (4 * CLUSTER, ">Q", 1 << 62 | 512),  # compressed
        (4 * CLUSTER, ">Q", 5 * CLUSTER + 512),
        (4 * CLUSTER, ">Q", 5 * CLUSTER | 2),
    ],
)
def test_what_no_overlay_of_ours_has_is_refused(overlay, at, kind, value):
    qemu_io(overlay, "write -P 7 1M 64k")
    qcow2.grow(overlay, TIB)
    put(overlay, at, kind, value)
    with pytest.raises(ImageError) as caught:
        extents(overlay)
    assert caught.value.code == "image.disk"


def test_one_cluster_cannot_be_read_any_number_of_times(overlay):
    qemu_io(overlay, "write -P 7 1M 64k")
    with overlay.open("r+b") as file:
        file.seek(4 * CLUSTER)
        file.write(struct.pack(">Q", 5 * CLUSTER) * 256)
    with pytest.raises(ImageError, match="more clusters"):
        extents(overlay)


def with_many_runs(path, tables):
    """An overlay whose tables have zeroes and nothing in turns: 4,096 runs each."""
    qcow2.create(path, tables << 29, "layer.raw", "raw")
    first = path.stat().st_size // CLUSTER
    with path.open("r+b") as file:
        file.seek(3 * CLUSTER)
        file.write(struct.pack(f">{tables}Q", *((first + number) * CLUSTER for number in range(tables))))
        file.seek(first * CLUSTER)
        file.write(struct.pack(">QQ", 1, 0) * (CLUSTER // 16) * tables)


def test_a_file_from_elsewhere_is_looked_through_in_little_memory(tmp_path):
    with_many_runs(tmp_path / "x", 12)
    tracemalloc.start()
    try:
        qcow2.require_plain(tmp_path / "x", "layer.raw", "raw")
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_a_file_of_more_runs_than_can_be_held_is_refused(tmp_path, monkeypatch):
    with_many_runs(tmp_path / "x", 2)
    assert len(extents(tmp_path / "x")) == 8192
    monkeypatch.setattr(qcow2, "_MOST_RUNS", 8191)
    with pytest.raises(ImageError, match="runs"):
        extents(tmp_path / "x")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("qcow2") / "x.qcow2"
    qcow2.create(path, 16 * MIB, "layer", "raw")
    data = bytearray(path.read_bytes())
    data += bytes(3 * CLUSTER)
    data[3 * CLUSTER : 3 * CLUSTER + 8] = struct.pack(">Q", 4 * CLUSTER | 1 << 63)
    data[4 * CLUSTER : 4 * CLUSTER + 16] = struct.pack(">QQ", 5 * CLUSTER | 1 << 63, 1)
    path.write_bytes(data)
    return path


places = st.one_of(
    st.integers(0, 200),
    st.integers(3 * CLUSTER, 3 * CLUSTER + 40),
    st.integers(4 * CLUSTER, 4 * CLUSTER + 40),
)


@examples(2)
@given(damage=st.dictionaries(places, st.integers(0, 255), max_size=12), cut=st.integers(0, 7 * CLUSTER))
def test_a_damaged_file_is_refused_or_read_within_its_bounds(written, damage, cut):
    data = bytearray(written.read_bytes())
    for at, value in damage.items():
        data[at] = value
    fd = os.memfd_create("damaged")
    try:
        os.write(fd, data[: len(data) - cut] if cut % 2 else data)
        found = qcow2.read_extents(fd, written, 0)
    except ImageError:
        return
    finally:
        os.close(fd)
    size = struct.unpack_from(">Q", data, 24)[0]
    at = 0
    for one in found:
        assert at <= one.at < one.end <= size
        assert one.source == ZEROES or 0 < one.offset < len(data)
        at = one.end


@st.composite
def runs(draw, source):
    """Runs in order on a disk of 40 bytes."""
    found, at = [], 0
    for gap, length, zero in draw(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9), st.booleans()))):
        begin = at + gap
        at = begin + length
        if at > 40:
            break
        found.append(Extent(begin, length, ZEROES if zero else source, 0 if zero else begin + 100))
    return found


def naive(extents, size):
    shown = [None] * size
    for one in extents:
        for place in range(one.at, min(one.end, size)):
            shown[place] = (one.source, 0 if one.source == ZEROES else one.offset + place - one.at)
    return shown


@given(upper=runs(1), lower=runs(0), size=st.integers(0, 44))
def test_laid_over_one_another_the_upper_shows_and_else_the_lower(upper, lower, size):
    found = overlaid(upper, lower, size)
    above, below = naive(upper, size), naive(lower, size)
    assert naive(found, size) == [one or other for one, other in zip(above, below, strict=True)]
    assert found == joined(found) == sorted(found)
    assert all(one.length > 0 and one.end <= size for one in found)


def test_a_raw_file_is_its_parts_that_are_no_holes(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(MIB)
        file.seek(CLUSTER)
        file.write(b"x" * CLUSTER)
    with descriptor(path) as fd:
        (found,) = raw_extents(fd, 3)
        assert (found.at, found.length, found.source, found.offset) == (CLUSTER, CLUSTER, 3, CLUSTER)
        past = Extent(0, 2 * MIB, 0, 0)
        assert read_range([fd], past, MIB - 10, 20) == bytes(20)
        assert read_range([fd], past, 2 * MIB, 20) == b""


@pytest.mark.parametrize("clusters", [0, 1, 32_760, 32_768, 40_000, 1 << 26, 3 << 28])
def test_each_cluster_of_a_new_file_has_a_refcount(clusters):
    plan = qcow2._Layout.of(64 * TIB, [Extent(0, clusters * CLUSTER, 0)] if clusters else [])
    table, blocks = plan.blocks - 1, plan.l1 - plan.blocks
    assert (blocks - 1) * CLUSTER // 2 < plan.end <= blocks * CLUSTER // 2
    assert (table - 1) * CLUSTER // 8 < blocks <= table * CLUSTER // 8
    assert plan.end == 1 + table + blocks + plan.l1_clusters + len(plan.tables) + clusters
    assert len(plan.tables) == -(-clusters // 8192)
