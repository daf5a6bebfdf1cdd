"""All figures, each beside its limit or a peer in the same run. Usage: bench/run.py [NAME ...]."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import boot
import channel
import density
import docker
import forks
import images
import machine
import network
import packs
import snapshots

BENCHES = {
    "boot": boot.main,
    "exec": channel.exec_latency,
    "stdout": channel.stdout_throughput,
    "lifecycle": machine.lifecycle,
    "commands": machine.commands,
    "supervisor": machine.supervisor,
    "shares": machine.shares,
    "ls": machine.listing,
    "starts": forks.starts,
    "forks": forks.forking,
    "hundred": density.hundred,
    "idle": density.idle,
    "packs": packs.main,
    "snapshots": snapshots.main,
    "docker": docker.main,
    "network": network.main,
    "images": images.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--runs", type=int, default=11, help="runs of each variant (default 11)")
    arguments = parser.parse_args()
    print(f"# {os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    for name in arguments.names or BENCHES:
        BENCHES[name](arguments.runs)


if __name__ == "__main__":
    main()
