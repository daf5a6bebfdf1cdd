"""Trees between the host's end and the real agent: both are strict, so each finds the other's mistakes."""

from __future__ import annotations

import asyncio
import os
import stat
import time

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
def guest(tmp_path):
    """A directory that stands for the guest."""
    place = tmp_path / "guest"
    place.mkdir()
    return place


async def test_a_tree_goes_there_and_comes_back_as_it_was(agent, guest, tmp_path):
    make_tree(tmp_path / "box")
    sent = await send_tree(agent, tmp_path / "box", str(guest))
    assert listing(guest / "box") == listing(tmp_path / "box")
    received = await receive_tree(agent, str(guest / "box"), tmp_path / "back")
    assert listing(tmp_path / "back") == listing(tmp_path / "box")
    assert (sent.entries, sent.bytes) == (received.entries, received.bytes) == (14, 3_000_008)


async def test_the_rules_of_cp_hold_in_the_guest(agent, guest, tmp_path):
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "f").write_text("x")
    (guest / "there").mkdir()
    await send_tree(agent, tmp_path / "box", f"{guest}/new")
    await send_tree(agent, tmp_path / "box", f"{guest}/there")
    await send_tree(agent, tmp_path / "box", f"{guest}/there")
    await send_tree(agent, f"{tmp_path}/box/.", f"{guest}/there")
    await send_tree(agent, tmp_path / "box" / "f", f"{guest}/there/g")
    found = sorted(str(path.relative_to(guest)) for path in guest.rglob("*") if path.is_file())
    assert found == ["new/f", "there/box/f", "there/f", "there/g"]
    with pytest.raises(GuestError) as caught:
        await send_tree(agent, tmp_path / "box", f"{guest}/missing/new")
    assert "must exist in the guest" in caught.value.hint
    with pytest.raises(GuestError) as caught:
        await receive_tree(agent, f"{guest}/missing", tmp_path / "x")
    assert caught.value.hint == "check the path in the guest"


async def test_holes_stay_holes(agent, guest, tmp_path):
    source = tmp_path / "sparse"
    with source.open("wb") as sparse:
        for at in (0, 1 << 24, 1 << 30):
            sparse.seek(at)
            sparse.write(b"data at %d" % at)
        sparse.truncate(1 << 36)
    await send_tree(agent, source, f"{guest}/copy")
    await receive_tree(agent, f"{guest}/copy", tmp_path / "back")
    for copy in (guest / "copy", tmp_path / "back"):
        assert (copy.stat().st_size, copy.stat().st_blocks) == (1 << 36, source.stat().st_blocks)
        with copy.open("rb") as file:
            file.seek(1 << 30)
            assert file.read(20) == b"data at 1073741824\0\0"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_owners_are_as_asked_for_in_the_guest_and_not_kept_on_the_host(agent, guest, tmp_path):
    (tmp_path / "box").mkdir()
    for name in ("f", "program"):
        (tmp_path / "box" / name).write_text("x")
    os.symlink("f", tmp_path / "box" / "s")
    os.chown(tmp_path / "box" / "program", 4321, 4322)
    (tmp_path / "box" / "program").chmod(0o6755)
    await send_tree(agent, tmp_path / "box", f"{guest}/kept")
    await send_tree(agent, tmp_path / "box", f"{guest}/given", user="65534:4")
    await receive_tree(agent, f"{guest}/kept", tmp_path / "back")
    await receive_tree(agent, f"{guest}/kept", tmp_path / "archive", archive=True)

    def owners(top):
        return {(path.lstat().st_uid, path.lstat().st_gid) for path in [top, *top.rglob("*")]}

    assert owners(guest / "kept") == owners(tmp_path / "archive") == {(0, 0), (4321, 4322)}
    assert owners(guest / "given") == {(65534, 4)}
    assert owners(tmp_path / "back") == {(0, 0)}
    modes = [stat.S_IMODE((tmp_path / name / "program").stat().st_mode) for name in ("back", "archive")]
    assert modes == [0o755, 0o6755]


async def test_files_and_links_in_the_way_are_replaced_and_not_written_through(agent, guest, tmp_path):
    (tmp_path / "box").mkdir()
    for name in ("a", "b"):
        (tmp_path / "box" / name).write_text("new")
    (guest / "outside").write_text("kept")
    (guest / "box").mkdir()
    (guest / "box" / "a").symlink_to("../outside")
    (guest / "box" / "b").hardlink_to(guest / "outside")
    await send_tree(agent, tmp_path / "box", str(guest))
    assert [(guest / "box" / name).read_text() for name in "ab"] == ["new", "new"]
    assert (guest / "outside").read_text() == "kept"


async def test_many_small_files_and_a_large_one_are_quick(agent, guest, tmp_path):
    top = tmp_path / "many"
    (top / "small").mkdir(parents=True)
    for number in range(2000):
        (top / "small" / f"file-{number}").write_text(f"content of {number}")
    (top / "large").write_bytes(os.urandom(1 << 20) * 64)
    began = time.monotonic()
    await send_tree(agent, top, str(guest))
    await receive_tree(agent, f"{guest}/many", tmp_path / "back")
    assert time.monotonic() - began < 20
    assert listing(tmp_path / "back") == listing(top)


async def test_copies_in_both_directions_run_beside_each_other_and_beside_commands(agent, guest, tmp_path):
    for number in range(4):
        make_tree(tmp_path / f"box{number}")
    await asyncio.gather(*(send_tree(agent, tmp_path / f"box{n}", str(guest)) for n in range(4)))
    backs = (receive_tree(agent, f"{guest}/box{n}", tmp_path / f"back{n}") for n in range(4))
    forths = (send_tree(agent, tmp_path / f"box{n}", f"{guest}/again{n}") for n in range(4))
    await asyncio.gather(*backs, *forths, *(agent.ping(b"x") for _ in range(20)))
    for number in range(4):
        expected = listing(tmp_path / f"box{number}")
        assert listing(tmp_path / f"back{number}") == listing(guest / f"again{number}") == expected


async def test_a_copy_that_is_cancelled_leaves_the_agent_useful(agent, guest, tmp_path):
    (tmp_path / "large").write_bytes(bytes(100_000_000))
    for copy in (
        send_tree(agent, tmp_path / "large", f"{guest}/x"),
        receive_tree(agent, str(tmp_path / "large"), tmp_path / "y"),
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await copy
        await agent.ping()
    assert not (tmp_path / "y").exists()
    assert not list(tmp_path.glob(".atoll-*"))


async def test_a_place_that_is_no_directory_is_told_with_its_path(agent, tmp_path):
    (tmp_path / "f").write_bytes(bytes(1000))
    with pytest.raises(GuestError) as caught:
        await send_tree(agent, tmp_path / "f", f"{tmp_path}/f/x")
    assert f"{tmp_path}/f/x" in caught.value.message
