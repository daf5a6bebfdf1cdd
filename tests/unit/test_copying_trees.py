"""Copying between the disk and a guest over a socket pair: what arrives, what a hostile guest cannot do."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from file_trees import MTIME, listing, make_tree
from tree_guest import TreeGuest

from atoll import events
from atoll.errors import ChannelError, GuestError, ProtocolError, StoreError
from atoll.guest import tree
from atoll.guest.agent import Agent
from atoll.guest.channel import Channel, LinkResetError
from atoll.guest.copying import receive_tree, send_tree
from atoll.guest.tree import Directory, Fifo, File, Limits, Link, Symlink

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

META = {"mode": 0o755, "uid": 4321, "gid": 4322, "mtime": MTIME}
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def disk(tmp_path_factory):
    """A directory that is not kept for inspection: of large holes and fifos no plain copy can be made."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(autouse=True)
def umask():
    former = os.umask(0o022)
    yield
    os.umask(former)


@pytest.fixture
async def pair():
    ours, theirs = socket.socketpair()
    guest = TreeGuest(theirs)
    serving = asyncio.create_task(guest.serve())
    channel = Channel(ours)
    async with asyncio.timeout(60):
        await channel.ready()
        guest.channel = channel
        yield Agent(channel), guest
    channel.close()
    await serving
    theirs.close()


@pytest.fixture
def agent(pair):
    return pair[0]


@pytest.fixture
def guest(pair):
    return pair[1]


def directory(path=b"", **more):
    return tree.encode(Directory(path=path, **META | more))


def file(path, content=b"", **more):
    entry = tree.encode(File(path=path, **{**META, "size": len(content)} | more))
    pieces = [(at, content[at : at + tree.MAX_SEGMENT]) for at in range(0, len(content), tree.MAX_SEGMENT)]
    data = b"".join(tree.segment(at, len(piece)) + piece for at, piece in pieces)
    return entry + data + tree.segment(more.get("size", len(content)), 0)


def symlink(path, target):
    return tree.encode(Symlink(path=path, target=target, **META))


def link(path, target):
    return tree.encode(Link(path=path, target=target, **META))


def fifo(path):
    return tree.encode(Fifo(path=path, **META))


async def until(condition):
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


async def test_a_tree_comes_back_as_it_went_there(agent, guest, disk):
    make_tree(disk / "box")
    sent = await send_tree(agent, disk / "box", "/srv")
    request, data = guest.written[0]
    assert request == {"method": "tree.write", "path": b"/srv", "name": b"box"}
    guest.trees[b"/srv/box"] = data
    received = await receive_tree(agent, "/srv/box", disk / "back")
    assert listing(disk / "back") == listing(disk / "box")
    assert (received.entries, received.bytes) == (sent.entries, sent.bytes) == (14, 3_000_008)
    (disk / "back" / "a").write_bytes(b"changed")
    assert (disk / "back" / "sub" / "second").read_bytes() == b"changed"


async def test_holes_stay_holes(agent, guest, disk):
    source = disk / "sparse"
    with source.open("wb") as sparse:
        sparse.write(b"begin")
        sparse.seek(10 << 20)
        sparse.write(b"middle")
        sparse.truncate(1 << 40)
    sent = await send_tree(agent, source, "/x")
    _, guest.trees[b"/x"] = guest.written[0]
    assert len(guest.trees[b"/x"]) < 100_000
    received = await receive_tree(agent, "/x", disk / "back")
    assert received.bytes == sent.bytes < 100_000
    status = (disk / "back").stat()
    assert (status.st_size, status.st_blocks) == (1 << 40, source.stat().st_blocks)
    with (disk / "back").open("rb") as back:
        assert back.read(6) == b"begin\0"
        back.seek((10 << 20) - 1)
        assert back.read(7) == b"\0middle"


@pytest.mark.parametrize("size", [0, 1, 524_288 - 100, 524_288, 524_289, 1 << 20, (1 << 20) + 1, 5_000_000])
async def test_files_of_any_size_arrive(agent, guest, disk, size):
    content = os.urandom(size)
    (disk / "f").write_bytes(content)
    await send_tree(agent, disk / "f", "/f")
    _, guest.trees[b"/f"] = guest.written[0]
    await receive_tree(agent, "/f", disk / "back")
    assert (disk / "back").read_bytes() == content


async def test_thousands_of_small_files_arrive(agent, guest, disk):
    (disk / "many").mkdir()
    for number in range(2000):
        (disk / "many" / f"file-{number}").write_text(f"content of {number}")
    await send_tree(agent, disk / "many", "/many")
    _, guest.trees[b"/many"] = guest.written[0]
    received = await receive_tree(agent, "/many", disk / "back")
    assert received.entries == 2001
    assert listing(disk / "back") == listing(disk / "many")


# where it goes


@pytest.mark.parametrize(
    ("source", "name"),
    [
        *(("box", b"box"), ("box/", b"box"), ("box//", b"box"), ("box/.", b""), ("box/./", b"")),
        *(("box/sub", b"sub"), ("box/sub/..", b""), (".", b"")),
    ],
)
async def test_a_source_has_the_name_that_cp_gives_it(agent, guest, disk, monkeypatch, source, name):
    monkeypatch.chdir(disk)
    (disk / "box" / "sub").mkdir(parents=True)
    await send_tree(agent, source, "/srv", user="nobody")
    assert guest.written[0][0] == {
        "method": "tree.write",
        "path": b"/srv",
        "name": name,
        "user": "nobody",
    }


async def test_a_link_as_source_is_followed_and_those_in_it_are_not(agent, guest, disk):
    (disk / "real").mkdir()
    (disk / "real" / "inner").symlink_to("f")
    (disk / "real" / "f").touch()
    (disk / "link").symlink_to("real")
    (disk / "file-link").symlink_to("real/f")
    sent = []
    for source in ("link", "link/", "link/.", "file-link"):
        await send_tree(agent, f"{disk}/{source}", "/srv")
        entries = [
            type(event)
            for event in tree.Decoder().feed(guest.written[-1][1])
            if isinstance(event, tree.Entry)
        ]
        sent.append((entries, guest.written[-1][0]["name"]))
    below = [Directory, File, Symlink]
    assert sent == [(below, b"link"), (below, b"link"), (below, b""), ([File], b"file-link")]
    (disk / "dangling").symlink_to("nowhere")
    with pytest.raises(StoreError, match="dangling"):
        await send_tree(agent, disk / "dangling", "/srv")


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [
        ("/g/box", "new", "new"),
        ("/g/box", "there", "there/box"),
        ("/g/box/", "there/", "there/box"),
        ("/g/box/.", "there", "there"),
        ("/g/box/.", "new", "new"),
        ("/", "there", "there"),
        ("/g/box", "way", "there/box"),
        ("/g/box/.", "way", "there"),
    ],
)
async def test_a_target_is_found_as_cp_finds_it(agent, guest, disk, source, target, place):
    (disk / "there").mkdir()
    (disk / "way").symlink_to("there")
    guest.trees[source.encode()] = directory() + file(b"f", b"x")
    await receive_tree(agent, source, f"{disk}/{target}")
    assert (disk / place / "f").read_bytes() == b"x"
    assert len(list(disk.rglob("f"))) == 1


async def test_a_relative_target_is_found(agent, guest, disk, monkeypatch):
    monkeypatch.chdir(disk)
    guest.trees[b"/f"] = file(b"", b"x")
    await receive_tree(agent, "/f", "g")
    await receive_tree(agent, "/f", ".")
    assert sorted(path.name for path in disk.iterdir()) == ["f", "g"]


async def test_the_directory_for_the_target_must_exist(agent, disk):
    (disk / "file").touch()
    for place in ("missing", "file"):
        with pytest.raises(StoreError) as caught:
            await receive_tree(agent, "/f", disk / place / "new")
        assert caught.value.code == "store.missing"
        assert caught.value.hint == f"make it first: mkdir -p {disk}/{place}"


async def test_a_source_that_is_not_there_or_no_file_is_named(agent, guest, disk):
    with pytest.raises(StoreError) as caught:
        await send_tree(agent, disk / "missing", "/x")
    assert caught.value.code == "store.missing"
    assert "missing" in caught.value.message
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(disk / "socket"))
        with pytest.raises(StoreError, match="neither a file nor a directory"):
            await send_tree(agent, disk / "socket", "/x")
        await send_tree(agent, disk, "/x")  # inside a directory it is left out
    assert [type(event) for event in tree.Decoder().feed(guest.written[0][1])] == [Directory]


async def test_a_file_that_cannot_be_read_is_named(agent):
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        os.chmod(top, 0o755)
        (top / "secret").touch(mode=0)
        former = os.geteuid()
        try:
            if former == 0:
                os.seteuid(65534)
            with pytest.raises(StoreError, match="secret: Permission denied"):
                await send_tree(agent, top, "/x")
        finally:
            os.seteuid(former)


# what is there already


async def test_existing_files_are_replaced_and_never_written_through(agent, guest, disk):
    (disk / "outside").write_text("kept")
    top = disk / "top"
    top.mkdir(mode=0o700)
    (top / "link").symlink_to("../outside")
    (top / "other-name").hardlink_to(disk / "outside")
    (top / "old").write_text("old")
    os.mkfifo(top / "fifo")
    names = [b"link", b"other-name", b"old", b"fifo"]
    guest.trees[b"/t/."] = directory(mode=0o777) + b"".join(file(name, b"new") for name in names)
    await receive_tree(agent, "/t/.", top)
    assert {path.name: path.read_text() for path in top.iterdir()} == {n.decode(): "new" for n in names}
    assert not (top / "link").is_symlink()
    assert (disk / "outside").read_text() == "kept"
    assert stat.S_IMODE(top.stat().st_mode) == 0o700  # it was there: its mode is not the guest's business


async def test_links_and_fifos_replace_what_was_there(agent, guest, disk):
    for name in ("s", "l", "p"):
        (disk / name).write_text("old")
    stream = directory() + file(b"f", b"x") + symlink(b"s", b"f") + link(b"l", b"f") + fifo(b"p")
    guest.trees[b"/t/."] = stream
    await receive_tree(agent, "/t/.", disk)
    await receive_tree(agent, "/t/.", disk)
    assert (disk / "s").readlink() == Path("f")
    assert (disk / "l").samefile(disk / "f")
    assert (disk / "p").is_fifo()
    assert len(list(disk.iterdir())) == 4


async def test_directories_are_merged(agent, guest, disk):
    (disk / "t" / "sub").mkdir(parents=True)
    (disk / "t" / "sub" / "mine").write_text("kept")
    guest.trees[b"/t"] = directory() + directory(b"sub") + file(b"sub/theirs", b"new")
    await receive_tree(agent, "/t", disk)
    assert sorted(path.name for path in (disk / "t" / "sub").iterdir()) == ["mine", "theirs"]


@pytest.mark.parametrize("entry", [file(b"x", b"new"), symlink(b"x", b"/"), fifo(b"x")], ids=len)
async def test_a_directory_is_not_replaced_by_anything_else(agent, guest, disk, entry):
    (disk / "x" / "sub").mkdir(parents=True)
    guest.trees[b"/t/."] = directory() + entry
    with pytest.raises(StoreError) as caught:
        await receive_tree(agent, "/t/.", disk)
    assert str(disk / "x") in caught.value.message
    assert caught.value.hint
    assert list(disk.iterdir()) == [disk / "x"]


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
async def test_nothing_but_a_directory_is_used_as_one(agent, guest, disk, kind):
    (disk / "outside").mkdir()
    top = disk / "top"
    top.mkdir()
    if kind == "file":
        (top / "sub").write_text("kept")
    else:
        (top / "sub").symlink_to("../outside" if kind == "link" else "nowhere")
    guest.trees[b"/t/."] = directory() + directory(b"sub") + file(b"sub/f", b"new")
    with pytest.raises(StoreError) as caught:
        await receive_tree(agent, "/t/.", top)
    assert (caught.value.code, "top/sub" in caught.value.message) == ("store.io", True)
    assert list((disk / "outside").iterdir()) == []


# rights


async def test_modes_are_less_the_umask_without_set_id_bits_and_owners(agent, guest, disk):
    stream = directory(mode=0o2777) + file(b"f", b"x", mode=0o6777) + directory(b"d", mode=0o1577)
    guest.trees[b"/t"] = stream + file(b"d/g", mode=0o4400) + fifo(b"p")
    os.umask(0o027)
    await receive_tree(agent, "/t", disk / "t")
    found = {
        str(path.relative_to(disk)): (oct(stat.S_IMODE(path.stat().st_mode)), path.stat().st_uid)
        for path in sorted(disk.rglob("*"))
    }
    me = os.geteuid()
    assert found == {
        "t": ("0o750", me),
        "t/d": ("0o550", me),
        "t/d/g": ("0o400", me),
        "t/f": ("0o750", me),
        "t/p": ("0o750", me),
    }


@AS_ROOT
async def test_an_archive_keeps_modes_and_owners_for_root(agent, guest, disk):
    stream = directory(mode=0o2777) + file(b"f", b"x", mode=0o6755) + symlink(b"s", b"f") + fifo(b"p")
    guest.trees[b"/t"] = stream
    os.umask(0o077)
    await receive_tree(agent, "/t", disk / "t", archive=True)
    for path, mode in (("t", 0o2777), ("t/f", 0o6755), ("t/s", 0o777), ("t/p", 0o755)):
        status = (disk / path).lstat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (mode, 4321, 4322)
        assert status.st_mtime_ns == MTIME


async def test_times_before_1970_and_far_from_now_do_no_harm(agent, guest, disk):
    times = [-(1 << 63), -1, 0, (1 << 63) - 1]
    stream = directory() + b"".join(file(b"%d" % number, mtime=at) for number, at in enumerate(times))
    guest.trees[b"/t"] = stream
    await receive_tree(agent, "/t", disk / "t")
    assert (disk / "t" / "1").stat().st_mtime_ns == -1


# a hostile guest


@pytest.fixture
def prison(disk):
    """A directory to write to, beside one that must stay as it is."""
    (disk / "outside" / "sub").mkdir(parents=True)
    (disk / "outside" / "secret").write_text("secret")
    (disk / "inside").mkdir()
    before = listing(disk / "outside")
    yield disk / "inside"
    assert listing(disk / "outside") == before
    assert sorted(path.name for path in disk.iterdir()) == ["inside", "outside"]
    assert not list(disk.rglob(".atoll-*"))


OUT = b"../outside"
HOSTILE = {
    "a file through a link": symlink(b"a", OUT) + file(b"a/pwned", b"x"),
    "a directory through a link": symlink(b"a", OUT) + directory(b"a/sub") + file(b"a/sub/pwned", b"x"),
    "a link in place of a directory": directory(b"a") + symlink(b"a", OUT) + file(b"a/pwned", b"x"),
    "a directory over a link": symlink(b"a", OUT) + directory(b"a") + file(b"a/pwned", b"x"),
    "a file over a link to a file": symlink(b"a", OUT + b"/secret") + file(b"a", b"pwned"),
    "a parent": file(b"../pwned", b"x"),
    "a parent further down": directory(b"a") + file(b"a/../../pwned", b"x"),
    "an absolute path": file(b"/tmp/pwned", b"x"),
    "the parent as a directory": directory(b"..") + file(b"../pwned", b"x"),
    "the directory itself": directory(b"."),
    "a second top": directory(b""),
    "a link to a file outside": link(b"a", OUT + b"/secret"),
    "a link through a link": symlink(b"a", OUT) + link(b"b", b"a/secret"),
    "a link to a link": symlink(b"a", OUT + b"/secret") + link(b"b", b"a"),
    "a link to an absolute path": link(b"a", b"/etc/passwd"),
    "no directory": file(b"missing/f", b"x"),
    "a file as a directory": file(b"a", b"x") + file(b"a/f", b"x"),
    "segments out of order": tree.encode(File(path=b"f", size=9, **META))
    + tree.segment(5, 1)
    + b"x"
    + tree.segment(4, 1)
    + b"x"
    + tree.segment(9, 0),
    "content beyond the size": tree.encode(File(path=b"f", size=1, **META)) + tree.segment(0, 9) + bytes(9),
    "a file that does not end": tree.encode(File(path=b"f", size=9, **META)) + tree.segment(0, 9) + bytes(9),
    "half a record": b"\x10\0\0\0abc",
    "a huge record": b"\xff\xff\xff\xff",
    "no record": b"\x04\0\0\0\xc1\xc1\xc1\xc1",
}


@pytest.mark.parametrize("stream", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_tree_is_refused_and_writes_nothing_outside(agent, guest, prison, stream):
    guest.trees[b"/t/."] = directory() + stream
    with pytest.raises(ProtocolError):
        await receive_tree(agent, "/t/.", prison)


@pytest.mark.parametrize("stream", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_tree_is_refused_as_root_in_an_archive_too(agent, guest, prison, stream):
    guest.trees[b"/t"] = directory() + stream
    with pytest.raises(ProtocolError):
        await receive_tree(agent, "/t", prison / "new", archive=True)


async def test_links_that_were_there_before_lead_nowhere(agent, guest, prison):
    (prison / "t").mkdir()
    (prison / "t" / "sub").symlink_to("../../outside")
    guest.trees[b"/t"] = directory() + directory(b"sub") + file(b"sub/pwned", b"x")
    with pytest.raises(StoreError, match="sub"):
        await receive_tree(agent, "/t", prison)


async def test_a_top_that_is_a_link_is_made_and_not_followed(agent, guest, prison):
    (prison / "t").symlink_to("../outside")
    guest.trees[b"/x/t"] = symlink(b"", b"elsewhere")
    await receive_tree(agent, "/x/t", prison / "t" / ".." / "inside" / "u")
    assert (prison / "u").readlink() == Path("elsewhere")
    guest.trees[b"/x/v"] = directory() + file(b"secret", b"pwned")
    (prison / "v").symlink_to("../outside")
    with pytest.raises(StoreError):
        await receive_tree(agent, "/x/v", prison)


@pytest.mark.parametrize("entry", [file(b"", b"x"), symlink(b"", b"/etc"), fifo(b"")], ids=len)
async def test_something_else_does_not_come_as_the_content_of_a_directory(agent, guest, prison, entry):
    guest.trees[b"/t/."] = entry
    with pytest.raises(ProtocolError):
        await receive_tree(agent, "/t/.", prison)


@pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 62])
async def test_a_file_larger_than_the_file_system_takes_is_an_error(agent, guest, prison, size):
    guest.trees[b"/t"] = directory() + file(b"bomb", size=size)
    with pytest.raises(StoreError, match="t/bomb"):
        await receive_tree(agent, "/t", prison)
    assert list((prison / "t").iterdir()) == []
    stream = tree.encode(File(path=b"bomb", size=size, **META)) + tree.segment(size - 1, 1) + b"x"
    guest.trees[b"/t"] = directory() + stream
    with pytest.raises(StoreError, match="t/bomb"):
        await receive_tree(agent, "/t", prison)


@pytest.mark.parametrize(
    ("limits", "stream"),
    [
        (Limits(entries=3), file(b"a") + file(b"b") + file(b"c")),
        (Limits(depth=2), directory(b"a") + directory(b"a/a") + directory(b"a/a/a")),
        (Limits(names=100), file(b"a" * 60) + file(b"b" * 60)),
    ],
    ids=["entries", "depth", "names"],
)
async def test_a_tree_beyond_the_limits_is_refused(agent, guest, prison, limits, stream):
    guest.trees[b"/t"] = directory() + stream
    with pytest.raises(ProtocolError) as caught:
        await receive_tree(agent, "/t", prison, limits=limits)
    assert caught.value.code == "protocol.too_large"


async def test_deep_trees_are_written_with_few_descriptors(agent, guest, disk):
    paths = [b"/".join([b"d" * 20] * depth) for depth in range(1, 257)]
    guest.trees[b"/t"] = directory() + b"".join(map(directory, paths))
    await receive_tree(agent, "/t", disk)
    await send_tree(agent, disk / "t", "/t")
    assert guest.written[0][1].count(b"directory") == 257


async def test_directories_may_come_in_any_order(agent, guest, disk):
    stream = directory() + directory(b"a") + directory(b"b") + directory(b"a/c") + file(b"b/f", b"1")
    stream += file(b"a/c/f", b"2") + link(b"b/g", b"a/c/f") + file(b"top", b"3") + link(b"a/c/h", b"top")
    guest.trees[b"/t"] = stream
    await receive_tree(agent, "/t", disk)
    top = disk / "t"
    assert [(top / name).read_text() for name in ("b/f", "a/c/f", "b/g", "top", "a/c/h")] == list("12233")
    assert {path.stat().st_mtime_ns for path in (top, top / "a", top / "b", top / "a/c")} == {MTIME}


# failures on the way


async def test_a_full_disk_removes_the_half_written_file_and_names_it(agent, guest, disk):
    guest.trees[b"/t"] = directory() + file(b"whole", b"x") + file(b"half", bytes(200_000))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        with pytest.raises(StoreError, match="t/half: File too large"):
            await receive_tree(agent, "/t", disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert [path.name for path in (disk / "t").iterdir()] == ["whole"]


async def test_a_copy_that_is_cancelled_leaves_nothing_half_written(agent, guest, disk):
    guest.withhold_end = True
    content = bytes(2_000_000)
    entry = tree.encode(File(path=b"half", size=3_000_000, **META))
    rest = b"".join(tree.segment(at, 1_000_000) + content[:1_000_000] for at in (0, 1_000_000))
    guest.trees[b"/t"] = directory() + file(b"whole", b"x") + entry + rest
    copying = asyncio.create_task(receive_tree(agent, "/t", disk))
    await until(lambda: list(disk.rglob(".atoll-*")))
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert [path.name for path in (disk / "t").iterdir()] == ["whole"]
    await until(lambda: guest.resets)
    await asyncio.sleep(0.05)
    assert len(guest.resets) == 1


async def test_a_guest_that_is_gone_leaves_nothing_half_written(agent, guest, disk):
    guest.withhold_end = True
    guest.trees[b"/t"] = file(b"", bytes(2_000_000))[:-100]
    copying = asyncio.create_task(receive_tree(agent, "/t", disk))
    await until(lambda: list(disk.rglob(".atoll-*")))
    guest.channel.close()
    with pytest.raises(ChannelError):
        await copying
    assert list(disk.iterdir()) == []


async def test_a_link_out_of_step_says_what_was_cut_off(agent, guest, disk):
    guest.withhold_end = True
    guest.trees[b"/t"] = directory()
    copying = asyncio.create_task(receive_tree(agent, "/t", disk))
    await until((disk / "t").exists)
    guest.channel.resync()
    with pytest.raises(LinkResetError, match="/t was cut off") as caught:
        await copying
    assert caught.value.hint == "copy it again"
    await guest.channel.ready()


async def test_a_refusal_of_the_guest_ends_the_sending(agent, guest, disk):
    (disk / "f").write_bytes(bytes(20_000_000))
    guest.refusal = (3_000_000, {"code": "os", "message": "/x: No space left on device", "errno": 28})
    with pytest.raises(GuestError, match="No space left") as caught:
        await send_tree(agent, disk / "f", "/x")
    assert (caught.value.reason, caught.value.errno) == ("os", 28)


async def test_a_place_that_is_missing_in_the_guest_comes_with_a_hint(agent, guest, disk):
    missing = {"code": "os", "message": "/no/x: No such file or directory", "errno": 2}
    guest.refusal, guest.trees[b"/no/x"] = (0, missing), missing
    with pytest.raises(GuestError) as caught:
        await send_tree(agent, disk, "/no/x")
    assert "must exist in the guest" in caught.value.hint
    with pytest.raises(GuestError) as caught:
        await receive_tree(agent, "/no/x", disk)
    assert caught.value.hint == "check the path in the guest"


@pytest.mark.parametrize("end", [b"", b"\xc1", b"\x80", bytes(30_000), b"\x91" * 3000])
async def test_an_end_that_is_none_is_a_protocol_error(agent, guest, disk, end):
    guest.end = end
    with pytest.raises(ProtocolError):
        await send_tree(agent, disk, "/x")


async def test_what_vanishes_or_shrinks_meanwhile_does_not_end_the_copy(agent, guest, disk):
    (disk / "d").mkdir()
    (disk / "big").write_bytes(bytes(8_000_000))
    (disk / "vanishing").touch()

    def listener(event):
        (disk / "vanishing").unlink(missing_ok=True)
        os.truncate(disk / "big", 2_000_000)

    await send_tree(agent, disk, "/x", emit=listener)
    entries = [event for event in tree.Decoder().feed(guest.written[0][1]) if isinstance(event, tree.Entry)]
    assert [(entry.path, getattr(entry, "size", None)) for entry in entries] == [
        (b"", None),
        (b"big", 2_000_000),
        (b"d", None),
    ]


async def test_progress_is_told_with_the_total_of_a_file(agent, guest, disk, monkeypatch):
    monkeypatch.setattr("atoll.guest.copying._PACE", 0)
    (disk / "f").write_bytes(bytes(3_000_000))
    seen = []
    await send_tree(agent, disk / "f", "/f", emit=seen.append)
    _, guest.trees[b"/f"] = guest.written[0]
    await receive_tree(agent, "/f", disk / "g", emit=seen.append)
    starts = [event for event in seen if isinstance(event, events.TaskStarted)]
    assert [(event.task, event.total, event.unit) for event in starts] == [("copy", 3_000_000, "bytes")] * 2
    done = [event.done for event in seen if isinstance(event, events.TaskAdvanced)]
    assert max(done) == 3_000_000
    ends = [event.ok for event in seen if isinstance(event, events.TaskEnded)]
    assert ends == [True, True]


async def test_the_event_loop_is_never_held_up_by_the_disk(agent, guest, disk):
    make_tree(disk / "box")
    with blockbuster_ctx("atoll.guest"):
        await send_tree(agent, disk / "box", "/box")
        _, guest.trees[b"/box"] = guest.written[0]
        await receive_tree(agent, "/box", disk / "back")
        guest.trees[b"/bad"] = directory() + tree.encode(File(path=b"half", size=3, **META))
        with pytest.raises(ProtocolError):
            await receive_tree(agent, "/bad", disk / "bad")
    assert listing(disk / "back") == listing(disk / "box")
