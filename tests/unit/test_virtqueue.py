"""A queue gives what the guest has offered, and nothing else whatever stands in its memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rings import INDIRECT, NEXT, WRITE, GuestRing

from atoll.vsock.virtqueue import LONGEST, Addresses, Memory, Queue, Region, split

GUEST, USER, SIZE = 1 << 20, 1 << 32, 1 << 16
BUFFERS = 1 << 15


class Setting:
    """A queue of the device and the ring of the guest that it is."""

    def __init__(self, size=8, *, indirect=True, event_idx=False):
        self.view = memoryview(bytearray(SIZE))
        self.ring = GuestRing(self.view, 0, size)
        self.queue = Queue()
        self.queue.size, self.queue.indirect, self.queue.event_idx = size, indirect, event_idx
        self.queue.start(Memory([Region(GUEST, USER, self.view)]), self.ring.addresses(USER))

    def table(self, place, entries):
        """Write an indirect table at ``place``; its address."""
        for number, entry in enumerate(entries):
            struct.pack_into("<QIHH", self.view, place + 16 * number, *entry)
        return GUEST + place

    def broken_by_peeking(self):
        assert self.queue.pending()
        assert self.queue.peek() is None
        assert not self.queue.live
        assert not self.queue.pending()
        return self.queue.broken


def test_a_buffer_comes_in_the_parts_in_which_it_was_offered():
    setting = Setting()
    setting.view[BUFFERS : BUFFERS + 5] = b"hello"
    here = GUEST + BUFFERS
    head = setting.ring.add([(here, 2, False), (here + 2, 3, False), (here + 8, 4, True)])
    assert setting.queue.pending() == 1
    chain = setting.queue.peek()
    assert (chain.head, [bytes(part) for part in chain.readable]) == (head, [b"he", b"llo"])
    chain.writable[0][:] = b"back"
    setting.queue.push(head, 4)
    assert setting.ring.returned() == [(head, 4)]
    assert bytes(setting.view[BUFFERS + 8 : BUFFERS + 12]) == b"back"
    assert setting.queue.pending() == 0


def test_buffers_ahead_can_be_looked_at_before_they_are_taken():
    setting = Setting()
    heads = [setting.ring.add([(GUEST + BUFFERS + 64 * number, 64, True)]) for number in range(8)]
    assert [setting.queue.peek(ahead).head for ahead in range(8)] == heads
    assert setting.queue.pending() == 8


def test_indices_run_over_their_end():
    setting = Setting(size=4)
    setting.ring.offered = setting.ring.seen = setting.queue.last = 0xFFFE
    setting.view[setting.ring.used + 2 : setting.ring.used + 4].cast("H")[0] = 0xFFFE
    setting.queue.start(Memory([Region(GUEST, USER, setting.view)]), setting.ring.addresses(USER))
    for number in range(6):
        head = setting.ring.add([(GUEST + BUFFERS, 1, True)])
        assert setting.queue.peek().head == head
        setting.queue.push(head, number)
        assert setting.ring.returned() == [(head, number)]
    assert setting.queue.last == 4


def test_an_indirect_table_is_a_chain_of_its_own_behind_the_first_parts():
    setting = Setting()
    here = GUEST + BUFFERS
    entries = [(here, 1, NEXT, 2), (0, 0, 0, 0), (here + 1, 2, WRITE, 0)]
    setting.ring.describe(0, here + 100, 3, NEXT, 5)
    setting.ring.describe(5, setting.table(0x4000, entries), 48, INDIRECT)
    setting.ring.offer(0)
    chain = setting.queue.peek()
    assert [len(part) for part in chain.readable] == [3, 1]
    assert [len(part) for part in chain.writable] == [2]


@pytest.mark.parametrize(
    ("number", "descriptors", "reason"),
    [
        (8, {}, "descriptor 8 of 8"),
        (0xFFFF, {}, "descriptor 65535 of 8"),
        (0, {0: (GUEST, 1, NEXT, 9)}, "descriptor 9 of 8"),
        (0, {0: (GUEST, 1, NEXT, 0)}, "a chain without end"),
        (0, {0: (GUEST, 1, NEXT, 3), 3: (GUEST, 1, NEXT, 0)}, "a chain without end"),
        (0, {0: (GUEST, 0, 0, 0)}, "a descriptor of no bytes"),
        (0, {0: (GUEST + SIZE - 1, 2, 0, 0)}, "a buffer outside the guest's memory"),
        (0, {0: (GUEST - 1, 2, WRITE, 0)}, "a buffer outside the guest's memory"),
        (0, {0: (0, 1, 0, 0)}, "a buffer outside the guest's memory"),
        (0, {0: (2**64 - 1, 2**32 - 1, 0, 0)}, "a buffer outside the guest's memory"),
        (
            0,
            {0: (GUEST, 1, NEXT | WRITE, 1), 1: (GUEST, 1, 0, 0)},
            "a readable descriptor behind a writable one",
        ),
        (0, {0: (GUEST, 16, INDIRECT | NEXT, 1)}, "an indirect table that is not allowed there"),
        (0, {0: (GUEST, 0, INDIRECT, 0)}, "an indirect table of 0 bytes"),
        (0, {0: (GUEST, 17, INDIRECT, 0)}, "an indirect table of 17 bytes"),
        (
            0,
            {0: (GUEST, 16 * (LONGEST + 1), INDIRECT, 0)},
            f"an indirect table of {16 * (LONGEST + 1)} bytes",
        ),
        (0, {0: (GUEST + SIZE - 8, 16, INDIRECT, 0)}, "an indirect table outside the guest's memory"),
    ],
)
def test_what_breaks_the_rules_breaks_the_queue_and_says_why(number, descriptors, reason):
    setting = Setting()
    for place, descriptor in descriptors.items():
        setting.ring.describe(place, *descriptor)
    setting.ring.offer(number)
    assert setting.broken_by_peeking() == reason


def test_a_table_within_a_table_is_refused():
    setting = Setting()
    inner = setting.table(0x5000, [(GUEST, 1, 0, 0)])
    setting.ring.describe(0, setting.table(0x4000, [(inner, 16, INDIRECT, 0)]), 16, INDIRECT)
    setting.ring.offer(0)
    assert setting.broken_by_peeking() == "an indirect table that is not allowed there"


def test_a_table_that_was_not_negotiated_is_refused():
    setting = Setting(indirect=False)
    setting.ring.describe(0, setting.table(0x4000, [(GUEST, 1, 0, 0)]), 16, INDIRECT)
    setting.ring.offer(0)
    assert setting.broken_by_peeking() == "an indirect table that is not allowed there"


def test_a_loop_within_a_table_ends():
    setting = Setting()
    entries = [(GUEST, 1, NEXT, 1), (GUEST, 1, NEXT, 0)]
    setting.ring.describe(0, setting.table(0x4000, entries), 32, INDIRECT)
    setting.ring.offer(0)
    assert setting.broken_by_peeking() == "a chain without end"


@pytest.mark.parametrize("index", [9, 0x8000, 0xFFFF])
def test_an_index_that_runs_ahead_of_the_queue_breaks_it(index):
    setting = Setting()
    setting.view[setting.ring.available + 2 : setting.ring.available + 4].cast("H")[0] = index
    assert setting.queue.pending() == 0
    assert setting.queue.broken == f"{index} buffers offered in a queue of 8"


@pytest.mark.parametrize("size", [0, 3, 65_536])
def test_a_queue_of_no_allowed_size_is_never_used(size):
    queue = Queue()
    queue.size = size
    queue.start(Memory([Region(GUEST, USER, memoryview(bytearray(1 << 20)))]), Addresses(USER, USER, USER))
    assert queue.broken == f"a queue of {size} descriptors"
    assert not queue.live


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        (Addresses(USER + 8, USER + 512, USER + 256), "a ring that is not aligned"),
        (Addresses(USER, USER + 514, USER + 256), "a ring that is not aligned"),
        (Addresses(USER, USER + 512, USER + 257), "a ring that is not aligned"),
        (Addresses(USER + SIZE, USER, USER), "a ring outside the guest's memory"),
        (Addresses(USER, USER + SIZE - 64, USER), "a ring outside the guest's memory"),
        (Addresses(USER, USER, USER - 2), "a ring outside the guest's memory"),
    ],
)
def test_a_ring_that_is_not_in_the_memory_is_never_used(addresses, reason):
    queue = Queue()
    queue.size = 8
    queue.start(Memory([Region(GUEST, USER, memoryview(bytearray(SIZE)))]), addresses)
    assert (queue.broken, queue.live) == (reason, False)


def test_a_buffer_does_not_reach_from_one_region_into_another():
    memory = Memory(
        [Region(0, USER, memoryview(bytearray(64))), Region(64, USER + 64, memoryview(bytearray(64)))]
    )
    assert memory.guest(60, 4) is not None
    assert memory.guest(60, 5) is None
    assert memory.user(USER + 64, 64) is not None
    assert memory.user(USER + 63, 2) is None


def test_the_guest_is_told_only_when_it_wants_to_be():
    setting = Setting()

    def give_back():
        head = setting.ring.add([(GUEST + BUFFERS, 1, True)])
        setting.queue.push(head, 0)
        setting.ring.returned()
        return setting.queue.wants_call()

    assert give_back()
    assert not setting.queue.wants_call()  # of nothing new
    setting.view[setting.ring.available : setting.ring.available + 2].cast("H")[0] = 1
    assert not give_back()


def test_with_event_indices_the_guest_is_told_at_the_buffer_it_names():
    setting = Setting(event_idx=True)
    wants = setting.view[setting.ring.available + 4 + 16 : setting.ring.available + 6 + 16].cast("H")
    wants[0] = 1
    told = []
    for _ in range(3):
        head = setting.ring.add([(GUEST + BUFFERS, 1, True)])
        setting.queue.push(head, 0)
        setting.ring.returned()
        told.append(setting.queue.wants_call())
    assert told == [False, True, False]
    assert not setting.queue.listen()
    asked = setting.view[setting.ring.used + 4 + 64 : setting.ring.used + 6 + 64].cast("H")[0]
    assert asked == setting.ring.offered


def test_muting_and_listening_are_seen_by_the_guest():
    setting = Setting()
    flags = setting.view[setting.ring.used : setting.ring.used + 2].cast("H")
    setting.queue.mute()
    assert flags[0] == 1
    assert not setting.queue.listen()
    assert flags[0] == 0
    setting.ring.add([(GUEST + BUFFERS, 1, True)])
    assert setting.queue.listen()


@given(st.binary(max_size=600), st.integers(0, 0xFFFF), st.booleans(), st.data())
def test_no_memory_of_a_guest_makes_a_queue_raise_or_reach_outside(content, index, event_idx, data):
    setting = Setting(event_idx=event_idx)
    outside = bytes(setting.view[setting.ring.end :])
    setting.view[: len(content)] = content
    setting.view[setting.ring.available + 2 : setting.ring.available + 4].cast("H")[0] = index
    for number in range(8):  # addresses that are near the memory are met by chance too seldom
        if data.draw(st.booleans()):
            address = data.draw(st.integers(GUEST - 16, GUEST + SIZE + 16))
            flags, following = data.draw(st.integers(0, 7)), data.draw(st.integers(0, 9))
            setting.ring.describe(number, address, data.draw(st.integers(0, 64)), flags, following)
    while setting.queue.pending():
        chain = setting.queue.peek()
        if chain is None:
            assert setting.queue.broken
            break
        assert 0 < len(chain.readable) + len(chain.writable) <= LONGEST
        setting.queue.push(chain.head, 1)
        setting.queue.wants_call()
        if setting.ring.seen > 100:
            break
        setting.ring.seen += 1
    assert bytes(setting.view[setting.ring.end :]) == outside


@given(st.lists(st.integers(1, 9), max_size=6), st.integers(0, 40))
def test_parts_are_cut_at_any_place(lengths, at):
    content = bytes(range(sum(lengths)))
    parts, start = [], 0
    for length in lengths:
        parts.append(memoryview(content)[start : start + length])
        start += length
    cut = split(parts, at)
    if at > len(content) or not parts:
        assert cut is None
        return
    assert b"".join(cut[0]) == content[:at]
    assert b"".join(cut[1]) == content[at:]
    assert all(len(part) for part in cut[1])
