"""Messages of a vhost-user front-end are put together from any pieces, and refused where they are wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.vsock import vhost_user
from atoll.vsock.vhost_user import Assembler, BadMessageError, Request


def message(request, payload=b"", *, flags=1):
    return struct.pack("<III", request, flags, len(payload)) + payload


def assembled(data, pieces=()):
    """All messages that ``data`` holds, fed in pieces of these lengths."""
    assembler, found, lengths = Assembler(), [], list(pieces)
    while data:
        count = min(assembler.wants, lengths.pop() if lengths else assembler.wants)
        whole = assembler.feed(data[:count], [])
        data = data[count:]
        if whole is not None:
            found.append((whole.request, whole.wants_reply, whole.payload))
    return found


@given(
    st.lists(st.tuples(st.integers(0, 99), st.binary(max_size=300)), max_size=5), st.lists(st.integers(1, 40))
)
def test_messages_come_in_any_pieces(messages, pieces):
    data = b"".join(message(request, payload) for request, payload in messages)
    assert assembled(data, pieces) == [(request, False, payload) for request, payload in messages]


def test_a_reply_that_is_wanted_is_known():
    assert assembled(message(Request.SET_OWNER, flags=9)) == [(Request.SET_OWNER, True, b"")]


def test_a_reply_bears_the_request_and_says_so():
    assert vhost_user.build_reply(1, b"x" * 8) == struct.pack("<III", 1, 5, 8) + b"x" * 8


@pytest.mark.parametrize(
    "data", [message(1, flags=0), message(1, flags=2), message(1, flags=5), struct.pack("<III", 1, 1, 4097)]
)
def test_a_wrong_header_is_refused(data):
    with pytest.raises(BadMessageError):
        assembled(data)


def test_too_many_descriptors_are_refused():
    with pytest.raises(BadMessageError, match="9 descriptors"):
        Assembler().feed(b"\1", list(range(9)))


def test_regions_are_read_in_their_order():
    payload = struct.pack("<II", 2, 0) + struct.pack("<8Q", 1, 2, 3, 4, 5, 6, 7, 8)
    assert [tuple(one) for one in vhost_user.parse_regions(payload)] == [(1, 2, 3, 4), (5, 6, 7, 8)]


@pytest.mark.parametrize(
    "payload",
    [b"", struct.pack("<II", 0, 0), struct.pack("<II", 9, 0) + bytes(9 * 32), struct.pack("<II", 1, 0)],
)
def test_wrong_regions_are_refused(payload):
    with pytest.raises(BadMessageError):
        vhost_user.parse_regions(payload)


def test_what_is_told_of_rings_is_read():
    assert vhost_user.parse_ring_state(struct.pack("<II", 1, 128)) == (1, 128)
    assert vhost_user.parse_ring_fd(struct.pack("<Q", 0x101)) == (1, False)
    ring, addresses = vhost_user.parse_addresses(struct.pack("<IIQQQQ", 1, 0, 16, 32, 48, 0))
    assert (ring, addresses.descriptors, addresses.used, addresses.available) == (1, 16, 32, 48)


@given(st.binary(max_size=80))
def test_no_payload_raises_anything_else(payload):
    for parse in (
        vhost_user.parse_number,
        vhost_user.parse_ring_state,
        vhost_user.parse_ring_fd,
        vhost_user.parse_addresses,
        vhost_user.parse_regions,
        vhost_user.parse_config,
    ):
        try:
            parse(payload)
        except BadMessageError:
            continue
