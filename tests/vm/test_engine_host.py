"""What the engine has of its host: directories, names, registries, proxies; and programs not made for it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest
from dockers import registry
from machines import until
from msgspec.structs import replace
from programs import packaged
from registries import authority, proxy, upload

from atoll.containers import api, composing
from atoll.containers.engine import NAME, Engine
from atoll.containers.guest import _emulation
from atoll.containers.mounts import Unshared
from atoll.containers.ports import Ports
from atoll.containers.settings import Proxy
from atoll.errors import ConfigError
from atoll.events import Warned
from atoll.image.foreign import FOREIGN, PLATFORMS, interpreter

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]

LIMIT = 240.0
NATIVE = os.uname().machine
OTHER = FOREIGN[NATIVE]

#: What containers do that end at once when they are told to.
LONG = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done")


@pytest.fixture
def made(engine_config):
    """Makes the engine with other settings."""

    def make(**wishes):
        return Engine(replace(composing.engine_settings(engine_config), **wishes), config=engine_config)

    return make


@pytest.fixture
async def engine(made, paths):
    one = made()
    await one.ensure_ready(LIMIT)
    if "small:latest" not in await tags(one):
        path = "/images/create?fromSrc=-&repo=small"
        busybox = packaged(paths, "busybox-static")
        await ask(
            one, "POST", path, archive(sh=busybox, cat=busybox, sleep=busybox), kind="application/x-tar"
        )
    yield one
    await one.close()


def archive(**programs):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, program in programs.items():
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.size, entry.mode = program.stat().st_size, 0o755
            with program.open("rb") as file:
                made.addfile(entry, file)
    return buffer.getvalue()


async def ask(engine, method, path, body=None, **options):
    data = msgspec.json.encode(body) if isinstance(body, dict) else body or b""
    return await api.call(await engine.connected(), method, path, data, **options)


async def begin(engine, *command, image="small", platform="", network="none", **host):
    wanted = {"Image": image, "Cmd": list(command), "HostConfig": {"NetworkMode": network, **host}}
    created = await ask(engine, "POST", f"/containers/create?platform={platform}", wanted)
    name = json.loads(created)["Id"]
    await ask(engine, "POST", f"/containers/{name}/start")
    return name


async def ended(engine, name):
    """How a container ended, and what it wrote."""
    status = json.loads(await ask(engine, "POST", f"/containers/{name}/wait"))["StatusCode"]
    said = await ask(engine, "GET", f"/containers/{name}/logs?stdout=1&stderr=1")
    await ask(engine, "DELETE", f"/containers/{name}?force=1")
    return status, said[8:].decode()  # behind the first frame's header


async def tags(engine):
    found = json.loads(await ask(engine, "GET", "/images/json"))
    return {tag for image in found for tag in image["RepoTags"] or ()}


async def test_a_program_of_the_other_architecture_runs_and_says_what_is_missing_if_it_cannot(
    engine, tmp_path
):
    source = Path(__file__).parents[1] / "foreign.c"
    options = ["-target", f"{OTHER}-linux-none", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O1"]
    compiler = [sys.executable, "-m", "ziglang", "cc", *options]
    words = [*compiler, "-static", "-o", tmp_path / "who", source]
    await asyncio.to_thread(subprocess.run, words, check=True)
    path = f"/images/create?fromSrc=-&repo=foreign&platform={PLATFORMS[OTHER]}"
    await ask(engine, "POST", path, archive(who=tmp_path / "who"), kind="application/x-tar")

    async def run():
        return await ended(
            engine, await begin(engine, "/bin/who", image="foreign", platform=PLATFORMS[OTHER])
        )

    assert await run() == (7, f"{OTHER} as /bin/who\n")
    assert (await engine.status()).emulated == (PLATFORMS[OTHER],)
    there = f"/usr/bin/{interpreter(OTHER)}"
    shell = engine._machine.run
    await shell(["mv", there, "/usr/bin/away"], check=True)
    await shell(["/bin/sh", "-c", _emulation()], check=True)
    status, said = await run()
    assert (status, "`atoll image build --force engine`" in said) == (126, True)
    await shell(["mv", "/usr/bin/away", there], check=True)
    await shell(["/bin/sh", "-c", _emulation()], check=True)
    assert (await run())[0] == 7


async def test_a_shared_directory_is_the_hosts_and_any_other_is_told_of(engine, engine_config):
    [shared] = engine_config.docker_shares
    other = shared.with_name("other")
    (shared / "in").write_text("of the host\n")
    (shared / "link").symlink_to("in")
    script = "cat link; echo guest > out; sh -c 'cat /proc/self/mounts' > mounts; : > mine"
    words = ["/bin/sh", "-c", f"cd /app && {script}"]
    assert await ended(engine, await begin(engine, *words, Binds=[f"{shared}:/app"])) == (0, "of the host\n")
    assert (shared / "out").read_text() == "guest\n"
    assert " /app virtiofs rw" in (shared / "mounts").read_text()
    (shared / "mine").chmod(0o604)
    os.chown(shared / "mine", 77, 88)
    told = []
    ports = Ports(engine, NAME, lan=False, emit=told.append)
    binds = [f"{other}:/other", f"{shared}:/app", "/run/docker.sock:/sock"]
    name = await begin(engine, *LONG, Binds=binds)
    try:
        await until(lambda: ports.unshared, what="nothing was told")
        [one] = ports.unshared
        assert one == Unshared(str(other), one.container)
        assert [event.message for event in told if isinstance(event, Warned)] == [str(one)]
        assert not other.exists()
        await ask(engine, "DELETE", f"/containers/{name}?force=1")
        await until(lambda: not ports.unshared, what="it is still told of")
    finally:
        await ports.close()
    await engine.suspend()
    await engine.ensure_ready(LIMIT)
    (shared / "in").write_text("changed\n")
    assert await ended(engine, await begin(engine, *words, Binds=[f"{shared}:/app"])) == (0, "changed\n")


async def test_registries_proxies_and_authorities_of_the_host_are_used_after_a_restart_that_keeps_what_runs(
    engine, made, paths, tmp_path
):
    program = packaged(paths, "docker-registry")
    ca, certificate, key = authority(tmp_path, "host.docker.internal")
    with (
        registry(program, tmp_path / "plain") as plain,
        registry(program, tmp_path / "safe", certificate=certificate, key=key) as safe,
    ):
        for name in ("library/mirrored", "direct", "through"):
            await asyncio.to_thread(upload, f"http://127.0.0.1:{plain}", name)
        await asyncio.to_thread(upload, f"https://127.0.0.1:{safe}", "trusted")
        kept = await begin(engine, *LONG, RestartPolicy={"Name": "always"})
        lost = await begin(engine, *LONG)
        before = (await engine._machine.status()).vm
        for wrong, word in (({"log-level": "shouting"}, "shouting"), ({"no-such-key": 1}, "no-such-key")):
            refused = made(daemon=wrong)
            with pytest.raises(ConfigError) as caught:
                await refused.restart(LIMIT)
            assert (caught.value.code, word in caught.value.detail) == ("config.engine", True)
            await refused.close()
        assert (await engine._machine.status()).vm == before
        async with proxy(plain) as (port, seen):
            changed = made(
                memory=768 << 20,
                mirrors=(f"http://localhost:{plain}",),
                insecure=(f"localhost:{plain}", "registry.invalid:80"),
                proxy=Proxy(http=f"http://127.0.0.1:{port}", https=f"http://127.0.0.1:{port}"),
                certificates=(ca,),
                daemon={"labels": ["told=here"]},
            )
            await changed.restart(LIMIT)
            info = json.loads(await ask(changed, "GET", "/info"))
            assert (info["Labels"], info["MemTotal"] < 800 << 20) == (["told=here"], True)
            running = {one["Id"] for one in json.loads(await ask(changed, "GET", "/containers/json"))}
            assert kept in running
            assert lost not in running
            for image in (
                "mirrored",
                f"host.docker.internal:{plain}/direct",
                f"host.atoll.internal:{plain}/direct",
                f"host.docker.internal:{safe}/trusted",
                "registry.invalid:80/through",
            ):
                said = await ask(changed, "POST", f"/images/create?fromImage={image}&tag=latest")
                assert f"{image}:latest" in await tags(changed), said
            assert any("registry.invalid" in line for line in seen)
            assert not any("host.docker" in line for line in seen)
        await ask(changed, "DELETE", f"/containers/{kept}?force=1")
        await changed.close()
