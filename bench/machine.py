"""Machines: cold start, stop, commands, copies, shares, the supervisor, and the list of them.

The limits are the host's own (a bare interpreter, a directory of the host, raw QEMU) or a quarter of what the
best of four peers took on the machine where the project began.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import boot
import common

from atoll.aio import Machine
from atoll.machine.launching import summon
from atoll.vm.client import Control

#: What the best peer took: seconds, or MB/s.
PEER_FIRST_COMMAND, PEER_STOP, PEER_EXEC, PEER_SHARE_WRITE, PEER_FILES = 16.9, 3.8, 0.035, 42.0, 0.82
TIMES = 4  # so many times faster than they

MIB = 1 << 20
ATOLL = str(Path(sys.executable).parent / "atoll")


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


def lifecycle(runs: int) -> None:
    """Cold start of a Debian machine with systemd to its first command, and a graceful stop."""
    asyncio.run(_lifecycle(max(3, runs // 3)))


async def _lifecycle(runs: int) -> None:
    name = f"bench-{os.getpid()}"
    machine = await Machine.create(name)
    bench = common.setting()
    starts, ups, stops, floors = [], [], [], []
    print("lifecycle: debian with systemd")
    try:
        with tempfile.TemporaryDirectory() as place:
            initramfs = boot.floor_initramfs(bench, Path(place))
            for number in range(runs + 1):
                floor = boot.floor_once(bench, initramfs)
                began = time.perf_counter()
                await machine.start()
                up = time.perf_counter() - began
                await machine.run(["true"])
                first = time.perf_counter() - began
                await _settle(machine)
                stop = await _timed(machine.stop)
                await machine.close()
                if number:  # the first start makes the user's directories and fills the page cache
                    floors.append(floor)
                    ups.append(up)
                    starts.append(first)
                    stops.append(stop)
    finally:
        await machine.remove(force=True)
    common.line("floor: raw QEMU, minimal init, ready byte", floors)
    common.line("start: running (agent, network, setup)", ups)
    first = common.line("start to the end of the first command", starts)
    stop = common.line("graceful stop", stops)
    common.verdict("first command / floor", first / statistics.median(floors), 3.0)
    common.verdict("first command, seconds", first, min(5.0, PEER_FIRST_COMMAND / TIMES))
    common.verdict("graceful stop, seconds", stop, PEER_STOP / TIMES)


async def _settle(machine: Machine) -> None:
    """Wait until systemd has started all, as a machine has that is stopped after being used."""
    for _ in range(200):
        state = (await machine.run(["systemctl", "is-system-running"])).stdout.strip()
        if state not in {"initializing", "starting"}:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(8)  # what systemd puts off until then: the terminals' programs, the journal


def commands(runs: int) -> None:
    """Commands in a machine that runs, through its supervisor, and copies both ways."""
    asyncio.run(_commands(runs))


async def _commands(runs: int) -> None:
    name = f"bench-{os.getpid()}"
    machine = await Machine.create(name)
    try:
        await machine.start()
        await _settle(machine)
        print("commands: in a machine with systemd, through its supervisor")
        for _ in range(20):
            await machine.run(["true"])
        samples = sorted([await _timed(lambda: machine.run(["true"])) * 1e3 for _ in range(40 * runs)])
        common.line("exec of true", samples, "ms", 2)
        common.verdict("exec p50, ms", samples[len(samples) // 2], 5.0)
        common.verdict("exec p50, ms, against peers", samples[len(samples) // 2], PEER_EXEC * 1e3 / TIMES)
        common.verdict("exec p99, ms", samples[int(len(samples) * 0.99)], 15.0)
        with tempfile.TemporaryDirectory() as place:
            await _copies(machine, Path(place))
        await _supervisor(machine)
    finally:
        await machine.remove(force=True)
        await machine.close()


async def _copies(machine: Machine, place: Path) -> None:
    large = place / "large"
    large.write_bytes(os.urandom(MIB) * 128)
    many = place / "many"
    many.mkdir()
    for number in range(2000):
        (many / f"{number}").write_bytes(b"x" * 200)
    native = await _timed(lambda: asyncio.to_thread(shutil.copyfile, large, place / "copy"))
    pipe = await _timed(lambda: machine.run(["sh", "-c", "head -c 134217728 /dev/zero | cat > /dev/null"]))
    into = await _timed(lambda: machine.copy_in(large, "/root/large"))
    out = await _timed(lambda: machine.copy_out("/root/large", place / "back"))
    print(f"  128 MiB: host's own copy {128 / native:.0f} MiB/s, guest's own pipe {128 / pipe:.0f} MiB/s")
    print(f"  cp into {128 / into:.0f} MiB/s, out of {128 / out:.0f} MiB/s")
    common.verdict("cp into / the guest's own pipe", pipe / into, 0.4, at_most=False)
    common.verdict("cp out of / the guest's own pipe", pipe / out, 0.4, at_most=False)
    native = await _timed(lambda: asyncio.to_thread(shutil.copytree, many, place / "many2"))
    guest = await _timed(
        lambda: machine.run(["sh", "-c", "mkdir /root/a; cd /root/a; seq 2000 | xargs -n 2000 touch"])
    )
    into = await _timed(lambda: machine.copy_in(many, "/root/many"))
    out = await _timed(lambda: machine.copy_out("/root/many", place / "many3"))
    print(f"  2,000 files: host's own copy {native:.2f} s, guest's own touch {guest:.2f} s")
    print(f"  2,000 files: cp into {into:.2f} s, out of {out:.2f} s")
    common.verdict("2,000 files into / the guest's own touch", into / guest, 3.0)


async def _supervisor(machine: Machine) -> None:
    stats = await machine.stats()
    print(f"  supervisor: {stats.supervisor_memory / MIB:.1f} MiB private")
    common.verdict("supervisor's private memory, MB", stats.supervisor_memory / 1e6, 25.0)


def supervisor(runs: int) -> None:
    """What a supervisor costs at a start: from its spawn to its first answer."""
    asyncio.run(_supervisor_start(runs))


async def _supervisor_start(runs: int) -> None:
    name = f"bench-{os.getpid()}"
    machine = await Machine.create(name, init="minimal")
    samples = []
    try:
        await machine.start()
        await machine.stop()
        await machine.close()
        for _ in range(runs):
            while machine.find().supervised:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            control = Control(summon(machine.find().place))
            await control.status()
            samples.append((time.perf_counter() - began) * 1e3)
            control.close()
            await asyncio.sleep(0.2)
    finally:
        await machine.remove(force=True)
        await machine.close()
    print("supervisor: from its spawn to its first answer")
    common.verdict("start, ms", common.line("summon and answer", samples, "ms", 1), 150.0)


def listing(runs: int) -> None:
    """``atoll ls`` against an interpreter that does nothing."""
    print("ls: whole processes, alternating")
    bare = [sys.executable, "-I", "-S", "-c", "pass"]
    samples: dict[str, list[float]] = {"bare": [], "ls": []}
    for _ in range(3 * runs):
        for kind, argv in (("bare", bare), ("ls", [ATOLL, "ls"])):
            began = time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            samples[kind].append((time.perf_counter() - began) * 1e3)
    base = common.line("python -I -S -c pass", samples["bare"], "ms", 1)
    took = common.line("atoll ls", samples["ls"], "ms", 1)
    common.verdict("atoll ls, ms", took, 40.0)
    common.verdict("atoll ls / bare interpreter", took / base, 2.5)


WRITE = "dd if=/dev/zero of=/shared/big bs=1M count=256 conv=fsync 2>/dev/null"
READ = "echo 3 > /proc/sys/vm/drop_caches; dd if=/shared/big of=/dev/null bs=1M 2>/dev/null"
FILES = "mkdir /shared/d; i=0; while [ $i -lt 200 ]; do echo x > /shared/d/$i; i=$((i+1)); done"


async def _shell(machine: Machine, script: str) -> float:
    """Seconds that the script takes."""
    return await _timed(lambda: machine.run(["sh", "-c", script], check=True))


def shares(runs: int) -> None:
    """A shared directory of the host, against the host's own."""
    asyncio.run(_shares(max(3, runs // 3)))


async def _shares(runs: int) -> None:
    name = f"bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as place:
        machine = await Machine.create(name, init="minimal", mounts=[f"{place}:/shared"])
        writes, reads, files = [], [], []
        try:
            await machine.start()
            print("shares: virtiofs")
            for _ in range(runs):
                writes.append(256 * MIB / 1e6 / await _shell(machine, WRITE))
                reads.append(256 * MIB / 1e6 / await _shell(machine, READ))
                files.append(await _shell(machine, FILES))
                shutil.rmtree(Path(place) / "d")
                (Path(place) / "big").unlink()
        finally:
            await machine.remove(force=True)
            await machine.close()
    write = common.line("write 256 MiB", writes, "MB/s", 0)
    common.line("read 256 MiB", reads, "MB/s", 0)
    made = common.line("200 small files", files)
    common.verdict("share write, MB/s", write, PEER_SHARE_WRITE * TIMES, at_most=False)
    common.verdict("200 small files, seconds", made, PEER_FILES / TIMES)
