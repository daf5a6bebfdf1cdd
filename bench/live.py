"""What shares cost, and what a start costs of a machine that can grow: `bench/live.py [shares|growing]`."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from atoll import blocking, runtime
from atoll.config import load
from atoll.image import catalog
from atoll.machine import machine as machines
from atoll.machine import planning

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build" / "test-cache"
SMALL = {
    "create": 'for $i(1..200){open F,">$ARGV[0]/f$i";print F "hello\\n";close F}',
    "read": 'for $i(1..200){open F,"<$ARGV[0]/f$i";my $l=<F>;close F}',
    "unlink": 'for $i(1..200){unlink "$ARGV[0]/f$i"}',
}


def configured(place):
    (place / "images").symlink_to(CACHE / "data" / "images")
    config = load({"data_dir": place, "cache_dir": CACHE / "cache"}, environment={}, files=()).config
    catalog.ensure(config.paths, "debian", architecture=runtime.host_architecture())
    return config


def seconds(machine, command):
    script = f"TIMEFORMAT=%R; time {command} >/dev/null 2>&1"
    return float(machine.run(["bash", "-c", script], check=True).stderr.split()[-1])


def told(name, values, unit="s"):
    print(f"{name:28} min {min(values):8.3f}  median {statistics.median(values):8.3f} {unit}")


def shares(config, place):
    machine = blocking.Machine.create("shares", init="minimal", network=False, config=config)
    source = place / "source"
    source.mkdir()
    machine.start()
    added, removed = [], []
    for _ in range(8):
        began = time.perf_counter()
        machine.share(source, "/mnt")
        added.append(time.perf_counter() - began)
        began = time.perf_counter()
        machine.unshare("/mnt")
        removed.append(time.perf_counter() - began)
    told("share while it runs", added)
    told("unshare", removed)
    machine.share(source, "/mnt")
    for directory, what in (("/mnt", "share"), ("/root", "own disk")):
        base = min(seconds(machine, "perl -e 1") for _ in range(5))
        for name, program in SMALL.items():
            taken = [seconds(machine, f"perl -e '{program}' {directory}") - base for _ in range(6)]
            told(f"{name} 200 files, {what}", taken)
        write = f"dd if=/dev/zero of={directory}/big bs=1M count=256 conv=fsync"
        told(f"write, {what}", [268.4 / seconds(machine, write) for _ in range(5)], "MB/s")
        read = f"dd if={directory}/big of=/dev/null bs=1M"
        rates = []
        for _ in range(5):
            machine.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=True)
            rates.append(268.4 / seconds(machine, read))
        told(f"read, {what}", rates, "MB/s")
    machine.remove(force=True)


def growing(config):
    """Starts of one machine whose plan is changed before each of them."""
    machine = blocking.Machine.create("growing", init="minimal", network=False, config=config)
    variants = {"cannot grow": 0, "memory up to 16 GiB": 16 << 30}
    starts = {name: [] for name in variants}
    commands = {name: [] for name in variants}
    most = 0

    def plan(*arguments):
        made = planning.make_plan(*arguments)
        return msgspec.structs.replace(made, machine=msgspec.structs.replace(made.machine, max_memory=most))

    machines.make_plan = plan
    for _ in range(5):
        for name, most in variants.items():  # noqa: B007 - read by plan
            began = time.perf_counter()
            machine.start()
            starts[name].append(time.perf_counter() - began)
            for _ in range(30):
                began = time.perf_counter()
                machine.run(["/bin/true"])
                commands[name].append((time.perf_counter() - began) * 1000)
            machine.stop(force=True)
    for name in variants:
        told(f"start, {name}", starts[name])
        told(f"exec, {name}", commands[name], "ms")
    machine.remove(force=True)


def main():
    chosen = sys.argv[1:] or ["shares", "growing"]
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        place = Path(name)
        config = configured(place)
        if "shares" in chosen:
            shares(config, place)
        if "growing" in chosen:
            growing(config)


if __name__ == "__main__":
    main()
