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


class Table:
    """Milliseconds of one thing a line: median, p99, the target, and how that compares with limit and cold.

    Args:
        extra: what the last column holds.
    """

    def __init__(self, extra: str) -> None:
        self._widths = (40, 8, 8, 18, 12, 14)
        self._print("milliseconds", "median", "p99", "target", "/ limit", "cold", extra)

    def row(
        self,
        name: str,
        samples: list[float],
        target: float | None,
        *,
        limit: float | None = None,
        cold: float | None = None,
        extra: float | None = None,
    ) -> None:
        """Print one line."""
        median = statistics.median(samples)
        self._print(
            name,
            f"{median:.1f}",
            f"{percentile(samples, 99):.1f}",
            f"<= {target:g} {'met' if median <= target else 'MISSED'}" if target is not None else "",
            f"{median / limit:.2f}" if limit else "",
            f"{cold:.0f} ({cold / median:.0f}x)" if cold else "",
            f"{extra:.1f}" if extra is not None else "",
        )

    def _print(self, *cells: str) -> None:
        padded = (cell.ljust(width) for cell, width in zip(cells, (*self._widths, 0), strict=True))
        print("  " + " ".join(padded).rstrip(), flush=True)


def percentile(samples: list[float], percent: float) -> float:
    """The sample below which so many percent of them lie, by rank."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
