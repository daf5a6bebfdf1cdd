"""Frames on the wire, against the reference guest and against every way to cut them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_guest import ReferenceGuest, frame, hello

from atoll.errors import ProtocolError
from atoll.guest import wire
from atoll.guest.wire import Decoder, Frame, FrameType, Hello

NONCE = bytes(range(1, 17))

frames = st.builds(
    lambda kind, stream, payload, end: (kind, stream, payload, end),
    st.sampled_from([FrameType.OPEN, FrameType.REPLY, FrameType.DATA, FrameType.RESET, FrameType.CREDIT]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
    st.booleans(),
)


def cut(data: bytes, points: list[int]) -> list[bytes]:
    edges = sorted({min(point, len(data)) for point in points} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 2000)), st.integers(0, 30))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent, points, padding):
    stream = b"".join(
        wire.encode(kind, number, payload, end=end) + bytes(padding) for kind, number, payload, end in sent
    )
    decoder = Decoder()
    got = [found for piece in cut(stream, points) for found in decoder.feed(piece)]
    assert got == [Frame(kind, number, payload, end) for kind, number, payload, end in sent]


@given(st.lists(frames, max_size=8))
def test_the_reference_guest_reads_what_the_host_encodes(sent):
    guest = ReferenceGuest()
    for kind, number, payload, end in sent:
        guest.receive(wire.encode(kind, number, payload, end=end))
    assert guest.accepted == [(int(kind), number, int(end), payload) for kind, number, payload, end in sent]


@given(st.binary(max_size=300), st.lists(frames, max_size=3))
def test_after_the_preamble_a_guest_is_at_a_frame_boundary_whatever_came_before(garbage, sent):
    guest = ReferenceGuest()
    guest.receive(garbage)
    guest.receive(b"".join(wire.encode(kind, n, payload, end=end) for kind, n, payload, end in sent)[:-3])
    guest.receive(wire.resync_preamble())
    assert guest.at_boundary
    accepted = len(guest.accepted)
    guest.receive(wire.encode(FrameType.HELLO, 0, Hello(1, 1, NONCE).encode()))
    assert guest.accepted[-1][0] == FrameType.HELLO, (accepted, guest.accepted)


@pytest.mark.parametrize("cut_at", [1, 5, 8, 9, 10, 11, 12, 13, 500, 32_779, 32_780])
def test_a_frame_cut_short_is_dropped_by_the_guest_not_delivered_with_zeros(cut_at):
    guest = ReferenceGuest()
    guest.receive(wire.encode(FrameType.DATA, 3, b"x" * wire.MAX_PAYLOAD)[:cut_at])
    guest.receive(wire.resync_preamble())
    assert guest.at_boundary
    assert guest.accepted == []


@given(st.binary(max_size=400), st.lists(st.integers(0, 800)), frames)
def test_the_host_discards_everything_before_the_answer_to_its_hello(stale, points, following):
    kind, number, payload, end = following
    decoder = Decoder()
    decoder.resync(NONCE)
    answer = hello(NONCE)
    stream = stale + answer + wire.encode(kind, number, payload, end=end)
    got = [found for piece in cut(stream, points) for found in decoder.feed(piece)]
    assert got[0] == Frame(FrameType.HELLO, 0, answer[12:-1], end=False)
    assert got[1:] == [Frame(kind, number, payload, end)]


def test_a_stale_hello_with_another_nonce_is_not_taken_for_the_answer():
    decoder = Decoder()
    decoder.resync(NONCE)
    assert list(decoder.feed(hello(bytes(16)[:15] + b"x"))) == []
    assert len(list(decoder.feed(hello(NONCE)))) == 1


def test_the_nonce_alone_in_stale_data_is_not_taken_for_the_answer():
    decoder = Decoder()
    decoder.resync(NONCE)
    assert list(decoder.feed(b"junk" * 9 + NONCE + b"more junk" * 9)) == []
    assert len(list(decoder.feed(hello(NONCE)))) == 1


@given(st.binary(max_size=600), st.lists(st.integers(0, 600)))
def test_arbitrary_input_is_frames_or_a_protocol_error(data, points):
    decoder = Decoder()
    try:
        for piece in cut(data, points):
            for found in decoder.feed(piece):
                assert len(found.payload) <= wire.MAX_PAYLOAD
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "header",
    [
        b"\x07\0\0\0" + bytes(8),
        b"\x04\x02\0\0" + bytes(8),
        b"\x04\0\x01\0" + bytes(8),
        b"\x04\0\0\0\x01\0\0\0\x01\x80\0\0",
    ],
)
def test_an_invalid_header_is_refused_at_once(header):
    with pytest.raises(ProtocolError):
        list(Decoder().feed(header))


def test_a_wrong_mark_is_refused_and_a_zero_mark_drops_the_frame():
    with pytest.raises(ProtocolError):
        list(Decoder().feed(frame(4, 1, b"abc")[:-1] + b"\x01"))
    decoder = Decoder()
    assert list(decoder.feed(frame(4, 1, b"abc")[:-1] + b"\0" + frame(4, 1, b"d"))) == [
        Frame(FrameType.DATA, 1, b"d", end=False)
    ]


@given(st.binary(max_size=40))
def test_a_hello_payload_is_read_or_refused(payload):
    read = Hello.decode(payload)
    assert read is None or read.encode() == payload
