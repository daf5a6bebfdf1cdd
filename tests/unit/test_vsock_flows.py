"""Connections of a virtio socket device are as Virtio 1.2, 5.10.6 has them, whatever a guest sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.vsock.flows import MOST, SMALL_WINDOW, WINDOW, Event, Flows, Key, Phase
from atoll.vsock.hello import build_hello, is_accepted, parse_hello
from atoll.vsock.packets import HEADER_SIZE, HOST, STREAM, Header, Op, Shut, build, parse

CID, PORT, GUEST_PORT = 3, 5000, 1234


def packet(op, *, length=0, flags=0, window=WINDOW, taken=0, host=PORT, guest=GUEST_PORT, **others):
    header = Header(CID, HOST, guest, host, length, STREAM, op, flags, window, taken)
    return header._replace(**others)


def answers(flows):
    found = []
    while (header := flows.next_answer()) is not None:
        found.append((Op(header.op), header.flags))
    return found


@pytest.fixture
def flows():
    return Flows(CID)


@pytest.fixture
def opened(flows):
    """A flow that the guest has begun."""
    _, flow = flows.hear(packet(Op.REQUEST))
    flows.accept(flow)
    assert answers(flows) == [(Op.RESPONSE, 0)]
    return flow


def test_a_header_is_44_bytes_and_is_read_as_it_was_written():
    header = packet(Op.RW, length=7)
    assert HEADER_SIZE == len(build(header)) == 44
    assert parse(build(header) + b"payload") == header


def test_a_guest_connects_and_is_answered(flows):
    event, flow = flows.hear(packet(Op.REQUEST, window=4096))
    assert (event, flow.key) == (Event.REQUESTED, Key(PORT, GUEST_PORT))
    flows.accept(flow)
    answer = flows.next_answer()
    assert (answer.op, answer.source_port, answer.target_port) == (Op.RESPONSE, PORT, GUEST_PORT)
    assert (answer.source_cid, answer.target_cid, answer.window) == (HOST, CID, WINDOW)
    assert flow.credit == 4096


def test_a_guest_that_nobody_serves_is_refused(flows):
    _, flow = flows.hear(packet(Op.REQUEST))
    flows.reset(flow)
    assert answers(flows) == [(Op.RST, 0)]
    assert not flows.table


def test_the_host_connects_once_the_guest_has_accepted(flows):
    flow = flows.ask(22)
    request = flows.next_answer()
    assert (request.op, request.target_port) == (Op.REQUEST, 22)
    reply = packet(Op.RESPONSE, host=request.source_port, guest=22)
    assert flows.hear(reply) == (Event.OPENED, flow)
    assert flow.phase is Phase.OPEN


def test_a_refusal_of_the_guest_ends_the_flow(flows):
    flow = flows.ask(22)
    host = flows.next_answer().source_port
    assert flows.hear(packet(Op.RST, host=host, guest=22)) == (Event.RESET, flow)
    assert not flows.table
    assert answers(flows) == []


def test_what_is_sent_to_the_guest_takes_its_credit_until_it_tells(flows, opened):
    flows.hear(packet(Op.CREDIT_UPDATE, window=1000))
    assert flows.header(opened, 600).length == 600
    assert opened.credit == 400
    flows.hear(packet(Op.CREDIT_UPDATE, window=1000, taken=600))
    assert opened.credit == 1000


def test_counters_run_over_their_end(flows, opened):
    opened.sent = opened.peer_taken = 0xFFFFFF00
    opened.received = opened.taken = opened.told = 0xFFFFFF00
    flows.header(opened, 0x200)
    assert opened.sent == 0x100
    flows.hear(packet(Op.RW, length=0x200, window=0x1000, taken=0xFFFFFF00))
    assert opened.credit == 0x1000 - 0x200
    assert opened.room == WINDOW - 0x200
    flows.took(opened, 0x200)
    assert opened.room == WINDOW


def test_credit_that_makes_no_sense_is_none(flows, opened):
    flows.hear(packet(Op.CREDIT_UPDATE, window=1000, taken=5))
    assert opened.credit == 0


def test_the_guest_is_told_of_a_quarter_of_the_smaller_window_and_once(flows, opened):
    flows.hear(packet(Op.RW, length=4096, window=4096))
    flows.took(opened, 1000)
    assert answers(flows) == []
    flows.took(opened, 24)
    flows.took(opened, 2000)
    assert answers(flows) == [(Op.CREDIT_UPDATE, 0)]
    flows.took(opened, 1000)
    assert answers(flows) == []


def test_payload_tells_of_credit_too(flows, opened):
    flows.hear(packet(Op.RW, length=WINDOW // 4))
    flows.took(opened, WINDOW // 4 - 1)
    assert flows.header(opened, 1).taken == WINDOW // 4 - 1
    flows.took(opened, 1)
    assert answers(flows) == []


def test_more_than_was_granted_ends_the_flow(flows, opened):
    assert flows.hear(packet(Op.RW, length=WINDOW)) == (Event.DATA, opened)
    assert flows.hear(packet(Op.RW, length=1)) == (Event.RESET, opened)
    assert answers(flows) == [(Op.RST, 0)]


def test_a_guest_without_credit_is_asked_once(flows, opened):
    flows.starve(opened)
    flows.starve(opened)
    assert answers(flows) == [(Op.CREDIT_REQUEST, 0)]
    flows.hear(packet(Op.CREDIT_UPDATE, window=1))
    flows.starve(opened)
    assert answers(flows) == [(Op.CREDIT_REQUEST, 0)]


def test_a_request_for_credit_is_answered(flows, opened):
    flows.hear(packet(Op.CREDIT_REQUEST))
    flows.hear(packet(Op.CREDIT_REQUEST))
    assert answers(flows) == [(Op.CREDIT_UPDATE, 0)]


def test_each_direction_ends_by_itself(flows, opened):
    assert flows.hear(packet(Op.SHUTDOWN, flags=Shut.SEND)) == (Event.SHUT, opened)
    assert (opened.guest_sends, opened.guest_receives) == (False, True)
    flows.header(opened, 10)
    flows.end(opened, gone=False)
    assert answers(flows) == [(Op.SHUTDOWN, Shut.SEND)]
    assert flows.hear(packet(Op.SHUTDOWN, flags=Shut.RECEIVE)) == (Event.CLOSED, opened)
    assert answers(flows) == [(Op.RST, 0)]


def test_payload_after_its_end_is_an_offence(flows, opened):
    flows.hear(packet(Op.SHUTDOWN, flags=Shut.SEND))
    assert flows.hear(packet(Op.RW, length=1)) == (Event.RESET, opened)


def test_a_host_that_is_gone_takes_no_more_either(flows, opened):
    flows.end(opened, gone=True)
    assert answers(flows) == [(Op.SHUTDOWN, Shut.SEND | Shut.RECEIVE)]


@pytest.mark.parametrize(
    "op", [Op.RESPONSE, Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, 0, 8, 999]
)
def test_what_belongs_to_no_flow_is_refused(flows, op):
    assert flows.hear(packet(op)) == (Event.NOTHING, None)
    assert answers(flows) == [(Op.RST, 0)]


def test_a_reset_is_never_answered(flows):
    flows.hear(packet(Op.RST))
    flows.hear(packet(Op.RST, kind=2))
    assert answers(flows) == []


def test_other_kinds_of_sockets_are_refused(flows):
    assert flows.hear(packet(Op.REQUEST, kind=2)) == (Event.NOTHING, None)
    assert answers(flows) == [(Op.RST, 0)]


@pytest.mark.parametrize("others", [{"source_cid": 4}, {"target_cid": 3}, {"source_cid": 2**64 - 1}])
def test_packets_of_or_to_others_are_dropped(flows, others):
    assert flows.hear(packet(Op.REQUEST)._replace(**others)) == (Event.NOTHING, None)
    assert answers(flows) == []


def test_there_are_no_more_flows_and_no_more_bytes_than_allowed(flows):
    for guest in range(MOST + 10):
        _, flow = flows.hear(packet(Op.REQUEST, guest=guest))
        if flow is not None:
            flows.accept(flow)
        answers(flows)
    assert len(flows.table) == MOST
    assert flows.ask(1) is None
    windows = [flow.window for flow in flows.table.values()]
    assert windows[0] == WINDOW
    assert windows[-1] == SMALL_WINDOW
    assert sum(windows) <= (1 << 26) + MOST * SMALL_WINDOW
    flows.clear()
    assert flows.ask(1).window == WINDOW


def test_answers_that_nobody_takes_crowd_the_guest_out(flows):
    count = 0
    while not flows.crowded:
        flows.hear(packet(Op.RW, guest=count))
        count += 1
    assert count < 1000
    assert flows.ask(1) is None
    answers(flows)
    assert not flows.crowded


ODD = st.integers(0, 2**32 - 1)
PACKETS = st.builds(
    Header,
    st.sampled_from([CID, CID, CID, 9]),
    st.sampled_from([HOST, HOST, HOST, 9]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.one_of(st.integers(0, 70_000), ODD),
    st.sampled_from([STREAM, STREAM, STREAM, 2]),
    st.one_of(st.sampled_from([int(op) for op in Op]), st.integers(0, 65_535)),
    st.integers(0, 3),
    st.one_of(st.integers(0, 70_000), ODD),
    ODD,
)


@given(st.lists(st.tuples(PACKETS, st.integers(0, 5)), max_size=80))
def test_no_packets_make_flows_raise_or_grow(heard):
    flows = Flows(CID, most=4)
    for header, then in heard:
        event, flow = flows.hear(header)
        if event is Event.REQUESTED:
            flows.reset(flow) if then == 1 else flows.accept(flow)
        if event is Event.DATA:
            assert flow.room >= 0
            flows.took(flow, header.length if then else 0)
        for one in list(flows.table.values()):
            assert 0 <= one.room <= one.window
            assert one.credit <= one.peer_window
            if then == 2 and one.credit and one.phase is Phase.OPEN:
                flows.header(one, min(one.credit, 4096))
            if then == 3:
                flows.end(one, gone=False)
        if then == 4:
            flows.ask(1)
        if then == 5:
            flows.next_answer()
        assert len(flows.table) <= 4
        assert all(flows.table[one.key] is one for one in flows.table.values())


def test_a_hello_names_a_port_and_its_own_end():
    assert parse_hello(b"CONNECT 1024\nrest") == (1024, 13)
    assert parse_hello(b"CONNECT 10") is None
    assert parse_hello(build_hello(7)) == (7, 10)
    assert is_accepted(b"OK 1073741824\n")
    assert not is_accepted(b"OK\n")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967295\n",
        b"CONNECT 1 2\n",
        b"GET / HTTP/1.1\r\n",
        b"x" * 32,
    ],
)
def test_another_hello_is_none(line):
    with pytest.raises(ValueError, match="no request"):
        parse_hello(line)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_hello_or_not(data):
    try:
        said = parse_hello(data)
    except ValueError:
        return
    assert said is None or (data[: said[1]].endswith(b"\n") and 0 <= said[0] < 2**32)
