"""A guest that writes RAM and disk in lockstep, and goes back to random moments: both are of the same one.

It stands still meanwhile, or runs on. ``make snapshots`` does it ``SNAPSHOT_ROUNDS`` (100) times; a failure
prints the seed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guests import eventually, running_machine

from atoll import runtime
from atoll.image import disk
from atoll.paths import Paths
from atoll.snapshot import catalog
from atoll.vm.chain import PLAIN
from atoll.vm.folding import compact

ROUNDS = int(os.environ.get("SNAPSHOT_ROUNDS", "2"))
SEED = int(os.environ.get("SNAPSHOT_SEED", "1"))

#: Snapshots that are kept, to go back to any of them.
KEPT = 3

SOURCE = Path(__file__).parent.parent / "lockstep.c"
WORK, REPORT = "/root/ring", "/dev/shm/report"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120 + 15 * ROUNDS)]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The guest's program, which needs nothing of the guest but its kernel."""
    target = f"{runtime.host_architecture()}-linux-musl"
    compiler = ["gcc"] if shutil.which("gcc") else [sys.executable, "-m", "ziglang", "cc", "-target", target]
    made = tmp_path_factory.mktemp("program") / "lockstep"
    subprocess.run(
        [*compiler, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, SOURCE], check=True
    )
    return made


class Counting:
    """The program at work in a machine."""

    def __init__(self, machine, program):
        self.machine = machine
        machine.copy_in(program, "/root/lockstep")
        self.output(f"/root/lockstep {WORK} {REPORT} > /dev/null 2>&1 & echo $! > /dev/shm/pid")
        eventually(lambda: self.report() > 100)

    def output(self, script):
        return self.machine.run(["sh", "-c", script], check=True).stdout

    def report(self, suffix=""):
        """How far it has come; it found all as it should be."""
        words = self.output(f"cat {REPORT}{suffix} 2> /dev/null || true").split()
        if not words:  # it is being written
            return -1
        assert words[0] == "good", words
        return int(words[1])

    def check(self):
        """It goes on, and has looked at all of its memory."""
        self.output(f"rm -f {REPORT}.seen; kill -USR1 $(cat /dev/shm/pid)")
        eventually(lambda: self.report(".seen") >= 0)
        seen = self.report(".seen")
        eventually(lambda: self.report() > seen)
        return seen


@pytest.mark.parametrize("pause", [True, False])
def test_ram_and_disk_are_of_one_instant_whenever_it_is_gone_back(tmp_path, paths, program, capsys, pause):
    chance = random.Random(SEED)
    stopped, restored, taken = [], [], []
    with running_machine(tmp_path / "data", paths, disk="256M", memory="256M", cpus=1) as machine:
        here = Paths(tmp_path / "data", paths.cache)
        counting = Counting(machine, program)
        for number in range(ROUNDS):
            counting.output(f"echo {number} > /dev/shm/round; echo {number} > /root/round")
            time.sleep(chance.uniform(0, 0.4))
            began = time.monotonic()
            snapshot = machine.snapshot(f"round-{number}", pause=pause)
            taken.append(time.monotonic() - began)
            stopped.append(snapshot.manifest.stopped)
            counting.output("echo later > /dev/shm/round; echo later > /root/round; sync")
            time.sleep(chance.uniform(0, 0.4))
            kept = machine.snapshots()
            chosen = chance.choice(kept)
            began = time.monotonic()
            machine.restore(chosen.id)
            restored.append(time.monotonic() - began)
            then = counting.output("cat /dev/shm/round /root/round").split()
            assert then == [chosen.manifest.name.removeprefix("round-")] * 2, f"seed {SEED}, round {number}"
            counting.check()
            if len(kept) > KEPT:
                catalog.remove(here, chance.choice(kept).id)
        machine.stop()
        for one in machine.snapshots():
            catalog.verify(one)
            catalog.remove(here, one.id)
        place = machine.find().place
        assert compact(place) == PLAIN
        disk.check(place.data)
    with capsys.disabled():
        print(  # noqa: T201
            f"\n  seed {SEED}, {ROUNDS} rounds, {pause=}: "
            f"snapshot {_times(taken)}, restore {_times(restored)}, "
            f"stood still {_times(stopped)}"
        )


def _times(values):
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2] * 1000:.0f} ms (at most {ordered[-1] * 1000:.0f})"
