"""What users write about ports that follow what a guest listens on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from atoll.errors import UsageError
from atoll.vm.bootplan import AutoPorts

__all__ = ["SPAN", "Range", "parse_auto_ports", "show_auto_ports", "show_ranges", "span"]

#: A port, or a range of them.
SPAN = r"(\d{1,5})(?:-(\d{1,5}))?"


class Range(NamedTuple):
    """Ports from ``first`` to ``last``."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


def span(first: str | None, last: str | None, *, least: int = 1) -> Range | None:
    """Ports, or None if they are none; 0 stands alone."""
    ports = Range(int(first), int(last or first)) if first else Range(-1, -1)
    if not least <= ports.first <= ports.last < 1 << 16 or (not ports.first and last):
        return None
    return ports


def parse_auto_ports(wanted: bool | str, deny: str = "") -> AutoPorts | None:
    """Which ports follow what the guest listens on.

    Args:
        wanted: whether; or ranges of ports, as ``3000-3999,8080``, or ``yes`` or ``no``.
        deny: ranges of those that do not.

    Raises:
        UsageError: ``usage.port``.
    """
    if wanted in {False, "", "no"}:
        return None
    denied = _ranges(deny) if deny else ()
    if wanted in {True, "yes"}:
        return AutoPorts(deny=denied)
    return AutoPorts(_ranges(str(wanted)), denied)


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    ranges = []
    for word in text.split(","):
        found = re.fullmatch(SPAN, word.strip(), re.ASCII)
        ports = span(found[1], found[2]) if found is not None else None
        if ports is None:
            hint = "write ports and ranges of them, as 3000-3999,8080"
            raise UsageError(f"{text!r}: no ports", code="port", hint=hint)
        ranges.append((ports.first, ports.last))
    return tuple(ranges)


def show_auto_ports(rule: AutoPorts | None) -> str:
    """What is allowed, as ``parse_auto_ports`` takes it."""
    if rule is None:
        return "no"
    return "yes" if rule.allow == AutoPorts().allow else show_ranges(rule.allow)


def show_ranges(ranges: Iterable[tuple[int, int]]) -> str:
    """As ``parse_auto_ports`` takes them."""
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ",".join(shown)
