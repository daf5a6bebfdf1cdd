"""What a guest says of files is checked, and told as it is meant."""

from __future__ import annotations

import errno
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import FileError, FileMissingError, GuestError, ProtocolError, UsageError
from atoll.guest.channel import LinkResetError
from atoll.guest.file_errors import REASONS, about_file
from atoll.guest.file_messages import (
    MAX_RECORD,
    Change,
    ChangeKind,
    Entry,
    FileKind,
    Records,
    Status,
    WireKind,
)
from atoll.guest.files import Access, Files
from atoll.guest.messages import Empty
from atoll.guest.watching import Pairing, Watch

STATUS = {"type": "file", "mode": 0o644, "uid": 0, "gid": 0, "size": 5, "mtime": -1_500_000_000}
ENTRY = {"name": b"f", **STATUS}


def record(content):
    body = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    return struct.pack("<I", len(body)) + body


def decode(kind, data):
    records = Records(kind)
    records.feed(data)
    found = list(records)
    records.finish()
    return found


# Records.


@given(
    st.lists(
        st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & {*name} and name.strip(b"."))
    ),
    st.lists(st.integers(min_value=1, max_value=40), min_size=1),
)
def test_records_are_the_same_however_they_are_cut(names, sizes):
    data = b"".join(record({**ENTRY, "name": name}) for name in names)
    records, found, at, turn = Records(Entry), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        records.feed(data[at : at + size])
        found += records
        at, turn = at + size, turn + 1
    records.finish()
    assert [entry.name for entry in found] == names


def test_an_entry_is_told_in_the_units_of_programs():
    (entry,) = decode(Entry, record({**ENTRY, "type": "symlink", "target": b"\xff", "unknown": 1}))
    info = entry.info("/d/f", "f")
    assert (info.name, info.path, info.kind, info.size) == ("f", "/d/f", FileKind.SYMLINK, 5)
    assert (info.modified, info.target) == (-1.5, "\udcff")


@pytest.mark.parametrize(("path", "name"), [("/a/b", "b"), ("b", "b"), ("/a/b/", "b"), ("/", "")])
def test_the_name_of_a_file_is_the_last_of_its_path(path, name):
    assert msgspec.convert(STATUS, Status).info(path).name == name


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": b""},
        {"name": b"a/b"},
        {"name": b"a\0"},
        {"name": b"."},
        {"name": b".."},
        {"name": b"x" * 256},
        {"name": 5},
        {"type": "door"},
        {"mode": 0o10000},
        {"mode": -1},
        {"uid": 1 << 32},
        {"size": -1},
        {"size": 1 << 63},
        {"mtime": 1.5},
        {"target": b"x" * 5000},
    ],
)
def test_an_entry_that_cannot_be_is_refused(wrong):
    with pytest.raises(ProtocolError):
        decode(Entry, record({**ENTRY, **wrong}))


@pytest.mark.parametrize("path", [b"/a", b"a/", b"a//b", b"..", b"a/../b", b".", b"a\0", b"x" * 4097])
def test_a_change_elsewhere_than_below_what_is_watched_is_refused(path):
    with pytest.raises(ProtocolError):
        decode(Change, record({"kind": "created", "path": path}))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", MAX_RECORD + 1),
        struct.pack("<I", 0xFFFF_FFFF) + b"x",
        record(b"\xc1"),
        record(b""),
        record([1]),
        record(ENTRY)[:-1],
        b"\1",
    ],
)
def test_what_is_no_record_is_refused(data):
    with pytest.raises(ProtocolError):
        decode(Entry, data)


# Changes.


def change(kind, path, cookie=0):
    return Change(kind=WireKind(kind), path=path, cookie=cookie)


def told(*changes):
    pairing = Pairing("/top/")
    found = [known for each in changes for known in pairing.take(each)]
    return [(known.kind.value, known.path, known.source) for known in found + pairing.settle()]


def test_both_halves_of_a_move_are_one_change():
    assert told(change("moved_from", b"a", 7), change("moved_to", b"d/b", 7)) == [
        ("moved", "/top/d/b", "/top/a")
    ]


def test_half_a_move_is_a_file_that_came_or_went():
    assert told(change("moved_to", b"a", 7)) == [("created", "/top/a", None)]
    assert told(change("moved_from", b"a", 7)) == [("removed", "/top/a", None)]
    assert told(change("moved_from", b"a", 7), change("moved_to", b"b", 8), change("modified", b"c")) == [
        ("removed", "/top/a", None),
        ("created", "/top/b", None),
        ("modified", "/top/c", None),
    ]


def test_what_is_watched_itself_is_told_by_its_path():
    assert told(change("overflow", b"")) == [(ChangeKind.OVERFLOW, "/top/", None)]


# Errors.


@pytest.mark.parametrize(("number", "reason"), [(number, reason) for number, (reason, _) in REASONS.items()])
def test_an_error_about_a_file_has_its_reason_and_a_hint(number, reason):
    error = about_file(GuestError("x: why", reason="os", errno=number), "x")
    assert type(error) is FileError
    assert (error.code, error.reason, error.errno, error.path) == (f"file.{reason}", reason, number, "x")
    assert error.hint


def test_a_missing_file_has_a_class_of_its_own():
    error = about_file(GuestError("x: why", reason="os", errno=errno.ENOENT), "x")
    assert type(error) is FileMissingError
    assert (error.code, error.reason) == ("file.missing", "missing")


def test_errors_that_are_about_no_file_stay_what_they_are():
    for error in (GuestError("x", reason="resource"), UsageError("x")):
        assert about_file(error, "x") is error
    assert about_file(GuestError("x", reason="os", errno=errno.EIO), "x").code == "file.os"


# Requests, with an agent that says what it is told to.


class ScriptedStream:
    """A stream of a guest: ``data`` comes, or is raised."""

    def __init__(self, reply, data):
        self._reply = reply
        self._data = list(data)
        self.cancelled = False

    async def reply(self, kind):
        return msgspec.convert(self._reply, kind)

    async def accepted(self):
        await self.reply(Empty)
        return self

    async def read(self):
        item = self._data.pop(0) if self._data else b""
        if isinstance(item, Exception):
            raise item
        return item

    def finish(self):
        self._data.clear()

    def cancel(self):
        self.cancelled = True


class ScriptedAgent:
    """An agent that answers each request by the next of ``streams``."""

    def __init__(self, *streams):
        self.streams = list(streams)
        self.requests = []

    def open(self, request, *, end):
        assert end, "none of these sends data"
        self.requests.append(request)
        return self.streams[len(self.requests) - 1]

    async def call(self, request, reply):
        self.requests.append(request)
        return reply()


def files_of(agent, *, user=None, workdir=None, behind=None):
    async def reach():
        return agent

    async def explain(error):
        return behind or error

    return Files(Access(reach, explain, lambda: (user, workdir)))


@pytest.mark.anyio
async def test_more_than_was_asked_for_is_a_violation():
    stream = ScriptedStream(STATUS, [b"12", b"34"])
    with pytest.raises(ProtocolError):
        await files_of(ScriptedAgent(stream)).read("f", length=3)
    assert stream.cancelled


@pytest.mark.anyio
async def test_a_guest_that_never_ends_a_file_or_directory_is_cut_off():
    with pytest.raises(ProtocolError) as caught:
        await files_of(ScriptedAgent(ScriptedStream(STATUS, [b"1234"] * 100))).read("f", limit=10)
    assert caught.value.code == "protocol.too_large"
    with pytest.raises(ProtocolError) as caught:
        await files_of(ScriptedAgent(ScriptedStream({}, [record(ENTRY)] * 100))).list("d", limit=10)
    assert caught.value.code == "protocol.too_large"


@pytest.mark.anyio
async def test_a_list_that_is_cut_short_is_a_violation():
    with pytest.raises(ProtocolError):
        await files_of(ScriptedAgent(ScriptedStream({}, [record(ENTRY)[:-1]]))).list("d")


@pytest.mark.anyio
async def test_what_only_asks_is_asked_again_after_a_loss_of_step():
    lost = LinkResetError("lost")
    agent = ScriptedAgent(ScriptedStream(STATUS, [b"1", lost]), ScriptedStream(STATUS, [b"12"]))
    assert await files_of(agent).read("f") == b"12"
    agent = ScriptedAgent(ScriptedStream({}, [record(ENTRY), lost]), ScriptedStream({}, [record(ENTRY)]))
    assert [info.path for info in await files_of(agent).list("/")] == ["/f"]


@pytest.mark.anyio
async def test_a_watch_tells_of_a_loss_of_step_by_its_path_and_is_over():
    stream = ScriptedStream({}, [record({"kind": "created", "path": b"f"}), LinkResetError("lost")])
    watch = files_of(ScriptedAgent(stream)).watch("/d")
    assert isinstance(watch, Watch)
    assert (await watch.next()).path == "/d/f"
    with pytest.raises(LinkResetError) as caught:
        await watch.next()
    assert caught.value.message == "/d: lost"
    assert await watch.next() is None
    assert stream.cancelled


@pytest.mark.anyio
async def test_requests_are_made_as_the_user_and_from_the_directory_of_commands():
    agent = ScriptedAgent()
    files = files_of(agent, user="alice", workdir="srv")
    await files.remove("f")
    await files.remove(b"\xff", user="root")
    await files_of(agent).move("/a", "/b", replace=False)
    assert [(request.user, request.cwd) for request in agent.requests] == [
        ("alice", "/srv"),
        ("root", "/srv"),
        (None, None),
    ]
    assert (agent.requests[1].path, agent.requests[2].replace) == (b"\xff", False)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", b"", "a\0b", 5, None])
async def test_what_is_no_path_is_refused(path):
    with pytest.raises(UsageError) as caught:
        await files_of(ScriptedAgent()).stat(path)
    assert caught.value.code == "usage.path"


@pytest.mark.anyio
async def test_a_file_is_written_in_one_way():
    with pytest.raises(UsageError) as caught:
        await files_of(ScriptedAgent()).write("f", b"", append=True, exclusive=True)
    assert caught.value.code == "usage.write"
