"""The Docker engine: how soon it answers, what a call and a container cost more than inside the guest.

``calls.c`` makes the same calls of the API on both sides: on this host through the Docker socket, in the
guest at dockerd's own. Both take turns, so that changes of the host's speed meet both. The engine is one of
the benchmark's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import common

from atoll import runtime
from atoll.config import Config, load
from atoll.containers import api, composing, launching
from atoll.containers.engine import IMAGE, NAME, Engine
from atoll.containers.listener import Timing
from atoll.image import catalog
from atoll.machine.machine import Machine

HERE = Path(__file__).parent
MIB = 1 << 20
LIMIT = 240.0

#: Where the program is in the guest, and dockerd's socket.
CALLS, INSIDE = "/usr/local/bin/calls", "/run/docker.sock"


def main(runs: int) -> None:
    """All figures of the engine."""
    print(f"docker: load of this host {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="atoll-", dir="/var/tmp") as place:
        asyncio.run(_main(runs, Path(place)))


async def _main(runs: int, place: Path) -> None:
    user = load().config
    image = catalog.ensure(user.paths, IMAGE)
    copy = place / "images" / image.directory.name
    shutil.copytree(image.directory, copy)
    wishes = {"data_dir": place, "cache_dir": user.cache_dir, "docker_shares": ()}
    config = load(wishes).config
    engine = composing.engine(config)
    calls = _compiled(place / "calls")
    try:
        await _starts(engine, config, max(3, runs // 3))
        machine = Machine(NAME, config=config)
        await machine.copy_in(calls, CALLS)
        await _compare(engine, machine, Sides(machine, config.paths.docker.socket, calls), place, runs)
        await machine.close()
    finally:
        await launching.stop(config.paths.docker, grace=0.0)
        await engine.reset()
        await engine.close()


def _compiled(output: Path) -> Path:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{runtime.host_architecture()}-linux-musl"]
    subprocess.run([*compiler, "-O2", "-static", "-s", "-o", output, HERE / "calls.c"], check=True)
    return output


async def _starts(engine: Engine, config: Config, runs: int) -> None:
    await engine.ensure_ready(LIMIT)  # the first start makes its disk
    samples: dict[str, list[float]] = {"cold": [], "suspended": []}
    for _ in range(runs):
        for kind, rest in (("cold", engine.stop), ("suspended", engine.suspend)):
            await rest()
            await launching.stop(config.paths.docker, grace=0.0)
            await launching.running(config, Timing(idle=0.0))
            began = time.perf_counter()
            await asyncio.to_thread(_ping, config.paths.docker.socket)
            samples[kind].append(time.perf_counter() - began)
    common.line("stopped: socket to _ping", samples["cold"])
    waking = common.line("suspended: socket to _ping", samples["suspended"])
    common.verdict("suspended to _ping, seconds", waking, 2.0)


def _ping(sock: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(sock))
        client.sendall(api.request("GET", "/_ping"))
        answer = b""
        while data := client.recv(65_536):
            answer += data
    assert api.body_of(answer, "/_ping") == b"OK"


class Sides:
    """The same calls from both sides."""

    def __init__(self, machine: Machine, sock: Path, calls: Path) -> None:
        self._machine = machine
        self._sock = sock
        self._calls = calls

    async def outside(self, *words: str) -> list[float]:
        """Milliseconds of each call through the Docker socket."""
        argv = [self._calls, self._sock, *words]
        done = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True)
        return [float(line) for line in done.stdout.split()]

    async def inside(self, *words: str) -> list[float]:
        """Milliseconds of each call at dockerd's own socket."""
        done = await self._machine.run([CALLS, INSIDE, *words], check=True)
        return [float(line) for line in done.stdout.split()]

    async def both(self, times: int, *words: str) -> tuple[list[float], list[float]]:
        """Those inside and outside, which took turns so many times."""
        there, here = [], []
        for _ in range(times):
            there += await self.inside(*words)
            here += await self.outside(*words)
        return there, here


async def _compare(engine: Engine, machine: Machine, sides: Sides, place: Path, runs: int) -> None:
    await sides.both(1, "ping", "20")
    there, here = await sides.both(runs, "ping", "20")
    floor = common.line("_ping inside the guest", there, "ms", 2)
    took = common.line("_ping through the socket", here, "ms", 2)
    common.verdict("overhead of a call, ms", took - floor, 5.0)
    path = "/images/create?fromSrc=-&repo=tiny"
    root = _archive(("bin/true", (place / "calls").read_bytes()))
    await api.call(await engine.connected(), "POST", path, root, kind="application/x-tar")
    await sides.both(2, "run", "1", "tiny")
    there, here = await sides.both(runs, "run", "1", "tiny")
    floor = common.line("run --rm inside the guest", there, "ms", 0)
    took = common.line("run --rm through the socket", here, "ms", 0)
    common.verdict("run --rm / inside", took / floor, 1.1)
    await _loads(engine, machine, sides, place, max(3, runs // 3))


async def _loads(engine: Engine, machine: Machine, sides: Sides, place: Path, runs: int) -> None:
    file = place / "image.tar"
    _, _, size = await asyncio.to_thread(_write_image, file, 256)
    there, here, copies = [], [], []
    for _ in range(runs):
        began = time.perf_counter()
        await machine.copy_in(file, "/var/lib/docker/tmp/image.tar")
        await machine.run(["sync"], check=True)
        copies.append(size / (time.perf_counter() - began))
        for side, found in ((sides.inside, there), (sides.outside, here)):
            source = "/var/lib/docker/tmp/image.tar" if side == sides.inside else str(file)
            found += [size * 1e3 / took for took in await side("load", "1", source)]
            await api.call(await engine.connected(), "DELETE", "/images/large:latest")
    await machine.run(["rm", "/var/lib/docker/tmp/image.tar"], check=True)
    common.line("cp into the guest, and sync", copies, "MB/s", 1)
    inside = common.line("load inside the guest", there, "MB/s", 1)
    outside = common.line("load through the socket", here, "MB/s", 1)
    common.verdict("load / inside", outside / inside, 0.8, at_most=False)
    await _gigabyte(engine, sides, file)


async def _gigabyte(engine: Engine, sides: Sides, file: Path) -> None:
    """Load 1 GiB through the socket; what the engine has is what was sent, by its digests."""
    layer, image, size = await asyncio.to_thread(_write_image, file, 1024)
    rates = [size * 1e3 / took for took in await sides.outside("load", "1", str(file))]
    common.line("load of 1 GiB through the socket", rates, "MB/s", 1)
    told = json.loads(await api.get(await engine.connected(), "/images/large:latest/json"))
    assert (told["Id"], told["RootFS"]["Layers"]) == (image, [layer]), told
    await api.call(await engine.connected(), "DELETE", "/images/large:latest")


def _archive(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _write_image(file: Path, size: int) -> tuple[str, str, float]:
    """Write an image with one file of so many MiB, as ``docker save`` does.

    Returns:
        The layer's digest, the image's, and the size of what was written in MB.
    """
    piece = os.urandom(MIB)
    entry = tarfile.TarInfo("blob")
    entry.size = size * MIB
    hashed = hashlib.sha256(entry.tobuf())
    for _ in range(size):
        hashed.update(piece)
    end = bytes(1024)
    hashed.update(end)
    layer = f"sha256:{hashed.hexdigest()}"
    root = {"type": "layers", "diff_ids": [layer]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": root}).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["large:latest"], "Layers": ["layer.tar"]}]
    outer = tarfile.TarInfo("layer.tar")
    outer.size = 512 + size * MIB + len(end)
    with file.open("wb") as output:
        for name, data in (("config.json", config), ("manifest.json", json.dumps(manifest).encode())):
            one = tarfile.TarInfo(name)
            one.size = len(data)
            output.write(one.tobuf() + data + bytes(-len(data) % 512))
        output.write(outer.tobuf() + entry.tobuf())
        for _ in range(size):
            output.write(piece)
        output.write(end + bytes(1024))
        written = output.tell()
    return layer, f"sha256:{hashlib.sha256(config).hexdigest()}", written / 1e6
