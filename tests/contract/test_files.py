"""``files`` with the real agent, whose guest is this host."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from contextlib import aclosing, suppress

import pytest
from hosted import hosted_agent

from atoll import blocking
from atoll.errors import FileError, FileMissingError, GuestError, ProtocolError
from atoll.guest.file_messages import ChangeKind, FileKind
from atoll.guest.files import Access, Files

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

NOBODY = "65534:65534"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def files_of(agent, *, user=None, workdir=None):
    async def reach():
        return agent

    async def explain(error):
        return error

    return Files(Access(reach, explain, lambda: (user, workdir)))


@pytest.fixture
async def agent():
    async with hosted_agent() as agent:
        yield agent


@pytest.fixture
def files(agent, guest):
    """Relative paths begin in the guest's directory."""
    return files_of(agent, workdir=str(guest))


@pytest.fixture
def guest(tmp_path_factory):
    """A directory that stands for the guest; nobody may look into it."""
    place = tmp_path_factory.mktemp("guest")
    for above in (place, *place.parents[:2]):
        above.chmod(0o755)
    return place


def holders(path):
    """Processes that have a file open."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd")]
        except OSError:
            continue
        found += [process] if str(path) in links else []
    return found


async def pieces(*parts):
    for part in parts:
        yield part


# Reading and writing.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\0\xff" * 700_000, b"\0\xff" * 700_000),
        ("grün", "grün".encode()),
        (bytearray(b"x"), b"x"),
        (b"", b""),
        ([b"a", b"", b"bc"], b"abc"),
        ([], b""),
    ],
)
async def test_what_was_written_is_read(files, guest, data, expected):
    assert await files.write("f", data) == len(expected)
    assert (guest / "f").read_bytes() == expected
    assert await files.read("f") == expected
    assert await files.read(guest / "f", offset=1, length=2) == expected[1:3]


async def test_what_an_asynchronous_iterator_brings_is_written(files, guest):
    large = bytes(range(256)) * 8192
    assert await files.write("a/b/f", pieces(b"head", large, b"tail"), parents=True) == len(large) + 8
    assert (guest / "a" / "b" / "f").read_bytes() == b"head" + large + b"tail"


async def test_text_is_read_in_its_encoding(files, guest):
    (guest / "f").write_bytes("grün".encode("latin-1"))
    assert await files.read_text("f", encoding="latin-1") == "grün"
    assert await files.read_text("f", errors="replace") == "gr\ufffdn"
    with pytest.raises(UnicodeDecodeError):
        await files.read_text("f")


async def test_a_file_is_replaced_at_once_and_keeps_what_it_is(files, guest):
    (guest / "f").write_text("old")
    (guest / "f").chmod(0o640)
    (guest / "link").symlink_to("f")
    before = (guest / "f").stat()
    await files.write("link", "new")
    after = (guest / "f").stat()
    assert (guest / "f").read_text() == "new"
    assert (guest / "link").is_symlink()
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert after.st_ino != before.st_ino
    await files.write("f", "newer", mode=0o755, sync=True)
    assert stat.S_IMODE((guest / "f").stat().st_mode) == 0o755


async def test_a_file_may_be_added_to_written_in_place_or_be_new(files, guest):
    (guest / "f").write_text("one")
    inode = (guest / "f").stat().st_ino
    await files.write("f", " two", append=True)
    assert (guest / "f").read_text() == "one two"
    await files.write("f", "three", in_place=True)
    assert ((guest / "f").read_text(), (guest / "f").stat().st_ino) == ("three", inode)
    with pytest.raises(FileError) as caught:
        await files.write("f", "four", exclusive=True)
    assert (caught.value.code, caught.value.errno) == ("file.exists", errno.EEXIST)
    await files.write("g", "four", exclusive=True)
    assert (guest / "g").read_text() == "four"


async def test_a_write_that_fails_or_is_given_up_leaves_the_old_file(files, guest):
    (guest / "f").write_text("old")
    begun, never = asyncio.Event(), asyncio.Event()

    async def broken():
        yield b"new"
        raise ConnectionError

    async def endless():
        yield b"new"
        begun.set()
        await never.wait()

    with pytest.raises(ConnectionError):
        await files.write("f", broken())
    with pytest.raises(FileMissingError) as caught:
        await files.write("f", files.read_chunks("source"))
    assert caught.value.path == "source"
    with pytest.raises(TypeError):
        await files.write("f", [b"x", None])
    writing = asyncio.create_task(files.write("f", endless()))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert [info.name for info in await files.list(".")] == ["f"]
    assert (guest / "f").read_text() == "old"


async def test_files_without_a_size_are_read_to_their_end(files):
    assert await files.read_text("/proc/sys/kernel/ostype") == "Linux\n"
    assert (await files.stat("/proc/sys/kernel/ostype")).size == 0


async def test_a_reader_that_stops_halfway_leaves_nothing_open(agent, files, guest):
    with (guest / "large").open("wb") as large:
        large.truncate(1 << 40)
    async with aclosing(files.read_chunks("large", offset=5)) as chunks:
        async for chunk in chunks:
            assert set(chunk) == {0}
            assert holders(guest / "large")
            break
    await agent.ping()
    assert not holders(guest / "large")


async def test_a_file_that_is_larger_than_allowed_is_refused_with_advice(files, guest):
    with (guest / "large").open("wb") as large:
        large.truncate(1 << 40)
    with pytest.raises(ProtocolError) as caught:
        await files.read("large", limit=1 << 20)
    assert caught.value.code == "protocol.too_large"
    assert "read_chunks" in caught.value.hint
    assert len(await files.read("large", length=1 << 20, limit=1 << 20)) == 1 << 20


async def test_a_reader_that_takes_nothing_holds_up_nobody(files, guest):
    (guest / "large").write_bytes(bytes(8 << 20))
    async with aclosing(files.read_chunks("large")) as chunks:
        await anext(chunks)
        await files.write("f", bytes(4 << 20))
        assert len(await files.read("f")) == 4 << 20
        assert sum([len(chunk) async for chunk in chunks]) > 0


# Directories.


async def test_entries_are_told_with_what_they_are(files, guest):
    (guest / "d").mkdir(mode=0o750)
    (guest / "f").write_bytes(b"12345")
    os.utime(guest / "f", (1.5, 1.5))
    os.mkfifo(guest / "p")
    (guest / "s").symlink_to("f")
    found = {info.name: info for info in await files.list(guest)}
    assert {name: info.kind for name, info in found.items()} == {
        "d": FileKind.DIRECTORY,
        "f": FileKind.FILE,
        "p": FileKind.FIFO,
        "s": FileKind.SYMLINK,
    }
    file = found["f"]
    assert (file.path, file.size, file.modified) == (f"{guest}/f", 5, 1.5)
    assert (file.uid, file.gid, file.target) == (os.geteuid(), os.getegid(), None)
    assert (found["s"].target, found["d"].mode) == ("f", 0o750)
    assert await files.stat(guest / "f") == await files.stat(guest / "f", follow_symlinks=False) == file
    assert (await files.stat("s")).kind == "file"
    assert (await files.stat("s", follow_symlinks=False)).target == "f"


async def test_names_may_be_any_bytes(files, guest):
    name = b"a\xff\n \xc3\xa4"
    await files.write(name, "x")
    assert os.listdir(os.fsencode(guest)) == [name]
    (info,) = await files.list(".")
    assert os.fsencode(info.name) == name
    assert await files.read(info.name) == await files.read(info.path) == b"x"
    (guest / "link").symlink_to(os.fsdecode(name))
    assert os.fsencode((await files.stat("link", follow_symlinks=False)).target) == name
    await files.move(info.name, "f")
    assert (guest / "f").read_text() == "x"


async def test_a_large_directory_is_listed_whole_unless_that_is_too_much(files, guest):
    for number in range(4500):
        os.mknod(guest / f"file-{number:0200}")
    found = await files.list(".")
    assert [info.name for info in found] == [f"file-{number:0200}" for number in range(4500)]
    with pytest.raises(ProtocolError) as caught:
        await files.list(".", limit=4499)
    assert caught.value.code == "protocol.too_large"
    await files.remove(guest, recursive=True)
    assert not guest.exists()


async def test_directories_are_made_moved_and_removed(files, guest):
    await files.make_directory("a/b/c", parents=True, mode=0o700)
    await files.make_directory("a/b/c", exist_ok=True)
    assert stat.S_IMODE((guest / "a" / "b" / "c").stat().st_mode) == 0o700
    await files.move("a/b", "d")
    assert (guest / "d" / "c").is_dir()
    await files.remove("a")
    await files.remove("d", recursive=True)
    await files.remove("d", missing_ok=True)
    assert list(guest.iterdir()) == []


async def test_removal_follows_no_link(files, guest):
    (guest / "kept").mkdir()
    (guest / "kept" / "f").write_text("x")
    (guest / "d").mkdir()
    (guest / "d" / "link").symlink_to("../kept")
    await files.remove("d", recursive=True)
    assert (guest / "kept" / "f").read_text() == "x"


# What cannot be.


@pytest.mark.parametrize("name", ["missing", "missing/f"])
async def test_what_is_missing_is_an_error_of_its_own(files, name):
    for request in (
        files.read(name),
        files.list(name),
        files.stat(name),
        files.move(name, "x"),
        files.remove(name),
        files.watch(name).open(),
    ):
        with pytest.raises(FileMissingError) as caught:
            await request
        error = caught.value
        assert (error.code, error.reason, error.errno) == ("file.missing", "missing", errno.ENOENT)
        assert error.path == name
        assert name in error.message
        assert error.hint
    assert not await files.exists(name)


async def test_other_errors_tell_their_reason(files, guest):
    (guest / "d").mkdir()
    (guest / "d" / "x").mkdir()
    (guest / "f").write_text("")
    os.mkfifo(guest / "p")
    for request, reason in (
        (files.read("d"), "is_directory"),
        (files.write("d", ""), "is_directory"),
        (files.list("f"), "not_directory"),
        (files.read("p"), "invalid"),
        (files.write("p", ""), "invalid"),
        (files.make_directory("d"), "exists"),
        (files.move("f", "d/x", replace=False), "exists"),
        (files.move("f", "d"), "is_directory"),
        (files.remove("d"), "not_empty"),
        (files.move("f", "/proc/f"), "other_device"),
        (files.stat("f", user="no-such-user"), "user"),
        (files.remove("/", recursive=True), "os"),
    ):
        with pytest.raises(FileError) as caught:
            await request
        assert (caught.value.code, caught.value.reason) == (f"file.{reason}", reason)
        assert isinstance(caught.value, GuestError)
        assert "\n" not in caught.value.message
    assert not await files.exists("f/x")
    assert await files.exists("f")


async def test_a_link_that_leads_nowhere_does_not_exist_and_can_be_removed(files, guest):
    (guest / "link").symlink_to("nowhere")
    assert not await files.exists("link")
    await files.remove("link")
    assert not (guest / "link").is_symlink()


@needs_root
async def test_all_is_done_as_the_user(agent, guest):
    files = files_of(agent, user=NOBODY, workdir=str(guest))
    (guest / "secret").write_text("x")
    (guest / "secret").chmod(0o600)
    (guest / "shut").mkdir(mode=0o700)
    (guest / "own").mkdir()
    os.chown(guest / "own", 65534, 65534)
    for request in (
        files.read("secret"),
        files.list("shut"),
        files.stat("shut/x"),
        files.write("f", ""),
        files.remove("secret"),
        files.watch("shut").open(),
    ):
        with pytest.raises(FileError) as caught:
            await request
        assert caught.value.reason == "denied"
    await files.write("own/f", "x")
    await files.make_directory("own/d")
    assert {(guest / "own" / name).stat().st_uid for name in ("f", "d")} == {65534}
    assert await files.read("secret", user="root") == b"x"


# At once.


async def test_many_requests_run_beside_each_other(agent, files, guest):
    (guest / "many").mkdir()

    async def work(number):
        content = os.urandom(200_000)
        await files.write(f"many/{number}", content)
        assert await files.read(f"many/{number}") == content
        assert (await files.stat(f"many/{number}")).size == len(content)
        await files.move(f"many/{number}", f"many/moved-{number}")

    async with asyncio.timeout(90):
        await asyncio.gather(*(work(number) for number in range(40)), *(agent.ping() for _ in range(40)))
    assert len(await files.list("many")) == 40


# Watching.


async def told(watch, count):
    changes = [await watch.next(60) for _ in range(count)]
    return [(str(change.kind), os.path.basename(change.path)) for change in changes]


async def test_changes_are_told_as_they_happen(files, guest):
    async with files.watch(guest) as changes:
        (guest / "f").write_text("x")
        assert await told(changes, 2) == [("created", "f"), ("modified", "f")]
        (guest / "f").rename(guest / "g")
        change = await changes.next(60)
        assert (change.kind, change.source, change.path) == ("moved", f"{guest}/f", f"{guest}/g")
        (guest / "d").mkdir()
        change = await changes.next(60)
        assert (change.kind, change.directory) == ("created", True)
        (guest / "d" / "unseen").write_text("")
        os.unlink(guest / "g")
        assert await told(changes, 1) == [("removed", "g")]
        with pytest.raises(TimeoutError):
            await changes.next(0.01)
        (guest / os.fsdecode(b"\xff")).write_text("")
        assert (await changes.next(60)).path == f"{guest}/\udcff"


async def test_moves_into_and_out_of_what_is_watched_are_told(files, guest):
    (guest / "d").mkdir()
    (guest / "f").write_text("")
    async with files.watch("d") as changes:
        (guest / "f").rename(guest / "d" / "g")
        (guest / "d" / "g").rename(guest / "f")
        assert await told(changes, 2) == [("created", "g"), ("removed", "g")]


async def test_directories_that_are_made_are_watched_too(files, guest):
    (guest / "old").mkdir()
    async with files.watch(".", recursive=True) as changes:
        (guest / "old" / "f").touch()
        assert [change.path async for change in _first(changes, 1)] == ["./old/f"]
        (guest / "a" / "b").mkdir(parents=True)
        assert {change.path async for change in _first(changes, 2)} == {"./a", "./a/b"}
        (guest / "a" / "b" / "f").touch()
        assert [change.path async for change in _first(changes, 1)] == ["./a/b/f"]


async def _first(changes, count):
    for _ in range(count):
        yield await changes.next(60)


async def test_a_watch_ends_when_what_is_watched_is_gone(files, guest):
    (guest / "d").mkdir()
    async with files.watch("d") as changes:
        os.rmdir(guest / "d")
        assert [(change.kind, change.path) async for change in changes] == [("removed", "d")]
        assert await changes.next() is None


async def test_a_watch_that_is_closed_ends_for_whoever_waits(agent, files, guest):
    changes = files.watch(guest)
    waiting = asyncio.create_task(changes.next())
    await changes.open()
    await changes.close()
    assert await waiting is None
    (guest / "f").touch()
    assert await changes.next() is None
    await agent.ping()


async def test_more_changes_than_can_be_held_are_an_overflow_and_the_watch_goes_on(files, guest):
    queue = int(await files.read_text("/proc/sys/fs/inotify/max_queued_events"))
    count = queue + 8000  # what the host and the agent hold comes on top
    paths = [guest / (letter * 250) for letter in "ab"]
    for path in paths:
        path.touch()
    async with files.watch(guest, recursive=True) as changes:
        for number in range(count):
            os.utime(paths[number % 2])
        (guest / "d").mkdir()
        seen = 0
        while (change := await changes.next(60)).kind is not ChangeKind.OVERFLOW:
            seen += 1
        assert queue < seen < count
        assert change.path == str(guest)
        while change.path != f"{guest}/d/f":  # it is watched from some moment on
            (guest / "d" / "f").touch()
            with suppress(TimeoutError):
                change = await changes.next(0.05)


# The blocking face.


@pytest.fixture
def boxed(guest):
    """``files`` for a program without an event loop, whose agent lives on the loop of the blocking face."""
    stop = asyncio.Event()
    holding = []

    async def hold(started):
        async with hosted_agent() as agent:
            started.set_result(agent)
            await stop.wait()

    async def start():
        started = asyncio.get_running_loop().create_future()
        holding.append(asyncio.create_task(hold(started)))
        return await started

    async def end():
        stop.set()
        await holding[0]

    agent = blocking.core.wait_for(start())
    yield blocking.Files(files_of(agent, workdir=str(guest)), os.getpid())
    blocking.core.wait_for(end())


@pytest.fixture(scope="module", autouse=True)
def _loop():
    """The loop of the blocking face stays: it is nothing that a test leaves behind."""
    blocking.core.loop()


def test_all_of_it_works_without_an_event_loop(boxed, guest):
    assert boxed.write("a/f", (piece for piece in (b"x", b"y")), parents=True) == 2
    assert (boxed.read("a/f"), boxed.read_text("a/f"), boxed.exists("a/f")) == (b"xy", "xy", True)
    assert [info.name for info in boxed.list("a")] == ["f"]
    assert boxed.stat("a/f").size == 2
    boxed.move("a/f", "g")
    boxed.make_directory("b")
    boxed.remove("a")
    assert sorted(os.listdir(guest)) == ["b", "g"]
    with pytest.raises(FileMissingError):
        boxed.read("missing")


def test_pieces_are_iterated_over_and_may_be_left(boxed, guest):
    (guest / "large").write_bytes(bytes(5_000_000))
    assert sum(len(chunk) for chunk in boxed.read_chunks("large")) == 5_000_000
    chunks = boxed.read_chunks("large", offset=1, length=4_000_000)
    assert set(next(chunks)) == {0}
    chunks.close()
    assert boxed.exists("large")
    assert not holders(guest / "large")
    with pytest.raises(FileMissingError):
        next(boxed.read_chunks("missing"))


def test_changes_are_iterated_over(boxed, guest):
    with boxed.watch(guest) as changes:
        (guest / "d").mkdir()
        for change in changes:
            assert (change.kind, change.path) == ("created", f"{guest}/d")
            break
        with pytest.raises(TimeoutError):
            changes.next(0.01)
    assert list(changes) == []
