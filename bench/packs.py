"""Snapshots of a guest's RAM: stored, restored and verified, against plain copies of the same bytes.

Each round takes one sample of everything, so that changes of the host's speed meet all of them.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common

from atoll import store
from atoll.snapshot import packs
from atoll.snapshot.chunks import data_runs

ROOT = Path(__file__).parent.parent
TEMPLATES = ROOT / "build" / "test-cache" / "cache" / "templates"


class Samples(defaultdict[str, list[float]]):
    """Milliseconds, by what took them."""

    def __init__(self) -> None:
        super().__init__(list)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What the block takes."""
        began = time.perf_counter()
        yield
        self[name].append((time.perf_counter() - began) * 1e3)

    def ratio(self, name: str, other: str) -> float:
        """Median of one thing against another, round by round."""
        return statistics.median(a / b for a, b in zip(self[name], self[other], strict=True))


@contextmanager
def memory() -> Iterator[int]:
    """A descriptor of an empty file in memory."""
    fd = os.memfd_create("bench", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def main(runs: int) -> None:
    """The RAM of a template that the tests have made."""
    found = sorted(TEMPLATES.glob("debian*/ram"))
    if not found:
        sys.exit("packs: run the tests first, their cache has no template")
    with memory() as ram:
        with found[0].open("rb") as file:
            store.copy_data(file.fileno(), ram)
        _measure(ram, found[0], runs)


def _measure(ram: int, path: Path, runs: int) -> None:
    size = os.fstat(ram).st_size
    held = sum(count for _, count in data_runs(ram, size)) * 16 / 1024
    print(f"packs: RAM of {path.parent.name}, {held:.0f} of {size >> 20} MiB are there")
    samples = Samples()
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=ROOT / "build") as place:
            stored = _round(ram, size, Path(place), samples)
    for name, values in samples.items():
        common.line(f"{name} ({held * 1e3 / statistics.median(values):.0f} MiB/s)", values, "ms", 1)
    print(f"  {stored / 2**20:.1f} MiB are stored")
    common.verdict("create / copy to disk", samples.ratio("create", "copy to disk, flushed"), 2.5)
    common.verdict("restore / copy in memory", samples.ratio("restore", "copy in memory"), 2.0)
    common.verdict("verify / copy in memory", samples.ratio("verify", "copy in memory"), 2.0)
    common.verdict("copy / sendfile", samples.ratio("copy in memory", "sendfile in memory"), 1.0)
    common.verdict("restore, ms", statistics.median(samples["restore"]), 80)


def _round(ram: int, size: int, place: Path, samples: Samples) -> int:
    """One sample of each; bytes that a snapshot takes on the disk."""
    with memory() as copy, samples.of("sendfile in memory"):
        _sendfile(ram, size, copy)
    with memory() as copy, samples.of("copy in memory"):
        store.copy_data(ram, copy)
    with (place / "plain").open("wb") as file, samples.of("copy to disk, flushed"):
        store.copy_data(ram, file.fileno())
        os.fsync(file.fileno())
    with samples.of("create"):
        index = _create(place / "first", ram, size, [])
    index = packs.load(place / "first", index.digest)
    with samples.of("create, nothing new"):
        _create(place / "second", ram, size, [index])
    with memory() as copy, samples.of("restore"):
        packs.restore(index.images[0], place / "first", copy)
    with samples.of("verify"):
        faults = packs.verify(place / "first", index)
    assert not faults
    return sum(path.stat().st_size for path in (place / "first").iterdir())


def _create(place: Path, ram: int, size: int, known: list[packs.Index]) -> packs.Index:
    place.mkdir()
    with packs.Writer(place, known) as writer:
        writer.add(ram, size)
        return writer.finish()


def _sendfile(source: int, size: int, target: int) -> None:
    os.truncate(target, size)
    at = 0
    for first, count in data_runs(source, size):
        at, end = first << 14, (first + count) << 14
        os.lseek(target, at, os.SEEK_SET)
        while at < end and (sent := os.sendfile(target, source, at, end - at)):
            at += sent
