"""What a sandbox may use, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from atoll import aio
from atoll.errors import CommandTimeoutError, UsageError
from atoll.sandbox.limits import CODE_EXECUTION
from atoll.vm.state import StateError

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

FORKS = "i=0; while [ $i -lt 60 ]; do sleep 2 & i=$((i+1)); done; wait"


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.usefixtures("no_leftovers")
async def test_disk_and_processes_are_limited(config, cold):
    async with aio.Sandbox("debian", config=config, cold=cold, disk="20M", processes=30) as box:
        wrote = await box.run(["sh", "-c", "head -c 30M /dev/zero > /root/big; stat -c %s /root/big"])
        assert "No space left on device" in wrote.stderr
        assert int(wrote.stdout) <= 20 << 20
        assert (await box.run(["sh", "-c", "rm /root/big; echo fits > /root/small"])).ok
        many = await box.run(["sh", "-c", FORKS])
        assert "fork" in many.stderr
        assert (await box.run(["echo", "here"])).stdout == "here\n"


@pytest.mark.usefixtures("no_leftovers")
async def test_a_command_has_the_sandboxes_limit_unless_it_has_its_own(config):
    async with aio.Sandbox("debian", config=config, command_timeout=0.3) as box:
        with pytest.raises(CommandTimeoutError):
            await box.run(["sleep", "60"])
        assert (await box.run(["sleep", "0.6"], timeout=30)).ok


@pytest.mark.usefixtures("no_leftovers")
async def test_its_time_ends_it_with_whatever_it_does(config):
    box = aio.Sandbox("debian", config=config, ttl=1.0)
    await box.open()
    with pytest.raises(StateError) as caught:
        await box.run(["sleep", "60"])
    assert caught.value.code == "state.expired"
    with pytest.raises(StateError, match="its 1 s are over"):
        await box.run(["true"])
    await box.close()


@pytest.mark.usefixtures("no_leftovers")
async def test_the_time_of_one_in_a_pool_begins_when_it_is_claimed(config):
    async with aio.Pool("debian", size=1, config=config, ttl=2.0, idle_timeout=1.0) as pool:
        await pool.filled()
        await asyncio.sleep(2.2)
        async with await pool.claim() as box:
            assert (await box.run(["echo", "here"])).stdout == "here\n"
            async with asyncio.timeout(60):
                await box.vm.wait()


@pytest.mark.usefixtures("no_leftovers")
async def test_one_that_nobody_uses_is_closed_and_one_that_works_is_not(config):
    async with aio.Sandbox("debian", config=config, idle_timeout=0.5) as box:
        assert (await box.run(["sleep", "1.2"])).ok
        async with asyncio.timeout(60):
            await box.vm.wait()
        with pytest.raises(StateError, match="nobody used it"):
            await box.run(["true"])


@pytest.mark.usefixtures("no_leftovers")
async def test_one_that_nobody_uses_stands_still_until_it_is_used_again(config):
    async with aio.Sandbox("debian", config=config, idle_timeout=0.3, on_idle="pause") as box:
        await box.run(
            ["sh", "-c", "setsid sh -c 'while sleep 0.05; do echo x >> /tmp/n; done' > /dev/null 2>&1 &"]
        )
        await asyncio.sleep(2.5)  # what is tested is that nothing happens
        counted = int((await box.run(["sh", "-c", "cat /tmp/n | wc -l"])).stdout)
        assert counted < 30
        shown = float((await box.run(["date", "+%s"])).stdout)
        assert abs(shown - float((await box.run(["date", "+%s"])).stdout)) < 3


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.usefixtures("no_leftovers")
async def test_it_has_a_network_if_it_is_asked_for(config, cold):
    async with aio.Sandbox("debian", config=config, cold=cold, network=True) as box:
        assert (box.vm.clone is None) is cold
        assert "default via 10.1.0.2" in (await box.run(["ip", "route"])).stdout
        mac = (await box.run(["cat", "/sys/class/net/eth0/address"])).stdout.strip()
        assert mac.startswith("02:")
        assert mac != "02:00:00:00:00:01"
    async with aio.Sandbox("debian", config=config, cold=cold) as box:
        assert (await box.run(["ls", "/sys/class/net"])).stdout.split() == ["lo"]


@pytest.mark.usefixtures("no_leftovers")
async def test_the_preset_for_code_limits_all_of_it(config):
    async with aio.Sandbox("debian", config=config, labels={"job": "7"}, **CODE_EXECUTION) as box:
        assert box.labels == {"job": "7"}
        assert (await box.run(["ls", "/sys/class/net"])).stdout.split() == ["lo"]
        assert (
            int((await box.run(["sh", "-c", "df -m / | tail -1 | tr -s ' ' | cut -d' ' -f2"])).stdout) == 256
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"disk": "much"},
        {"disk": 0},
        {"processes": 0},
        {"ttl": 0},
        {"ttl": float("inf")},
        {"idle_timeout": -1},
        {"on_idle": "sleep"},
    ],
    ids=str,
)
async def test_what_is_no_limit_is_refused(wrong):
    with pytest.raises(UsageError) as caught:
        aio.Sandbox("debian", **wrong)
    assert caught.value.code == "usage.limit"
