"""Trees between the host's end and the real agent: both are strict, so each finds the other's mistakes."""

from __future__ import annotations

import asyncio
import os
import stat

import pytest
from file_trees import listing, make_tree
from hosted import hosted_agent

from atoll.errors import GuestError
from atoll.guest.copying import receive_tree, send_tree

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def agent():
    async with hosted_agent() as agent:
        yield agent


@pytest.fixture
def disk(tmp_path_factory):
    """A directory that is not kept for inspection: of large holes and fifos no plain copy can be made."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture
def guest(disk):
    """A directory that stands for the guest."""
    place = disk / "guest"
    place.mkdir()
    return place


async def test_a_tree_goes_there_and_comes_back_as_it_was(agent, guest, disk):
    make_tree(disk / "box")
    sent = await send_tree(agent, disk / "box", str(guest))
    assert listing(guest / "box") == listing(disk / "box")
    received = await receive_tree(agent, str(guest / "box"), disk / "back")
    assert listing(disk / "back") == listing(disk / "box")
    assert (sent.entries, sent.bytes) == (received.entries, received.bytes) == (14, 3_000_008)


async def test_the_rules_of_cp_hold_in_the_guest(agent, guest, disk):
    (disk / "box").mkdir()
    (disk / "box" / "f").write_text("x")
    (guest / "there").mkdir()
    await send_tree(agent, disk / "box", f"{guest}/new")
    await send_tree(agent, disk / "box", f"{guest}/there")
    await send_tree(agent, disk / "box", f"{guest}/there")
    await send_tree(agent, f"{disk}/box/.", f"{guest}/there")
    await send_tree(agent, disk / "box" / "f", f"{guest}/there/g")
    found = sorted(str(path.relative_to(guest)) for path in guest.rglob("*") if path.is_file())
    assert found == ["new/f", "there/box/f", "there/f", "there/g"]
    with pytest.raises(GuestError) as caught:
        await send_tree(agent, disk / "box", f"{guest}/missing/new")
    assert "must exist in the guest" in caught.value.hint
    with pytest.raises(GuestError) as caught:
        await receive_tree(agent, f"{guest}/missing", disk / "x")
    assert caught.value.hint == "check the path in the guest"


async def test_holes_stay_holes(agent, guest, disk):
    source = disk / "sparse"
    with source.open("wb") as sparse:
        for at in (0, 1 << 24, 1 << 30):
            sparse.seek(at)
            sparse.write(b"data at %d" % at)
        sparse.truncate(1 << 36)
    await send_tree(agent, source, f"{guest}/copy")
    await receive_tree(agent, f"{guest}/copy", disk / "back")
    for copy in (guest / "copy", disk / "back"):
        assert (copy.stat().st_size, copy.stat().st_blocks) == (1 << 36, source.stat().st_blocks)
        with copy.open("rb") as file:
            file.seek(1 << 30)
            assert file.read(20) == b"data at 1073741824\0\0"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_owners_are_as_asked_for_in_the_guest_and_not_kept_on_the_host(agent, guest, disk):
    (disk / "box").mkdir()
    for name in ("f", "program"):
        (disk / "box" / name).write_text("x")
    os.symlink("f", disk / "box" / "s")
    os.chown(disk / "box" / "program", 4321, 4322)
    (disk / "box" / "program").chmod(0o6755)
    await send_tree(agent, disk / "box", f"{guest}/kept")
    await send_tree(agent, disk / "box", f"{guest}/given", user="65534:4")
    await receive_tree(agent, f"{guest}/kept", disk / "back")
    await receive_tree(agent, f"{guest}/kept", disk / "archive", archive=True)

    def owners(top):
        return {(path.lstat().st_uid, path.lstat().st_gid) for path in [top, *top.rglob("*")]}

    assert owners(guest / "kept") == owners(disk / "archive") == {(0, 0), (4321, 4322)}
    assert owners(guest / "given") == {(65534, 4)}
    assert owners(disk / "back") == {(0, 0)}
    modes = [stat.S_IMODE((disk / name / "program").stat().st_mode) for name in ("back", "archive")]
    assert modes == [0o755, 0o6755]


async def test_files_and_links_in_the_way_are_replaced_and_not_written_through(agent, guest, disk):
    (disk / "box").mkdir()
    for name in ("a", "b"):
        (disk / "box" / name).write_text("new")
    (guest / "outside").write_text("kept")
    (guest / "box").mkdir()
    (guest / "box" / "a").symlink_to("../outside")
    (guest / "box" / "b").hardlink_to(guest / "outside")
    await send_tree(agent, disk / "box", str(guest))
    assert [(guest / "box" / name).read_text() for name in "ab"] == ["new", "new"]
    assert (guest / "outside").read_text() == "kept"


async def test_directories_that_are_there_keep_their_mode_and_owner(agent, guest, disk):
    (disk / "box" / "sub").mkdir(parents=True)
    (disk / "box" / "new").mkdir()
    for name in ("", "sub", "new"):
        (disk / "box" / name).chmod(0o711)
    (guest / "sub").mkdir()
    for place in (guest, guest / "sub"):
        place.chmod(0o1750)
    await send_tree(agent, f"{disk}/box/.", str(guest), user="65534:4" if os.geteuid() == 0 else None)
    modes = [stat.S_IMODE((guest / name).stat().st_mode) for name in ("", "sub", "new")]
    assert modes == [0o1750, 0o1750, 0o711]
    assert {guest.stat().st_uid, (guest / "sub").stat().st_uid} == {os.geteuid()}


async def test_a_link_at_the_top_is_followed_in_the_guest_and_those_below_are_not(agent, guest, disk):
    (guest / "real").mkdir()
    (guest / "real" / "inner").symlink_to("nowhere")
    (guest / "link").symlink_to("real")
    await receive_tree(agent, f"{guest}/link", disk)
    assert (disk / "link" / "inner").readlink().name == "nowhere"


async def test_an_error_names_the_file_and_leaves_nothing_of_it(agent, guest, disk):
    for name in (b"f", b"g\xff"):
        box = disk / name.decode(errors="ignore")
        box.mkdir()
        (box / os.fsdecode(name)).write_text("x")
        place = guest / box.name / os.fsdecode(name)
        place.mkdir(parents=True)
        with pytest.raises(GuestError) as caught:
            await send_tree(agent, box, str(guest))
        shown = name.replace(b"\xff", b"?").decode()
        assert caught.value.message == f"{guest}/{box.name}/{shown}: Is a directory"
        assert list((guest / box.name).iterdir()) == [place]


async def test_many_small_files_and_a_large_one_arrive(agent, guest, disk):
    top = disk / "many"
    (top / "small").mkdir(parents=True)
    for number in range(2000):
        (top / "small" / f"file-{number}").write_text(f"content of {number}")
    (top / "large").write_bytes(os.urandom(1 << 20) * 64)
    await send_tree(agent, top, str(guest))
    await receive_tree(agent, f"{guest}/many", disk / "back")
    assert listing(disk / "back") == listing(top)


async def test_copies_in_both_directions_run_beside_each_other_and_beside_commands(agent, guest, disk):
    for number in range(4):
        make_tree(disk / f"box{number}")
    await asyncio.gather(*(send_tree(agent, disk / f"box{n}", str(guest)) for n in range(4)))
    backs = (receive_tree(agent, f"{guest}/box{n}", disk / f"back{n}") for n in range(4))
    forths = (send_tree(agent, disk / f"box{n}", f"{guest}/again{n}") for n in range(4))
    await asyncio.gather(*backs, *forths, *(agent.ping(b"x") for _ in range(20)))
    for number in range(4):
        expected = listing(disk / f"box{number}")
        assert listing(disk / f"back{number}") == listing(guest / f"again{number}") == expected


async def test_a_copy_that_is_cancelled_leaves_the_agent_useful(agent, guest, disk):
    (disk / "large").write_bytes(bytes(100_000_000))
    for copy in (
        send_tree(agent, disk / "large", f"{guest}/x"),
        receive_tree(agent, str(disk / "large"), disk / "y"),
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await copy
        await agent.ping()
    assert not (disk / "y").exists()
    assert not list(disk.rglob(".atoll-*"))
    assert not list(guest.iterdir())


async def test_a_place_that_is_no_directory_is_told_with_its_path(agent, disk):
    (disk / "f").write_bytes(bytes(1000))
    with pytest.raises(GuestError) as caught:
        await send_tree(agent, disk / "f", f"{disk}/f/x")
    assert f"{disk}/f/x" in caught.value.message
