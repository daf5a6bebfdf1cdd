"""What the benchmarks share."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from atoll import runtime
from atoll.config import Config, load
from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.host import QemuHost, inspect_host


@dataclass
class Setting:
    """One prepared machine and the QEMU that runs it."""

    config: Config
    host: QemuHost
    machine: Machine


def setting() -> Setting:
    """The machine that `atoll run debian` would boot here, with everything built."""
    config = load().config
    prepared = runtime.prepare(config, "bench", "debian")
    return Setting(config, inspect_host(runtime.host_architecture(), config.cache_dir), prepared.machine)


def line(name: str, samples: list[float], unit: str = "s", digits: int = 3) -> float:
    """Print minimum, median and maximum; the median."""
    median = statistics.median(samples)
    print(
        f"  {name:44} median {median:.{digits}f} {unit}"
        f"   min {min(samples):.{digits}f}   max {max(samples):.{digits}f}   n {len(samples)}",
        flush=True,
    )
    return median


def verdict(name: str, value: float, limit: float, *, at_most: bool = True) -> None:
    """Print a ratio or figure beside its target."""
    good = value <= limit if at_most else value >= limit
    sign = "<=" if at_most else ">="
    print(f"  => {name}: {value:.3f}, target {sign} {limit:g}: {'met' if good else 'MISSED'}", flush=True)
