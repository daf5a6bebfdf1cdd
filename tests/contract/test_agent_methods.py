"""The requests that machines make of their agent, as the hosted one answers them."""

from __future__ import annotations

import os
import shutil

import pytest
from hosted import hosted_agent

from atoll.errors import GuestError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
async def agent():
    async with hosted_agent() as agent:
        yield agent


async def test_statistics_are_those_of_the_system(agent):
    stats = await agent.stats()
    assert stats.memory.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < stats.memory.available <= stats.memory.total
    assert stats.disk.size == shutil.disk_usage("/").total
    assert stats.cpu.user > 0
    assert stats.processes > 1
    later = await agent.stats()
    assert later.uptime > stats.uptime
    assert later.cpu.idle >= stats.cpu.idle


async def test_a_hosted_agent_takes_what_would_change_its_system_without_doing_it(agent):
    assert await agent.load_modules(["kernel/fs/ext4/ext4.ko"]) == 0
    assert await agent.configure_network(
        "02:00:00:00:00:01", "10.0.2.15/24", gateway="10.0.2.2", resolvers=["10.0.2.3"], wait=0.5
    )
    await agent.mount("virtiofs", "tag", "/no/such/place", options="dax=never", read_only=True)
    await agent.unmount("/no/such/place", lazy=True)
    assert "no" not in os.listdir("/")
    grown = await agent.grow_data()
    assert grown.before == grown.size > 0
    assert await agent.trim_data() == 0
    assert await agent.bring_cpus_online() == os.sysconf("SC_NPROCESSORS_ONLN")


async def test_what_cannot_be_meant_is_refused(agent):
    for request in (
        agent.load_modules(["../../etc/passwd"]),
        agent.configure_network("02:00:00:00:00:01", "10.0.2.15"),
        agent.mount("virtiofs", "tag", "relative"),
        agent.unmount("relative"),
    ):
        with pytest.raises(GuestError) as caught:
            await request
        assert caught.value.reason == "invalid"


async def test_a_tree_at_no_absolute_path_is_refused(agent):
    for stream in (agent.read_tree("tmp"), agent.write_tree("tmp", "x"), agent.write_tree("/tmp", "a/b")):
        with pytest.raises(GuestError) as caught:
            await stream.reply(dict)
        stream.cancel()
        assert caught.value.reason == "invalid"
