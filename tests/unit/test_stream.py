"""Migration streams are taken apart as QEMU would have read them, and never wrongly."""

from __future__ import annotations

import json
import struct

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from atoll.hypervisor.qemu.stream import PAGE, Block, StreamError, block_names, split

MACHINE = b"pc-q35-7.2"
CAPABILITIES = b"\x05\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + b"\x0fx-ignore-shared"
DEVICES = b"\x04\x00\x00\x00\x09\x05timer" + bytes(8) + b"\x00\x06 state \xff" + b"\x7e\x00\x00\x00\x09"
ZERO, DATA, CONTINUE, EOS = 2, 8, 32, struct.pack(">Q", 16)
RAM = 2  # the number of its section
FOOTER = b"\x7e\x00\x00\x00\x02"


def string(name):
    return bytes([len(name)]) + name.encode()


def head(subsections=CAPABILITIES):
    return b"QEVM\x00\x00\x00\x03\x07" + struct.pack(">I", len(MACHINE)) + MACHINE + subsections


def start(blocks, *, addressed=True):
    listed = b"".join(
        string(name) + struct.pack(">Q", size) + (struct.pack(">Q", place) if addressed else b"")
        for name, size, place in blocks
    )
    total = sum(size for _, size, _ in blocks)
    return b"\x01\x00\x00\x00\x02\x03ram" + struct.pack(">IIQ", 0, 4, total | 4) + listed + EOS + FOOTER


def record(name, number, content, *, go_on=False):
    """A page of a block; no content is a page of zeroes."""
    flags = (DATA if content else ZERO) | (CONTINUE if go_on else 0)
    return struct.pack(">Q", number * PAGE | flags) + (b"" if go_on else string(name)) + (content or b"\x00")


def section(records, *, last):
    """``records`` of pages: block, number, content."""
    out, before = [], None
    for name, number, content in records:
        out.append(record(name, number, content, go_on=name == before))
        before = name
    return bytes([3 if last else 2]) + struct.pack(">I", RAM) + b"".join(out) + EOS + FOOTER


def tail(devices=DEVICES, page_size=PAGE):
    described = json.dumps({"configuration": {"len": 10}, "page_size": page_size, "devices": []}).encode()
    return devices + b"\x00\x06" + struct.pack(">I", len(described)) + described


BLOCKS = [("ram", 8 * PAGE, 0), ("pc.bios", 2 * PAGE, 0xFFFC0000), ("0000:00:01.0/more", 4 * PAGE, 1 << 32)]
SIZES = {name: size for name, size, _ in BLOCKS}


def whole(*sections, blocks=BLOCKS, subsections=CAPABILITIES, **ending):
    return head(subsections) + start(blocks) + b"".join(sections) + tail(**ending)


class Images:
    """What was taken out, as it would be in files of zeroes."""

    def __init__(self):
        self.content = {name: bytearray(size) for name, size in SIZES.items()}
        self.calls = []

    def write(self, name, offset, pages):
        assert 0 < len(pages) <= 1024
        data = b"".join(pages)
        assert len(data) == len(pages) * PAGE
        self.content[name][offset : offset + len(data)] = data
        self.calls.append((name, offset // PAGE, len(pages)))


def taken(stream, names=("ram",)):
    images = Images()
    done = split(memoryview(stream), dict(zip(names, names, strict=True)), images.write)
    return done, images


def page(seed):
    return bytes([seed]) * PAGE


def code_of(stream, names=("ram",)):
    with pytest.raises(StreamError) as caught:
        taken(stream, names)
    return caught.value.code.removeprefix("snapshot.stream.")


def read(stream):
    """Blocks and pages of a stream, by a reader of its own that trusts it."""
    at = len(head())
    assert stream[:at] == head()
    content, order, before, ended = {}, [], None, False
    at += 5 + 4 + 8
    (left,) = struct.unpack_from(">Q", stream, at)
    at, left = at + 8, left - 4
    while left:
        name = stream[at + 1 : at + 1 + stream[at]].decode()
        size, place = struct.unpack_from(">QQ", stream, at + 1 + len(name))
        at, left = at + 17 + len(name), left - size
        content[name] = bytearray(size)
        order.append((name, size, place))
    at += len(EOS + FOOTER)
    while not ended:
        ended = stream[at] == 3
        at += 5
        while stream[at : at + 8] != EOS:
            (word,) = struct.unpack_from(">Q", stream, at)
            at += 8
            if not word & CONTINUE:
                before = stream[at + 1 : at + 1 + stream[at]].decode()
                at += 1 + len(before)
            offset, size = word & -PAGE, PAGE if word & DATA else 1
            content[before][offset : offset + PAGE] = stream[at : at + size] * (PAGE // size)
            at += size
        assert stream[at : at + 13] == EOS + FOOTER
        at += 13
    return order, content, stream[at:]


pages = st.sampled_from([(name, number) for name, size in SIZES.items() for number in range(size // PAGE)])
records = st.lists(st.tuples(pages, st.sampled_from([b"", b"", page(1), page(2)])), max_size=25)
names = st.sets(st.sampled_from(sorted(SIZES)))


@given(st.lists(records, max_size=2), records, names)
def test_pages_go_to_the_images_and_what_is_left_is_a_stream_of_the_rest(parts, end, wanted):
    sections = [[(*place, content) for place, content in part] for part in (*parts, end)]
    stream = whole(*(section(each, last=number == len(parts)) for number, each in enumerate(sections)))
    expected = {name: bytearray(size) for name, size in SIZES.items()}
    for name, number, content in (one for each in sections for one in each):
        expected[name][number * PAGE : (number + 1) * PAGE] = content or bytes(PAGE)
    done, images = taken(stream, sorted(wanted))
    order, left, rest = read(done.devices)
    assert order == BLOCKS
    assert done.blocks == tuple(Block(*block) for block in BLOCKS)
    assert rest == tail()
    for name in SIZES:
        here, there = (images.content, left) if name in wanted else (left, images.content)
        assert here[name] == expected[name]
        assert not any(there[name])


def test_pages_in_a_row_are_given_at_once_and_zeroes_only_where_something_was():
    first = [("ram", 1, page(1)), ("ram", 2, page(2)), ("ram", 3, b""), ("ram", 4, b""), ("ram", 5, page(5))]
    second = [("ram", 2, b""), ("ram", 3, b""), ("ram", 4, b""), ("ram", 5, b""), ("ram", 2, b"")]
    done, images = taken(whole(section(first, last=False), section(second, last=True)))
    assert images.calls == [("ram", 1, 2), ("ram", 5, 1), ("ram", 2, 1), ("ram", 5, 1), ("ram", 2, 1)]
    assert images.content["ram"] == bytes(PAGE) + page(1) + bytes(6 * PAGE)
    assert done.devices == whole(section([], last=True))


def test_a_run_has_no_more_pages_than_can_be_written_at_once():
    blocks = [("ram", 2000 * PAGE, 0)]
    stream = whole(
        section([("ram", number, page(number % 250 + 1)) for number in range(1500)], last=True), blocks=blocks
    )
    calls = []
    split(memoryview(stream), {"ram": "ram"}, lambda _, offset, run: calls.append((offset // PAGE, len(run))))
    assert calls == [(0, 1024), (1024, 476)]


def test_a_block_can_have_another_name_in_what_is_left():
    done = split(memoryview(whole(section([], last=True))), {"ram": "other"}, lambda *_: None)
    assert [name for name, _, _ in read(done.devices)[0]] == ["other", "pc.bios", "0000:00:01.0/more"]
    assert done.blocks[0].name == "ram"


SAMPLE = whole(
    section([("ram", 0, page(1)), ("ram", 1, b""), ("ram", 2, b""), ("pc.bios", 1, page(3))], last=False),
    section([("pc.bios", 0, b""), ("ram", 4, page(9))], last=True),
)


def test_a_stream_that_is_cut_off_anywhere_is_an_error():
    for length in range(len(SAMPLE)):
        assert code_of(SAMPLE[:length]) == "short"


@examples(2)
@given(st.integers(0, len(SAMPLE) - 1), st.binary(min_size=1, max_size=8))
def test_a_stream_that_was_changed_is_an_error_or_another_stream(at, data):
    changed = SAMPLE[:at] + data + SAMPLE[at + len(data) :]
    try:
        _, images = taken(changed[: len(SAMPLE)])
    except StreamError:
        return
    assert all(len(content) == SIZES[name] for name, content in images.content.items())


def bad_page(flags, rest=b"\x03ram" + bytes(PAGE), number=0):
    return b"\x03\x00\x00\x00\x02" + struct.pack(">Q", number * PAGE | flags) + rest + EOS + FOOTER


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"not a stream", "unknown"),
        (whole().replace(b"QEVM\x00\x00\x00\x03", b"QEVM\x00\x00\x00\x04"), "unknown"),
        (whole(subsections=b"\x05\x12configuration/uuid" + bytes(20)), "unknown"),
        (whole(subsections=b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, 14)), "unknown"),
        (head() + b"\x04\x00\x00\x00\x01\x05early" + bytes(50), "unknown"),
        (head() + b"\x01\x00\x00\x00\x01\x05block" + bytes(50), "unknown"),
        (head() + b"\x08\x00\x02\x00\x00", "unknown"),
        (whole().replace(b"\x03ram\0\0\0\0\0\0\0\x04", b"\x03ram\0\0\0\0\0\0\0\x05"), "unknown"),
        (whole(section([], last=True), page_size=16384), "unknown"),
        (whole(section([], last=True), devices=b"\x08\x00"), "unknown"),
        (whole(), "unknown"),
        (whole(bad_page(0x40)), "unknown"),
        (whole(bad_page(0x80)), "unknown"),
        (whole(bad_page(0x100)), "unknown"),
        (whole(bad_page(0x200)), "unknown"),
        (whole(bad_page(0x04)), "unknown"),
        (whole(bad_page(0x00)), "unknown"),
        (whole(bad_page(ZERO, b"\x03ram\x07")), "unknown"),
        (whole(bad_page(DATA | CONTINUE)), "invalid"),
        (whole(bad_page(DATA, b"\x04none" + bytes(PAGE))), "invalid"),
        (whole(bad_page(DATA, b"\x03\xff\xff\xff" + bytes(PAGE))), "invalid"),
        (whole(bad_page(DATA, number=8)), "invalid"),
        (whole(bad_page(ZERO, b"\x03ram\x00", number=8)), "invalid"),
        (whole(section([("ram", 0, b""), ("ram", 8, b"")], last=True)), "invalid"),
        (whole(section([("ram", 0, page(1)), ("ram", 8, page(1))], last=True)), "invalid"),
        (whole(section([("pc.bios", 0, page(1)), ("pc.bios", 2, page(1))], last=True)), "invalid"),
        (whole(section([], last=True).replace(b"\x00\x00\x00\x02", b"\x00\x00\x00\x03", 1)), "invalid"),
        (whole(section([], last=True).replace(FOOTER, b"\x7e\x00\x00\x00\x03")), "invalid"),
        (whole(section([], last=True), blocks=[("ram", PAGE, 0), ("ram", PAGE, 0)]), "invalid"),
        (whole(section([], last=True), blocks=[("ram", PAGE + 1024, 0), ("b", PAGE - 1024, 0)]), "invalid"),
        (whole(section([], last=True), blocks=[("other", PAGE, 0)]), "invalid"),
        (whole(section([], last=True))[:-1] + b"]", "short"),
    ],
)  # fmt: skip
def test_what_is_not_known_and_what_cannot_be_is_refused(stream, code):
    assert code_of(stream) == code


def of_one_that_runs_on(*sections):
    """A stream of a VM that runs on, with RAM in shared files that is not left out."""
    return head(b"") + start(BLOCKS, addressed=False) + b"".join(sections) + tail()


@given(st.lists(records, min_size=1, max_size=3), names)
def test_of_a_vm_that_runs_on_the_same_is_left_as_of_one_that_stands_still(parts, wanted):
    sections = [section([(*place, content) for place, content in part], last=False) for part in parts]
    addresses = {name: place for name, _, place in BLOCKS}
    images = Images()
    done = split(
        memoryview(of_one_that_runs_on(*sections)),
        {name: name for name in sorted(wanted)},
        images.write,
        addresses=addresses,
    )
    other, others = taken(whole(*sections), sorted(wanted))
    assert done == other
    assert images.content == others.content


@given(records, names)
def test_what_was_passed_is_not_needed_any_more(part, wanted):
    stream = whole(section([(*place, content) for place, content in part], last=True))
    expected, others = taken(stream, sorted(wanted))
    written, images = bytearray(stream), Images()

    def forget(end):
        written[:end] = b"\xee" * end

    names_of = {name: name for name in sorted(wanted)}
    done = split(memoryview(written), names_of, images.write, passed=forget)
    assert done == expected
    assert images.content == others.content


def test_a_long_run_is_passed_while_it_is_read():
    many = [("ram", number, page(1)) for number in range(3000)]
    stream = memoryview(head() + start([("ram", 3000 * PAGE, 0)]) + section(many, last=True) + tail())
    passed = []
    split(stream, {"ram": "ram"}, lambda *_: None, passed=passed.append)
    assert len(passed) == 3
    assert passed == sorted(passed)
    assert passed[0] > 1000 * PAGE
    assert passed[-1] > 2999 * PAGE


@pytest.mark.parametrize("addresses", [None, {}])
def test_a_stream_in_the_other_form_is_refused(addresses):
    stream = (
        of_one_that_runs_on(section([], last=False)) if addresses is None else whole(section([], last=True))
    )
    with pytest.raises(StreamError) as caught:
        split(memoryview(stream), {}, lambda *_: None, addresses=addresses)
    assert caught.value.code == "snapshot.stream.unknown"


def test_the_blocks_of_a_stream_can_be_asked_for_before():
    found = [name for name, *_ in BLOCKS]
    assert list(block_names(memoryview(whole(section([], last=True))), addressed=True)) == found
    live = of_one_that_runs_on(section([], last=False))
    assert list(block_names(memoryview(live), addressed=False)) == found


def test_with_pages_of_4_kib_named_as_on_arm64_it_is_read():
    bits = b"\x05\x1econfiguration/target-page-bits" + struct.pack(">II", 1, 12)
    done, _ = taken(whole(section([], last=True), subsections=bits + CAPABILITIES))
    assert done.devices.startswith(head(bits + CAPABILITIES))
