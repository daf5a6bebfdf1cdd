"""Captures, shaping and the audit log of a network."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from io import BytesIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader

from atoll.network import audit, pcapng
from atoll.network.audit import AuditLog, Decided, Ended, FlowStatistics, Resolved, Suppressed, Trail
from atoll.network.pcapng import Direction
from atoll.network.shaping import Shape, Shaper

# Captures


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.integers(0, 1 << 62)), max_size=8),
    st.sampled_from([1, 64, pcapng.LARGEST]),
    st.text(max_size=20),
)
def test_scapy_reads_each_frame_with_its_time(frames, snap, comment):
    data = pcapng.section("atoll", comment) + pcapng.interface("dev", snap=snap, comment=comment)
    data += pcapng.interface("other")
    for frame, at in frames:
        data += pcapng.packet(0, at, frame, snap=snap, direction=Direction.OUTBOUND, comment=comment)
    data += pcapng.statistics(0, 1, received=9, dropped=2)
    found = list(RawPcapNgReader(BytesIO(data)))
    assert [frame for frame, _ in found] == [frame[:snap] for frame, _ in frames]
    for (_, meta), (frame, at) in zip(found, frames, strict=True):
        assert meta.tshigh << 32 | meta.tslow == at
        assert (meta.wirelen, meta.linktype, meta.tsresol, meta.ifname) == (len(frame), 1, 10**9, b"dev")


@given(st.binary(max_size=70), st.text(max_size=9))
def test_every_block_is_whole_and_on_four_bytes(frame, comment):
    for block in (
        pcapng.section(comment, comment),
        pcapng.interface(comment, comment=comment),
        pcapng.packet(1, 5, memoryview(frame), comment=comment),
        pcapng.statistics(1, 5, received=1, dropped=0),
    ):
        assert len(block) % 4 == 0
        assert int.from_bytes(block[4:8], "little") == int.from_bytes(block[-4:], "little") == len(block)


def test_a_comment_of_any_length_is_cut_at_a_character():
    block = pcapng.section("x", "ü" * 70_000)
    assert len(block) < 70_000
    block.decode("utf-8", "replace")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark_reads_a_capture_without_a_malformed_packet(tmp_path):
    frame = bytes(
        Ether(src="02:00:00:00:00:01", dst="52:55:0a:00:02:02")
        / IP(src="10.0.2.15", dst="203.0.113.5")
        / UDP(sport=1000, dport=2000)
        / b"hello"
    )
    at = 1_700_000_000_123_456_789
    file = tmp_path / "capture.pcapng"
    file.write_bytes(
        pcapng.section("atoll", "of a test")
        + pcapng.interface("dev", snap=60)
        + pcapng.packet(0, at, frame, snap=60, direction=Direction.INBOUND, comment="first")
        + pcapng.packet(0, at + 1, frame + bytes(100), snap=60)
        + pcapng.statistics(0, at + 2, received=3, dropped=1)
    )
    fields = ("time_epoch", "len", "cap_len", "interface_name", "comment", "packet_flags_direction")
    words = itertools.chain.from_iterable(("-e", f"frame.{field}") for field in fields)
    result = subprocess.run(
        ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "separator=;", *words, "-e", "_ws.malformed"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = result.stdout.splitlines()
    epoch, *rest = first.split(";")
    assert float(epoch) == pytest.approx(1_700_000_000.123456789)
    assert epoch.endswith("123456789")
    assert rest[:4] == [str(len(frame)), str(len(frame)), "dev", "first"]
    assert int(rest[4], 0) == 1
    assert rest[5] == ""
    assert second.split(";")[1:4] == [str(len(frame) + 100), "60", "dev"]


# Shaping


def run(shaper, frames):
    """What comes out, with when; ``frames`` are sizes with times."""
    out = []
    for number, (at, size) in enumerate(frames):
        while shaper.next is not None and shaper.next <= at:
            due = shaper.next
            out += [(due, frame) for frame in shaper.take(due)]
        shaper.put(number.to_bytes(4) + bytes(size), at)
    while shaper.next is not None:
        due = shaper.next
        out += [(due, frame) for frame in shaper.take(due)]
    return out


def numbers(out):
    return [int.from_bytes(frame[:4]) for _, frame in out]


def test_a_shape_of_nothing_changes_nothing():
    shaper = Shaper(Shape(), 1)
    frames = [(at / 10, at) for at in range(20)]
    out = run(shaper, frames)
    assert [at for at, _ in out] == [at for at, _ in frames]
    assert numbers(out) == list(range(20))


def test_latency_delays_each_frame_and_a_rate_one_after_the_other():
    out = run(Shaper(Shape(latency=0.5), 1), [(1.0, 10), (1.25, 10)])
    assert [at for at, _ in out] == [1.5, 1.75]
    out = run(Shaper(Shape(latency=0.5, rate=1000.0), 1), [(1.0, 96), (1.0, 96), (9.0, 96)])
    assert [at for at, _ in out] == pytest.approx([1.6, 1.7, 9.6])


def test_no_more_waits_for_its_turn_than_the_queue_holds():
    shaper = Shaper(Shape(rate=1000.0, queue=500), 1)
    taken = [shaper.put(bytes(100), 0.0) for _ in range(10)]
    assert taken == [True] * 5 + [False] * 5
    assert shaper.dropped == 5
    assert shaper.put(bytes(100), 0.1)
    assert Shaper(Shape(rate=1000.0, queue=0), 1).put(bytes(1500), 0.0)  # a frame of its own always passes


def test_what_is_held_is_bounded_without_a_rate():
    shaper = Shaper(Shape(latency=1000.0), 1)
    while shaper.put(bytes(60_000), 0.0):
        pass
    assert shaper.held <= 32 << 20
    assert shaper.dropped == 1
    shaper.take(2000.0)
    assert shaper.held == 0


SHAPES = st.builds(
    Shape,
    latency=st.sampled_from([0.0, 0.01, 1.0]),
    jitter=st.sampled_from([0.0, 0.005, 2.0]),
    loss=st.sampled_from([0.0, 0.3, 1.0]),
    rate=st.sampled_from([0.0, 1e3, 1e6]),
    queue=st.sampled_from([0, 1000, 1 << 20]),
)


@given(SHAPES, st.lists(st.tuples(st.floats(0, 3), st.integers(0, 2000)), max_size=30), st.integers())
def test_frames_keep_their_order_and_come_when_they_may(shape, steps, seed):
    times = itertools.accumulate(gap for gap, _ in steps)
    frames = list(zip(times, (size for _, size in steps), strict=True))
    shaper = Shaper(shape, seed)
    out = run(shaper, frames)
    assert numbers(out) == sorted(numbers(out))
    assert [at for at, _ in out] == sorted(at for at, _ in out)
    assert len(out) + shaper.lost + shaper.dropped == len(frames)
    for at, frame in out:
        sent, size = frames[int.from_bytes(frame[:4])]
        least = sent + max(0.0, shape.latency - shape.jitter)
        assert at >= least + ((4 + size) / shape.rate if shape.rate else 0.0) - 1e-9
    assert shaper.held == 0
    assert run(Shaper(shape, seed), frames) == out


def test_frames_are_lost_in_about_the_part_that_is_wanted():
    shaper = Shaper(Shape(loss=0.25), 7)
    for _ in range(4000):
        shaper.put(b"x", 0.0)
    assert 900 < shaper.lost < 1100


@pytest.mark.parametrize("wrong", [{"loss": 1.5}, {"loss": -0.1}, {"latency": -1.0}, {"rate": -1.0}])
def test_a_shape_that_cannot_be_is_none(wrong):
    with pytest.raises(ValueError, match="negative"):
        Shape(**wrong)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Shape)


# The audit log


def decided(guest="dev", port=443):
    return Decided(
        at=1.5,
        guest=guest,
        protocol="tcp",
        address="203.0.113.5",
        port=port,
        name="a.example",
        verdict="allow",
        rule="allow a.example",
    )


FLOW = FlowStatistics("dev", "tcp", 40000, "203.0.113.5", 443, "a.example", 1.0, sent=10, received=2000)


def test_records_are_lines_that_are_read_back(tmp_path):
    trail, log = Trail(), AuditLog(tmp_path / "audit.jsonl")
    records = [
        decided(),
        Ended.of(FLOW, 3.5, "reset"),
        Resolved(at=2.0, guest="dev", name="b.example", verdict="deny"),
    ]
    for record in records:
        trail.add(record, 0.0)
    log.append(trail.take())
    assert trail.take() == b""
    log.append(b'{"record":"from the future"}\nnot even that\n')
    assert list(log.records()) == records
    ended = records[1]
    assert (ended.seconds, ended.sent, ended.received, ended.why) == (2.5, 10, 2000, "reset")
    line = next(log.lines())
    assert b'"record":"decision"' in line


def test_a_guest_that_asks_for_much_is_counted_and_others_are_not(monkeypatch):
    monkeypatch.setattr(audit, "_BURST", 10)
    trail = Trail()
    for port in range(100):
        trail.add(decided(port=port), 5.0)
    trail.add(decided("other"), 5.0)
    trail.add(decided(port=7777), 6.0)
    trail.add(decided(port=8888), 6.0)
    found = [audit.decode(line) for line in trail.take().splitlines()]
    assert [each.port for each in found[:10]] == list(range(10))
    assert found[10:] == [
        decided("other"),
        Suppressed(at=1.5, guest="dev", count=90),
        decided(port=7777),
        decided(port=8888),
    ]


def test_what_was_counted_is_told_when_its_guest_is_gone(monkeypatch):
    monkeypatch.setattr(audit, "_BURST", 1)
    trail = Trail()
    for _ in range(3):
        trail.add(decided(), 5.0)
    trail.forget("dev", 9.0)
    trail.forget("dev", 9.0)
    assert audit.decode(trail.take().splitlines()[-1]) == Suppressed(at=9.0, guest="dev", count=2)


def test_the_log_is_bounded_and_the_latest_is_kept(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", limit=2000)
    for port in range(100):
        log.append(msgspec.json.encode(decided(port=port)) + b"\n")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 5000
    ports = [record.port for record in log.records()]
    assert ports == list(range(100 - len(ports), 100))
    assert len(ports) > 8


def test_without_its_directory_nothing_is_kept_and_nothing_raised(tmp_path):
    log = AuditLog(tmp_path / "none" / "audit.jsonl")
    log.append(b"{}\n")
    assert list(log.records()) == []
