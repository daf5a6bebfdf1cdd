"""Sandboxes that are written down while they run on, where that can be, and what if it fails half-way."""

from __future__ import annotations

import fcntl
import os

import pytest

from atoll import aio
from atoll.errors import BootError
from atoll.events import VmCaptured, Warned
from atoll.snapshot import catalog

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]

#: It writes to all of its memory over and over, and says how often it has.
BUSY = """
head -c 20000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big > /dev/shm/sum; : > /dev/shm/count
setsid sh -c 'while sleep 0.01; do
head -c 4000000 /dev/zero > /dev/shm/busy; echo x >> /dev/shm/count; done' > /dev/null 2>&1 &
"""


async def count(box):
    return len((await box.run(["cat", "/dev/shm/count"], check=True)).stdout)


@pytest.mark.parametrize("cold", [True, False])
async def test_it_runs_on_if_its_memory_is_its_own_and_else_says_why_not(config, cold):
    events = []
    async with aio.Sandbox("debian", config=config, cold=cold, on_event=events.append) as box:
        await box.run(["sh", "-c", BUSY], check=True)
        made = await box.snapshot("live", pause=False)
        try:
            warned = [event.message for event in events if isinstance(event, Warned)]
            assert [("memory configuration" in message) for message in warned] == ([] if cold else [True])
            assert [event.stopped for event in events if isinstance(event, VmCaptured)] == [
                made.manifest.stopped
            ]
            counted = await count(box)
            await box.run(["sleep", "0.3"], check=True)
            assert await count(box) > counted
            async with aio.Sandbox(snapshot="live", config=config) as other:
                await other.run(["sha256sum", "-c", "/dev/shm/sum"], check=True)
        finally:
            catalog.remove(config.paths, made.id)


async def test_where_qemu_cannot_write_all_of_it_the_guest_goes_on(config):
    async with aio.Sandbox("debian", config=config, cold=True) as box:
        await box.run(["sh", "-c", BUSY], check=True)
        full = os.memfd_create("full", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(full, 8 << 20)
            fcntl.fcntl(full, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            with pytest.raises(BootError) as caught:
                await box.vm.freezable.copy(full, leave_out_shared=True, live=True)
        finally:
            os.close(full)
        assert caught.value.code == "boot.copy"
        counted = await count(box)
        await box.run(["sha256sum", "-c", "/dev/shm/sum"], check=True)
        await box.run(["sleep", "0.3"], check=True)
        assert await count(box) > counted
        [copy] = await box.fork()
        async with copy:
            await copy.run(["sha256sum", "-c", "/dev/shm/sum"], check=True)
