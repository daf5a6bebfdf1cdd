"""The network path: bytes, connections, datagrams and names a second, beside slirp and passt in the same run.

One guest for each path, all boot the same; ``wire.c`` is its end and, at the host's loopback, the other. The
paths take turns, so that changes of the host's speed meet all alike. passt takes part where it is installed:
QEMU is then given a socket of its in the place of Atoll's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import common

from atoll import aio, runtime
from atoll.config import load
from atoll.hypervisor.qemu import argv

HERE = Path(__file__).parent
MIB = 1 << 20

#: Bytes of a transfer, connections of a storm, and seconds of what is counted.
SIZE, CONNECTS, TRANSFERS, SECONDS = 256 * MIB, 300, 10_000, 3

#: Where ``wire serve`` listens on the host, and its program in the guest.
PORT, WIRE = 7077, "/usr/local/bin/wire"

#: What passt and slirp call the host.
GATEWAY = "10.0.2.2"


@dataclass
class Lane:
    """One network path with its guest.

    Attributes:
        box: the guest.
        gateway: address of the host.
        helpers: processes of the path beside QEMU.
    """

    name: str
    box: aio.Sandbox
    gateway: str
    helpers: list[int]
    samples: dict[str, list[float]] = field(default_factory=dict)

    async def wire(self, how: str, number: int, *, host: str = "", port: int = PORT) -> list[float]:
        """The numbers that ``wire`` prints."""
        words = [WIRE, how, host or self.gateway, str(port), str(number)]
        done = await self.box.run(words, check=True)
        return [float(word) for word in done.stdout.split()]

    def seconds(self) -> tuple[float, float]:
        """CPU seconds of the helpers, and with QEMU's."""
        helpers = sum(map(_cpu, self.helpers))
        return helpers, helpers + _cpu(self.box.vm.pid)

    def keep(self, what: str, value: float) -> None:
        """Note a figure."""
        self.samples.setdefault(what, []).append(value)

    def median(self, what: str) -> float:
        """The median of what was noted."""
        return statistics.median(self.samples[what])

    def against(self, other: Lane, what: str) -> float:
        """The median ratio of what was noted in the same rounds: a host's speed changes between them."""
        pairs = zip(self.samples[what], other.samples[what], strict=True)
        return statistics.median(mine / its for mine, its in pairs)


def main(runs: int) -> None:
    """All figures of the network."""
    os.environ["ATOLL_NETWORK_HOST_PORTS"] = str(PORT)  # the sandboxes below may use it
    print(f"network: load of this host {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="atoll-", dir="/var/tmp") as place:
        os.chmod(place, 0o777)  # passt gives up its rights before it makes its socket
        asyncio.run(_main(runs, Path(place)))


async def _main(runs: int, place: Path) -> None:
    program = _compiled(place / "wire")
    content = program.read_bytes()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_served(program))
        names = ["own", "slirp", *(["passt"] if shutil.which("passt") else [])]
        paths = [await stack.enter_async_context(_path(name, place, content)) for name in names]
        for _ in range(runs):
            for path in paths:
                await _transfer(path)
        for path in paths:
            await _count(path)
        loopback = await _loopback(paths[0])
        _tell(paths, loopback)


async def _transfer(path: Lane) -> None:
    for how, what in (("push", "guest to host"), ("pull", "host to guest")):
        before = path.seconds()
        size = SIZE // 4 if path.name == "slirp" else SIZE
        [speed] = await path.wire(how, size)
        after = path.seconds()
        path.keep(what, speed)
        path.keep(f"{what}, CPU", (after[0] - before[0]) * (1 << 30) / size)
        path.keep(f"{what}, CPU with QEMU", (after[1] - before[1]) * (1 << 30) / size)
    for how in ("connect", "echo"):
        median, late = await path.wire(how, CONNECTS)
        path.keep(how, median)
        path.keep(f"{how} p99", late)


async def _count(path: Lane) -> None:
    [count] = await path.wire("datagrams", SECONDS)
    path.keep("datagrams", count)
    if path.name == "own":
        [count] = await path.wire("names", SECONDS, port=53)
        path.keep("names", count)
    failures, seconds = await path.wire("storm", TRANSFERS)
    path.keep("storm failures", failures)
    path.keep("storm seconds", seconds)
    least, most, mean = await path.wire("share", SECONDS)
    path.keep("share", max(most / mean - 1, 1 - least / mean))


async def _loopback(path: Lane) -> dict[str, float]:
    """The guest with itself: no network can be faster."""
    server = await path.box.start([WIRE, "serve", "7000"])
    await asyncio.sleep(0.5)
    found = {}
    for how, what in (("push", "guest to host"), ("pull", "host to guest")):
        [found[what]] = await path.wire(how, SIZE, host="127.0.0.1", port=7000)
    found["connect"], _ = await path.wire("connect", CONNECTS, host="127.0.0.1", port=7000)
    await server.kill()
    return found


@contextlib.asynccontextmanager
async def _path(name: str, place: Path, program: bytes) -> AsyncIterator[Lane]:
    with contextlib.ExitStack() as stack:
        helpers = []
        if name == "passt":
            helpers.append(stack.enter_context(_passt(place / "passt.sock")))
        network = "own" if name == "passt" else name
        async with aio.Sandbox("debian", network=network, cold=True, memory="512M", cpus=1) as box:
            gateway = GATEWAY
            if name == "own":
                helpers += _serving()
                gateway = await _gateway(box)
            await box.files.write(WIRE, program, mode=0o755)
            yield Lane(name, box, gateway, helpers)


async def _gateway(box: aio.Sandbox) -> str:
    """Where its default route leads."""
    routes = await box.run(["ip", "route", "show", "default"], check=True)
    return routes.stdout.split()[2]


@contextlib.contextmanager
def _passt(socket: Path):
    """The program passt at a socket; the VM that is made meanwhile is connected to it."""
    words = ["--address", "10.0.2.15", "--netmask", "24", "--gateway", GATEWAY, "--mtu", "65520", "--quiet"]
    child = subprocess.Popen(["passt", "--foreground", "--socket", socket, *words], stderr=subprocess.DEVNULL)
    while not socket.exists():
        time.sleep(0.01)
    card = argv._card  # noqa: SLF001 - a benchmark may look inside

    def peer(machine_card, _):
        device = f"virtio-net-pci,netdev=net0,mac={machine_card.mac},host_mtu=65520,romfile="
        netdev = f"stream,id=net0,server=off,addr.type=unix,addr.path={socket}"
        return ("-netdev", netdev, "-device", device)

    argv._card = peer  # noqa: SLF001
    try:
        yield child.pid
    finally:
        argv._card = card  # noqa: SLF001
        child.terminate()
        child.wait()


@contextlib.contextmanager
def _served(program: Path):
    child = subprocess.Popen([program, "serve", str(PORT)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def _serving() -> list[int]:
    """The processes of this user's networks."""
    data = os.fsencode(load().config.paths.data)
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"atoll.vm.network.serving" in words and data in words:
                found.append(int(place.name))
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _compiled(output: Path) -> Path:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{runtime.host_architecture()}-linux-musl"]
    subprocess.run([*compiler, "-O2", "-static", "-s", "-o", output, HERE / "wire.c"], check=True)
    return output


def _tell(paths: list[Lane], loopback: dict[str, float]) -> None:
    units = {"guest to host": "MiB/s", "host to guest": "MiB/s", "connect": "us", "echo": "us"}
    print(f"  {'':28}" + "".join(f"{path.name:>12}" for path in paths) + f"{'loopback':>12}")
    for what in dict.fromkeys(what for path in paths for what in path.samples):
        values = [f"{path.median(what):12.1f}" if what in path.samples else f"{'':12}" for path in paths]
        inside = f"{loopback[what]:12.1f}" if what in loopback else ""
        print(f"  {what + ' ' + units.get(what, ''):28}" + "".join(values) + inside)
    own = paths[0]
    for what in ("guest to host", "host to guest"):
        for path in paths[1:]:
            limit = 1.1 if path.name == "passt" else 2.0
            common.verdict(f"{what}, own / {path.name}", own.against(path, what), limit, at_most=False)
    common.verdict("connect, own / slirp", own.against(paths[1], "connect"), 1.2)
    common.verdict("failures of 10,000 transfers", own.median("storm failures"), 0)
    common.verdict("64 flows differ from their mean by", own.median("share"), 0.2)
