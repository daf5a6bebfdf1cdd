"""Streams and credit: the host's session against a peer that keeps its own books."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from reference_guest import ReferenceGuest, frame, hello

from atoll.errors import ProtocolError
from atoll.guest import wire
from atoll.guest.session import Data, Replied, Reset, Session, Welcomed, Writable

NONCE = bytes(range(16, 32))


def drain(session: Session) -> bytes:
    data = b"".join(session.outgoing())
    session.sent(len(data))
    assert session.pending == 0
    return data


def welcomed() -> Session:
    session = Session(lambda: NONCE)
    session.begin()
    drain(session)
    assert list(session.receive(hello(NONCE))) == [Welcomed(1)]
    return session


def test_a_session_begins_with_zeros_and_hello():
    session = Session(lambda: NONCE)
    session.begin()
    guest = ReferenceGuest()
    guest.receive(drain(session))
    assert guest.accepted == [(1, 0, 0, b"ATOL\x01\0\x01\0" + NONCE)]


def test_a_guest_that_speaks_no_common_version_is_named():
    session = Session(lambda: NONCE)
    session.begin()
    with pytest.raises(ProtocolError) as caught:
        list(session.receive(hello(NONCE, 0, 0)))
    assert caught.value.code == "protocol.version"


def test_streams_have_odd_ids_that_are_not_used_again():
    session = welcomed()
    first, second = session.open(b"\x80", end=True), session.open(b"\x80", end=True)
    assert (first, second) == (1, 3)
    list(session.receive(frame(3, first, b"\x80", flags=1)))
    assert session.open(b"\x80", end=True) == 5


def test_a_call_is_over_with_its_reply_and_later_frames_of_it_are_ignored():
    session = welcomed()
    stream = session.open(b"\x80", end=True)
    assert list(session.receive(frame(3, stream, b"\x80", flags=1))) == [Replied(stream, b"\x80", end=True)]
    assert list(session.receive(frame(4, stream, b"late"))) == []


def test_sending_stops_when_the_credit_is_used_up_and_goes_on_when_some_comes_back():
    session = welcomed()
    stream = session.open(b"\x80", end=False)
    data = memoryview(bytes(wire.WINDOW + 10))
    assert session.send(stream, data, end=True) == wire.WINDOW
    assert session.send(stream, data[wire.WINDOW :], end=True) == 0
    assert list(session.receive(frame(6, stream, struct.pack("<I", 4)))) == [Writable(stream, 4)]
    assert session.send(stream, data[wire.WINDOW :], end=True) == 4


def test_credit_goes_back_when_a_quarter_of_the_window_is_consumed():
    session = welcomed()
    stream = session.open(b"\x80", end=True)
    drain(session)
    session.consume(stream, wire.WINDOW // 4 - 1)
    assert drain(session) == b""
    session.consume(stream, 1)
    assert drain(session) == frame(6, stream, struct.pack("<I", wire.WINDOW // 4))


@pytest.mark.parametrize(
    ("what", "frames"),
    [
        ("DATA before the reply", frame(4, 1, b"x")),
        ("a second reply", frame(3, 1, b"\x80") * 2),
        ("DATA after END", frame(3, 1, b"\x80", flags=0) + frame(4, 1, b"", flags=1) + frame(4, 1, b"x")),
        ("DATA beyond the window", frame(3, 1, b"\x80") + frame(4, 1, bytes(32768)) * 33),
        ("credit that was never used", frame(6, 1, struct.pack("<I", 1))),
        ("credit of a wrong size", frame(6, 1, b"\0\0")),
        ("a stream opened by the guest", frame(2, 2, b"\x80")),
        ("a second HELLO", hello(NONCE)),
    ],
)
def test_a_guest_that_breaks_the_rules_is_caught(what, frames):
    session = welcomed()
    session.open(b"\x80", end=False)
    with pytest.raises(ProtocolError):
        list(session.receive(frames))


def test_a_reset_ends_the_stream():
    session = welcomed()
    stream = session.open(b"\x80", end=False)
    assert list(session.receive(frame(5, stream, b"\x80"))) == [Reset(stream, b"\x80")]
    assert session.send(stream, memoryview(b"gone")) == 4
    drain(session)


def test_a_request_larger_than_a_frame_is_refused_and_nothing_is_sent():
    session = welcomed()
    with pytest.raises(ProtocolError) as caught:
        session.open(bytes(wire.MAX_PAYLOAD + 1), end=True)
    assert caught.value.code == "protocol.too_large"
    assert drain(session) == b""


@given(st.binary(max_size=500))
def test_arbitrary_input_in_a_session_raises_nothing_but_protocol_errors(data):
    session = welcomed()
    session.open(b"\x80", end=False)
    try:
        list(session.receive(data))
    except ProtocolError:
        session.begin()
        assert next(session.receive(data[:7] + hello(NONCE))) == Welcomed(1)


def parse(data: bytes):
    """Whole frames, cut apart by the lengths in their headers."""
    while data:
        kind, flags, _, stream, length = struct.unpack_from("<BBHII", data)
        assert data[12 + length] == 0xA5
        yield kind, stream, flags, data[12 : 12 + length]
        data = data[13 + length :]


class Traffic(RuleBasedStateMachine):
    """Random traffic on a few streams: nothing is lost, doubled or reordered, no window is overrun."""

    @initialize()
    def connect(self):
        self.session = welcomed()
        self.counter = 0
        self.host_wrote: dict[int, bytes] = {}
        self.guest_read: dict[int, bytes] = {}
        self.guest_wrote: dict[int, bytes] = {}
        self.host_read: dict[int, bytes] = {}
        self.host_credit: dict[int, int] = {}
        self.guest_credit: dict[int, int] = {}
        self.unconsumed: dict[int, int] = {}

    def fresh(self, count: int) -> bytes:
        self.counter += 1
        return (struct.pack("<I", self.counter) * (count // 4 + 1))[:count]

    def a_stream(self, data):
        return data.draw(st.sampled_from(sorted(self.host_wrote)))

    @rule()
    @precondition(lambda self: len(self.host_wrote) < 4)
    def open(self):
        stream = self.session.open(b"\x80", end=False)
        assert list(self.session.receive(frame(3, stream, b"\x80"))) == [Replied(stream, b"\x80", end=False)]
        for books in (self.host_wrote, self.guest_read, self.guest_wrote, self.host_read):
            books[stream] = b""
        self.host_credit[stream] = self.guest_credit[stream] = wire.WINDOW
        self.unconsumed[stream] = 0

    @rule(data=st.data(), count=st.integers(0, 400_000))
    @precondition(lambda self: self.host_wrote)
    def host_sends(self, data, count):
        stream, piece = self.a_stream(data), self.fresh(count)
        taken = self.session.send(stream, memoryview(piece))
        assert taken == min(count, self.host_credit[stream])
        self.host_credit[stream] -= taken
        self.host_wrote[stream] += piece[:taken]

    @rule(data=st.data(), count=st.integers(1, wire.WINDOW))
    @precondition(lambda self: self.host_wrote)
    def guest_grants(self, data, count):
        stream = self.a_stream(data)
        count = min(count, wire.WINDOW - self.host_credit[stream])
        events = list(self.session.receive(frame(6, stream, struct.pack("<I", count))))
        assert events == ([Writable(stream, count)] if count else [])
        self.host_credit[stream] += count

    @rule(data=st.data(), count=st.integers(1, wire.MAX_PAYLOAD))
    @precondition(lambda self: self.host_wrote)
    def guest_sends(self, data, count):
        stream = self.a_stream(data)
        piece = self.fresh(min(count, self.guest_credit[stream]))
        for event in self.session.receive(frame(4, stream, piece)):
            assert isinstance(event, Data)
            self.host_read[event.stream] += event.data
        self.guest_wrote[stream] += piece
        self.guest_credit[stream] -= len(piece)
        self.unconsumed[stream] += len(piece)

    @rule(data=st.data(), part=st.floats(0, 1))
    @precondition(lambda self: self.host_wrote)
    def host_consumes(self, data, part):
        stream = self.a_stream(data)
        count = int(self.unconsumed[stream] * part)
        self.session.consume(stream, count)
        self.unconsumed[stream] -= count

    @invariant()
    def the_books_agree(self):
        if not hasattr(self, "session"):
            return
        for kind, stream, _, payload in parse(drain(self.session)):
            if kind == 4:
                self.guest_read[stream] += payload
            elif kind == 6:
                self.guest_credit[stream] += struct.unpack("<I", payload)[0]
        assert self.guest_read == self.host_wrote
        assert self.host_read == self.guest_wrote
        for stream, credit in self.guest_credit.items():
            held_back = wire.WINDOW - credit - self.unconsumed[stream]
            assert 0 <= held_back < wire.WINDOW // 4


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(stateful_step_count=30)
