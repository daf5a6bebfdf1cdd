"""What VMs may reach: from their first packet on, for copies, and when it is changed."""

from __future__ import annotations

import os

import pytest
from machines import KILL, at_rest, gone, kill_all_at, until
from networks import brief_network, pid_of
from outside import needs_root, outside

from atoll import runtime, store
from atoll.config import load
from atoll.errors import NetworkError, UsageError
from atoll.image import catalog
from atoll.machine.machine import Machine
from atoll.network.audit import AuditLog, Decided
from atoll.sandbox.sandbox import Sandbox

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers"), needs_root]


@pytest.fixture(scope="module")
def far():
    with outside() as far:
        yield far


@pytest.fixture
def settings(tmp_path, paths):
    catalog.ensure(paths, "debian", architecture=runtime.host_architecture())
    (tmp_path / "images").symlink_to(paths.images)
    flags = {"data_dir": tmp_path, "cache_dir": paths.cache, "accel": "tcg"}
    config = load(flags, environment={}, files=()).config
    for name in ("default", "sandboxes"):
        brief_network(config.paths.network(name))
    yield config
    kill_all_at(tmp_path)


async def reaches(vm, host):
    asking = ["bash", "-c", f"exec 3<>/dev/tcp/{host}/22 && head -c 5 <&3"]
    return (await vm.run(asking)).stdout == "hello"


async def test_a_sandbox_and_its_copies_are_held_to_their_policy(settings, far):
    allowing = f"allow {far.four}:22"
    async with Sandbox("debian", network="own", egress="none", config=settings) as box:
        assert not await reaches(box, far.four)
        await box.set_egress(allowing)
        assert await reaches(box, far.four)
        (copy,) = await box.fork()
        async with copy:
            assert await reaches(copy, far.four)
            assert not await reaches(copy, far.other)
            await copy.set_egress("none")
            assert not await reaches(copy, far.four)
        assert await reaches(box, far.four)
        await box.snapshot("then")
    async with Sandbox(snapshot="then", config=settings) as again:
        assert await reaches(again, far.four)
        assert not await reaches(again, far.other)
    log = AuditLog(settings.paths.network("sandboxes").audit)
    await until(lambda: sum(isinstance(each, Decided) for each in log.records()) == 8)
    with pytest.raises(UsageError):
        Sandbox("debian", egress="none", config=settings)


async def test_a_machine_is_held_to_what_was_asked_for_last(settings, far):
    network = settings.paths.network("default")
    dev = await Machine.create(
        "dev", init="minimal", disk="256M", memory="256M", egress=["none"], config=settings
    )
    await dev.start()
    assert not await reaches(dev, far.four)
    await dev.snapshot("then")
    assert await dev.set_egress(f"allow {far.four}") == "now"
    assert await reaches(dev, far.four)

    # Whoever is killed, it is as it was.
    pid, supervisor = pid_of(network), (await dev.status()).supervisor
    os.kill(supervisor, KILL)
    await gone(supervisor)
    os.kill(pid, KILL)
    await gone(pid)
    await until(lambda: dev.control.broken)
    await dev.status()
    await until(lambda: store.is_held(network.lock) and network.lock.read_text() not in {"", str(pid)})
    await until(lambda: "plugged in" in network.log.read_text().rpartition("serving")[2])
    assert await reaches(dev, far.four)
    assert not await reaches(dev, far.other)

    (twin,) = await dev.fork("twin")
    assert (await reaches(twin, far.four), await reaches(twin, far.other)) == (True, False)
    await twin.stop(force=True)
    await twin.close()
    await dev.restore("then")
    assert (await reaches(dev, far.four), await reaches(dev, far.other)) == (True, False)
    await dev.stop(force=True)
    await dev.close()
    for name in ("dev", "twin"):
        await at_rest(settings.paths.machine(name))

    # Where it cannot be enforced there is no machine.
    await until(lambda: not store.is_held(network.lock))
    network.record.write_text("{}")
    with pytest.raises(NetworkError):
        await dev.start()
    await dev.close()
