"""Images of another architecture: by qemu-user in a guest of the host's, and in a whole VM of their own.

Usage: bench/architectures.py OWN FOREIGN: names of two images with the same programs (``sh``, ``dd``,
``md5sum``, as busybox has them), one of this host's architecture and one of the other. Each round takes one
sample of everything.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict

import common

import atoll
from atoll.image.foreign import FOREIGN, PLATFORMS
from atoll.image.kernel import host_architecture

ROUNDS = 3

#: What is run, and how much of it is one.
WORK = {
    "shell, 2,000 rounds of a loop": ("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done", 1),
    "md5sum of 4 MiB": ("dd if=/dev/zero bs=1M count=4 2>/dev/null | md5sum", 1),
    "start of a program": ("for i in 1 2 3; do /bin/busybox true; done", 3),
}


def main(own: str, foreign: str) -> None:
    """Measure, and print."""
    other = PLATFORMS[FOREIGN[host_architecture()]]
    ways = {
        "this host's": {"image": own},
        "qemu-user": {"image": foreign, "platform": other},
        "a whole VM": {"image": foreign, "platform": other, "full": True},
    }
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(ROUNDS + 1):  # the first one makes templates
        for way, wishes in ways.items():
            for cold in (True, False):
                began = time.perf_counter()
                with atoll.Sandbox(cold=cold, **wishes) as box:
                    up = time.perf_counter() - began
                    box.run(["true"], check=True)
                    answered = time.perf_counter() - began
                    if number:
                        how = "cold boot" if cold else "from a template"
                        samples[way, how].append(up)
                        samples[way, f"{how}, with its first command"].append(answered)
                    if not cold and number:
                        for what, (script, count) in WORK.items():
                            began = time.perf_counter()
                            box.run(["sh", "-c", script], check=True)
                            samples[way, what].append((time.perf_counter() - began) / count)
    for way in ways:
        print(way)
        for (whose, what), taken in samples.items():
            if whose == way:
                common.line(what, taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
