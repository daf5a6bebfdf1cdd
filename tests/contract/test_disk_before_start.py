"""What a supervisor does with a machine's disk before a VM has it."""

from __future__ import annotations

import os

import pytest
from machines import at_rest, enter, hosted_spec, kill_all_at, supervised
from msgspec.structs import replace

from atoll import store
from atoll.errors import StoreError
from atoll.image.manifest import ImageManifest
from atoll.machine import editing, registry
from atoll.paths import Paths
from atoll.vm.bootplan import BootPlan
from atoll.vm.branching import finish_branch, prepare_branch
from atoll.vm.chain import PLAIN, files_of, read_chain, size_of
from atoll.vm.state import Phase
from atoll.vm.tidying import LONGEST

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

MIB = 1 << 20

IMAGE = ImageManifest(
    name="none:x", architecture="x86_64", distribution="none", suite="x", digest="", size=0, created=0.0
)


def lengthen(place, count):
    for _ in range(count):
        prepare_branch(place)
        finish_branch(place)


@pytest.fixture
async def place(tmp_path):
    place = enter(tmp_path)
    place.data.write_bytes(b"disk" * MIB)
    yield place
    kill_all_at(tmp_path)


async def start_and_stop(place):
    control = await supervised(place)
    status = await control.start()
    await control.stop(force=True)
    control.close()
    await at_rest(place)
    return status


async def test_a_long_chain_becomes_one_file_of_the_size_that_was_asked_for(place):
    lengthen(place, LONGEST)
    plan = store.read_record(place.boot, BootPlan)
    store.write_record(place.boot, replace(plan, disk=16 * MIB))
    assert (await start_and_stop(place)).state.phase is Phase.RUNNING
    assert read_chain(place) == PLAIN
    assert size_of(place, PLAIN) == 16 * MIB
    assert place.data.read_bytes().rstrip(b"\0") == b"disk" * MIB


async def test_a_chain_that_cannot_be_folded_starts_as_it_is(place):
    lengthen(place, LONGEST)
    chain = read_chain(place)
    with files_of(place, chain)[1].open("r+b") as damaged:
        damaged.write(b"nothing")
    assert (await start_and_stop(place)).state.phase is Phase.RUNNING
    assert read_chain(place) == chain


async def test_a_machine_that_lost_a_file_says_which(place):
    lengthen(place, 2)
    lost = files_of(place, read_chain(place))[0]
    lost.unlink()
    control = await supervised(place)
    with pytest.raises(StoreError, match=lost.name):
        await control.start()
    control.close()
    await at_rest(place)


def test_where_there_are_no_links_a_clone_is_a_copy(tmp_path, monkeypatch):
    paths = Paths(data=tmp_path, cache=tmp_path)

    def fill(place):
        place.data.write_bytes(b"disk")
        place.root.touch()
        store.write_record(place.image, IMAGE)

    registry.add(paths, "dev", hosted_spec(), fill)

    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with registry.change(paths, "dev") as machine:
        editing.clone(paths, machine, "twin")
    assert paths.machine("twin").data.read_bytes() == b"disk"
    assert [read_chain(paths.machine(name)) for name in ("dev", "twin")] == [PLAIN, PLAIN]
    assert not list(paths.machine("dev").directory.glob("active-*"))
