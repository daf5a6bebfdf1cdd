"""Docker's engine in a real guest: one for all tests here and in other files, which leave it as they like."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest
from machines import KILL, gone, until

from atoll import store
from atoll.containers import api, composing
from atoll.containers.engine import NAME
from atoll.errors import ImageError, UsageError
from atoll.image.manifest import ImageManifest
from atoll.machine.machine import Machine
from atoll.vm.state import StateError

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]

LIMIT = 240.0

#: A shell with all that it needs, out of the engine's own root.
PACK = """cd /
libraries=$(ldd /usr/bin/sh /usr/bin/sleep | grep -o '/lib[^ ]*[.]so[^ ]*' | sort -u)
tar -chf - usr/bin/sh usr/bin/sleep $libraries
"""


@pytest.fixture
async def engine(engine_config):
    made = composing.engine(engine_config)
    yield made
    await made.close()


async def ask(engine, method, path, body=None, **options):
    data = msgspec.json.encode(body) if isinstance(body, dict) else body or b""
    return await api.call(await engine.dial(), method, path, data, **options)


async def create(engine, *command, **wishes):
    wanted = {"Image": "tiny", "Cmd": list(command), "HostConfig": {"NetworkMode": "none"}, **wishes}
    made = await ask(engine, "POST", "/containers/create", wanted)
    name = msgspec.json.decode(made)["Id"]
    await ask(engine, "POST", f"/containers/{name}/start")
    return name


async def bring(engine, name):
    """Make the image ``name``, which has a shell."""
    archive = (await engine._machine.run(["sh", "-c", PACK], check=True)).stdout_bytes
    path = f"/images/create?fromSrc=-&repo={name}"
    await ask(engine, "POST", path, archive, kind="application/x-tar")


async def images(engine):
    found = msgspec.json.decode(await ask(engine, "GET", "/images/json"))
    return {image["Id"]: image["RepoTags"] for image in found}


async def test_users_cannot_remove_it(engine, engine_config):
    await engine.ensure_ready(LIMIT)
    with pytest.raises(UsageError) as caught:
        await Machine(NAME, config=engine_config).remove(force=True)
    assert caught.value.code == "usage.reserved"
    assert (await engine.status()).ready


async def test_a_container_runs_and_what_it_keeps_lies_on_the_disk_itself(engine):
    await engine.ensure_ready(LIMIT)
    await bring(engine, "tiny")
    name = await create(engine, "/usr/bin/sh", "-c", "echo $((6 * 7))")
    assert msgspec.json.decode(await ask(engine, "POST", f"/containers/{name}/wait"))["StatusCode"] == 0
    assert b"42\n" in await ask(engine, "GET", f"/containers/{name}/logs?stdout=1")
    info = msgspec.json.decode(await ask(engine, "GET", "/info"))
    assert (info["Driver"], info["CgroupVersion"]) == ("overlay2", "2")
    mounts = (await engine._machine.run(["cat", "/proc/mounts"])).stdout
    assert all(f" {place} ext4 " in mounts for place in ("/var/lib/docker", "/var/lib/containerd"))
    assert not await engine.busy()


async def test_it_rests_with_its_containers_and_goes_on_with_them(engine):
    await engine.ensure_ready(LIMIT)
    name = await create(engine, "/usr/bin/sleep", "1000")
    assert await engine.busy()
    await engine.suspend()
    await engine.suspend()
    assert (await engine.status()).phase == "suspended"
    assert not await engine.busy()
    await engine.ensure_ready(LIMIT)
    assert await engine.busy()
    top = msgspec.json.decode(await ask(engine, "GET", f"/containers/{name}/top"))
    assert any("sleep" in word for row in top["Processes"] for word in row)
    await ask(engine, "DELETE", f"/containers/{name}?force=1")


async def test_each_of_its_programs_comes_back_when_it_is_killed(engine):
    await engine.ensure_ready(LIMIT)
    before = await images(engine)
    for name in ("containerd", "dockerd"):
        kill = f"read -r pid < /run/atoll-engine/{name}.pid; kill -9 $pid"
        await engine._machine.run(["sh", "-c", kill], check=True)
    while not (await engine._ends())["dockerd"]:  # noqa: ASYNC110 - only asking again tells
        await asyncio.sleep(0.05)
    await engine.ensure_ready(LIMIT)
    assert await images(engine) == before
    assert "dockerd has ended with status 137; it is started again" in await engine.logs()


async def test_one_that_is_killed_boots_once_for_all_with_every_image_unless_a_program_is_missing(
    engine, engine_config
):
    await engine.ensure_ready(LIMIT)
    status = await engine._machine.status()
    place = engine._machine.find().place
    await bring(engine, "fresh")
    before = await images(engine)
    os.kill(status.supervisor, KILL)
    os.kill(status.vm, KILL)
    await gone(status.vm)
    await until(lambda: not engine._machine.state.active)
    with pytest.raises(StateError):
        await engine.dial()
    record = store.read_record(place.image, ImageManifest)
    without = tuple(program for program in record.programs if program.name != "runc")
    store.write_record(place.image, msgspec.structs.replace(record, programs=without))
    with pytest.raises(ImageError) as caught:
        await engine.ensure_ready(LIMIT)
    assert (caught.value.code, "runc is missing" in caught.value.message) == ("image.program", True)
    assert "atoll image build --force engine" in caught.value.hint
    store.write_record(place.image, record)
    other = composing.engine(engine_config)
    await asyncio.gather(engine.ensure_ready(LIMIT), other.ensure_ready(LIMIT), engine.ensure_ready(LIMIT))
    assert await api.get(await other.dial(), "/_ping") == b"OK"
    await other.close()
    found = await engine.status()
    assert (found.phase, found.ready, found.pending) == ("running", True, False)
    assert await images(engine) == before
    name = await create(engine, "/usr/bin/sh", "-c", "exit 7", Image="fresh")
    assert msgspec.json.decode(await ask(engine, "POST", f"/containers/{name}/wait"))["StatusCode"] == 7
