"""Snapshots and forks of machines, beside QEMU's own way to a file and a plain copy of the same bytes.

"QEMU" is `migrate` to a file of a guest of the same size, which stands still meanwhile, flushed to the disk.
"copy" is what `cp` does to a file of as many bytes as the guest's RAM holds, likewise flushed.
Last come snapshots with a pause and without one (``pauses``).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pauses

from atoll import aio, store
from atoll.config import Config, load
from atoll.events import Event, StageReached, VmCaptured
from atoll.snapshot.catalog import Snapshot

T = TypeVar("T")

MIB = 1 << 20

#: What the guest with data has written.
DATA = "for i in $(seq 16); do head -c 64M /dev/zero | tr '\\0' x > /root/data$i; done; sync"


class Samples(defaultdict[str, list[float]]):
    """Values by what they are of: milliseconds or MiB."""

    def __init__(self) -> None:
        super().__init__(list)

    async def of(self, name: str, work: Awaitable[T]) -> T:
        """What ``work`` takes."""
        began = time.perf_counter()
        result = await work
        self[name].append((time.perf_counter() - began) * 1e3)
        return result

    def median(self, name: str) -> float:
        """The middle one."""
        return statistics.median(self[name])


def main(runs: int) -> None:
    """Guests of two sizes, fresh and with 1 GiB on their disk."""
    rounds = max(runs // 2, 3)
    with asyncio.Runner() as runner:
        for memory, data in ((512, False), (2048, False), (512, True)):
            runner.run(_guest(memory, rounds, data=data))
        with tempfile.TemporaryDirectory(dir=Path.home()) as place:
            runner.run(pauses.main(_apart(Path(place)), rounds))


async def _guest(memory: int, rounds: int, *, data: bool) -> None:
    samples = Samples()
    with tempfile.TemporaryDirectory(dir=Path.home()) as place:
        config = _apart(Path(place))
        size = f"{memory}M"
        events: list[Event] = []
        machine = await aio.Machine.create(
            "bench", init="minimal", memory=size, network=False, config=config, on_event=events.append
        )
        try:
            await machine.start()
            if data:
                await machine.run(["sh", "-c", DATA], check=True)
            for _ in range(rounds):
                await _round(machine, samples, events)
            await _peer(size, Path(place), samples, rounds)
        finally:
            await machine.remove(force=True)
            await machine.close()
    _print(memory, samples, data=data)


def _apart(place: Path) -> Config:
    """Settings for machines of this run alone, with the user's images."""
    user = load().config.paths
    (place / "images").symlink_to(user.images)
    return load({"data_dir": place}).config


async def _round(machine: aio.Machine, samples: Samples, events: list[Event]) -> None:
    """Two snapshots, the way back to the first, a fork; then all is as it was."""
    await machine.run(["sh", "-c", "head -c 4M /dev/urandom > /root/dirty"], check=True)
    first = await samples.of("create", machine.snapshot("first"))
    second = await samples.of("again", machine.snapshot("second"))
    samples["stored"].append(_size(first) / MIB)
    samples["stored again"].append(_size(second, first) / MIB)
    began = time.perf_counter()
    await machine.restore("first")
    await machine.run(["true"], check=True)
    samples["restore"].append((time.perf_counter() - began) * 1e3)
    samples["answer"].append(
        max(e.elapsed for e in events if isinstance(e, StageReached) and e.stage == "agent")
    )
    await samples.of("suspend", machine.suspend())
    await samples.of("wake", machine.start())
    (copy,) = await samples.of("fork", machine.fork("copy"))
    await copy.remove(force=True)
    await copy.close()
    samples["stopped"] += [event.stopped * 1e3 for event in events if isinstance(event, VmCaptured)]
    events.clear()
    for one in (first, second):
        store.remove_tree(one.place.directory)


def _size(snapshot: Snapshot, *others: Snapshot) -> float:
    """Bytes of the packs that the others do not have."""
    have = {path.name for other in others for path in other.place.directory.glob("*.pack")}
    return sum(
        path.stat().st_size for path in snapshot.place.directory.glob("*.pack") if path.name not in have
    )


async def _peer(size: str, place: Path, samples: Samples, rounds: int) -> None:
    """QEMU's own migration to a file, and a copy of the file."""
    async with aio.Sandbox("debian", memory=size, cold=True) as box:
        await box.run(["sh", "-c", "head -c 4M /dev/urandom > /root/dirty"], check=True)
        for _ in range(rounds):
            with _file(place / "peer") as fd:
                await samples.of("QEMU", _migrated(box, fd))
                samples["QEMU stored"].append(os.fstat(fd).st_size / MIB)
                with _file(place / "copy") as target:
                    await samples.of("copy", asyncio.to_thread(_copied, fd, target))


async def _migrated(box: aio.Sandbox, fd: int) -> None:
    await box.vm.freezable.copy(fd)
    os.fsync(fd)


def _copied(source: int, target: int) -> None:
    store.copy_data(source, target)
    os.fsync(target)


@contextmanager
def _file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink()


def _print(memory: int, samples: Samples, *, data: bool) -> None:
    name = f"{memory} MB" + (" with 1 GiB on its disk" if data else "")
    qemu, copy = samples.median("QEMU"), samples.median("copy")
    print(
        f"snapshots: {name}: QEMU {qemu:.0f} ms, {samples.median('QEMU stored'):.0f} MiB; copy {copy:.0f} ms"
    )
    for what in ("create", "again", "restore", "suspend", "wake", "fork"):
        took = samples.median(what)
        print(f"  {what:14} {took:7.0f} ms  {took / qemu:5.2f} x QEMU  {took / copy:5.2f} x copy")
    print(f"  {'first answer':14} {samples.median('answer') * 1e3:7.0f} ms of a restore's VM")
    stopped = samples["stopped"]
    print(f"  {'stands still':14} {statistics.median(stopped):7.0f} ms, at most {max(stopped):.0f} ms")
    first, second = samples.median("stored"), samples.median("stored again")
    print(f"  {'stored':14} {first:7.1f} MiB, the second {second:.2f} MiB: {second / first:.1%}")
