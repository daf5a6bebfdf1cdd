"""``files`` of a machine: its supervisor is on the way."""

from __future__ import annotations

import os
from contextlib import aclosing

import pytest
from machines import KILL, enter, gone, kill_all_at, supervised, until

from atoll import aio
from atoll.config import load
from atoll.errors import ChannelError, FileMissingError
from atoll.vm.state import StateError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def dev(tmp_path):
    """A machine that runs, whose guest is this host."""
    control = await supervised(enter(tmp_path))
    await control.start()
    control.close()
    config = load({"data_dir": tmp_path, "cache_dir": tmp_path}, environment={}, files=()).config
    machine = aio.Machine("dev", config=config)
    yield machine
    await machine.close()
    kill_all_at(tmp_path)


@pytest.fixture
def guest(tmp_path):
    place = tmp_path / "guest"
    place.mkdir()
    return place


async def test_files_are_used_through_the_supervisor(dev, guest):
    content = os.urandom(3_000_000)
    async with dev.files.watch(guest) as changes:
        await dev.files.write(guest / "f", content)
        assert await dev.files.read(guest / "f") == content
        assert [info.name for info in await dev.files.list(guest)] == ["f"]
        while (change := await changes.next(60)).kind != "moved":
            pass
        assert change.path == f"{guest}/f"
    async with aclosing(dev.files.read_chunks("/proc/kallsyms")) as chunks:
        assert await anext(chunks)
    with pytest.raises(FileMissingError) as caught:
        await dev.files.stat(guest / "missing")
    assert caught.value.hint
    await dev.stop(force=True)
    with pytest.raises(StateError):
        await dev.files.exists(guest)


async def test_a_watch_ends_with_its_supervisor_and_files_go_on_with_the_next(dev, guest):
    supervisor = (await dev.status()).supervisor
    changes = dev.files.watch(guest)
    await changes.open()
    os.kill(supervisor, KILL)
    await gone(supervisor)
    with pytest.raises(ChannelError):
        await changes.next(60)
    assert await changes.next() is None
    await until(lambda: dev._control is None)
    await dev.files.write(guest / "f", "after")
    assert (guest / "f").read_text() == "after"
    assert (await dev.status()).supervisor != supervisor
    await dev.stop(force=True)
