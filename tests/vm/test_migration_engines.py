"""A migration between two real engines, each in a guest of its own."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tarfile

import pytest
from builds import take_image
from machines import kill_all_at, until
from test_engine import LIMIT, PACK

from atoll import store
from atoll.config import load
from atoll.containers import composing, launching
from atoll.containers.engine import IMAGE
from atoll.containers.listener import Timing
from atoll.containers.migration import inventory
from atoll.containers.migration.digests import TreeDigest
from atoll.containers.migration.journal import Journal
from atoll.containers.migration.remote import Remote
from atoll.paths import Paths

pytestmark = [pytest.mark.vm, pytest.mark.anyio, pytest.mark.timeout(600)]


@pytest.fixture
def homes(engine_config, tmp_path_factory, paths):
    target = tmp_path_factory.mktemp("migration")
    take_image(paths, Paths(data=target, cache=paths.cache), IMAGE)
    yield [engine_config.data_dir, target]
    kill_all_at(target)


@pytest.fixture
async def engines(homes, paths):
    """Two engines that answer, and their listeners."""
    settings = {
        "cache_dir": paths.cache,
        "accel": "tcg",
        "docker_cpus": 1,
        "docker_disk": "4G",
        "docker_shares": "",
    }
    configs = [load({"data_dir": home, **settings}, environment={}, files=()).config for home in homes]
    made = [composing.engine(config) for config in configs]
    await asyncio.gather(*(engine.ensure_ready(LIMIT) for engine in made))
    for config in configs:
        await launching.running(config, Timing(idle=0.0))
    yield made
    for engine, config in zip(made, configs, strict=True):
        await launching.stop(config.paths.docker, grace=0.0)
        await engine.close()
    await made[1].reset()


def odd_files():
    """A volume's content, below ``data``."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name, kind=tarfile.REGTYPE, content=b"", **fields):
            info = tarfile.TarInfo(f"data/{name}".rstrip("/"))
            info.type, info.size, info.mtime = kind, len(content), 1_600_000_000
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))

        add("", tarfile.DIRTYPE, mode=0o1770, uid=7, gid=8)
        add("setuid", content=b"x", mode=0o4755, uid=1234, gid=4321)
        add("zeros", content=bytes(3_000_001))
        add("new\nline", content=b"y", mode=0o600)
        add("ünï", content=os.urandom(100_000))
        add("zz-hard", tarfile.LNKTYPE, linkname="data/setuid")
        add("soft", tarfile.SYMTYPE, linkname="/nowhere", uid=5)
        add("pipe", tarfile.FIFOTYPE, mode=0o600)
        add("null", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("x" * 120, tarfile.DIRTYPE, mode=0o2711)
    return file.getvalue()


async def fill(remote, archive):
    """Have the source hold some of everything, and nothing of other tests."""
    await remote.ask("POST", "/containers/prune")
    await remote.ask("POST", "/images/prune", params={"filters": '{"dangling": ["false"]}'})
    made = await remote.ask(
        "POST", "/images/create", params={"fromSrc": "-", "repo": "tiny", "tag": "1"}, body=archive
    )
    number = made["status"]
    await remote.ask("POST", f"/images/{number}/tag", params={"repo": "r.test:5000/other", "tag": "two"})
    await remote.ask("POST", "/volumes/create", body={"Name": "things", "Labels": {"a": "b"}})
    ranges = [{"Subnet": "10.77.0.0/24", "Gateway": "10.77.0.1"}]
    wanted = {"Name": "lan", "IPAM": {"Config": ranges}, "Labels": {"x": "y"}}
    await remote.ask("POST", "/networks/create", body=wanted)
    web = {
        "Image": "tiny:1",
        "Cmd": ["/usr/bin/sleep", "1000"],
        "Env": ["A=b"],
        "Labels": {"role": "web"},
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {
            "NetworkMode": "lan",
            "RestartPolicy": {"Name": "unless-stopped"},
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "0"}]},
            "Binds": ["things:/data"],
        },
        "NetworkingConfig": {"EndpointsConfig": {"lan": {"Aliases": ["www"]}}},
    }
    await remote.ask("POST", "/containers/create", params={"name": "web"}, body=web)
    await remote.ask("PUT", "/containers/web/archive", params={"path": "/"}, body=odd_files())
    await remote.ask("POST", "/containers/web/start")
    gone = {"Image": "tiny:1", "Cmd": ["-"], "HostConfig": {"Binds": ["/no/such/place:/x"]}}
    await remote.ask("POST", "/containers/create", params={"name": "bound"}, body=gone)
    return number


async def tree(remote, path):
    digest = TreeDigest()
    async with remote.pull("/containers/web/archive", {"path": path}) as pieces:
        async for piece in pieces:
            digest.feed(piece)
    return digest.finish(), digest.entries


def stable(found):
    """An inventory without what changes by itself."""
    return [
        found.images,
        found.volumes,
        found.networks,
        [(one.name, one.state, one.host) for one in found.containers],
    ]


async def command(homes, paths):
    words = ("migrate", "from", str(homes[0] / "docker.sock"), "--yes", "--json")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATOLL_")}
    settings = {
        "ATOLL_DATA_DIR": str(homes[1]),
        "ATOLL_CACHE_DIR": str(paths.cache),
        "ATOLL_ACCEL": "tcg",
        "ATOLL_DOCKER_CPUS": "1",
        "ATOLL_DOCKER_DISK": "4G",
        "ATOLL_DOCKER_SHARES": "",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "atoll", *words, env={**kept, **settings}, stdout=asyncio.subprocess.PIPE
    )


def begun(home):
    """Whether a volume is being carried."""
    for path in (home / "migrations").glob("*.json"):
        entries = store.read_record(path, Journal).entries
        return any(name.startswith("volume:") for name in entries)
    return False


async def test_all_that_an_engine_has_comes_over_although_it_is_killed(engines, homes, paths):
    archive = (await engines[0]._machine.run(["sh", "-c", PACK], check=True)).stdout_bytes
    async with (
        Remote(homes[0] / "docker.sock", "source", writable=True) as source,
        Remote(homes[1] / "docker.sock", "target", writable=True) as target,
    ):
        number = await fill(source, archive)
        before = await inventory.read(source)
        first = await command(homes, paths)
        await until(lambda: begun(homes[1]))
        first.kill()
        assert (await first.communicate())[0] == b""
        second = await command(homes, paths)
        told, _ = await second.communicate()
        assert second.returncode == 0, told
        assert stable(await inventory.read(source)) == stable(before)
        after = await inventory.read(target)
        assert [(one.id, one.tags) for one in after.images] == [(number, ("r.test:5000/other:two", "tiny:1"))]
        assert [one.wanted for one in after.networks] == [one.wanted for one in before.networks]
        [volume] = after.volumes
        assert (volume.name, volume.labels) == ("things", {"a": "b"})
        assert await tree(target, "/data") == await tree(source, "/data")
        assert (await tree(target, "/data"))[1] == 10
        [web] = after.containers
        [was] = [one for one in before.containers if one.name == "web"]
        assert (web.name, web.state, web.host) == ("web", "running", was.host)
        kept = {name: value for name, value in was.inspected["Config"].items() if name != "Hostname"}
        assert kept.items() <= web.inspected["Config"].items()
        assert web.inspected["NetworkSettings"]["Networks"]["lan"]["Aliases"] == ["www"]
        assert b"bind_missing" in told
