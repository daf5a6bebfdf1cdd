"""How a list of machines reads. Imports nothing: ``atoll ls`` must be as quick as a shell's own ``ls``."""

from __future__ import annotations

__all__ = ["HEAD", "age", "note", "row", "size", "table"]

HEAD = ("NAME", "STATE", "SINCE", "CPUS", "MEMORY", "IMAGE", "NOTE")

#: Causes that say no more than the state does.
_PLAIN = {
    "stopped",
    "created",
    "the guest is up",
    "start was asked for",
    "stop was asked for",
    "pause was asked for",
    "resume was asked for",
}


def row(
    name: str, phase: str, since: float, cpus: int, memory: int, image: str, remark: str
) -> tuple[str, ...]:
    """One machine; ``since`` is in seconds, ``memory`` in bytes."""
    return (name, phase, age(since), str(cpus), size(memory), image, remark)


def note(cause: str, failure: str, *, active: bool, supervised: bool) -> str:
    """What is to be said beside the state."""
    if active and not supervised:
        return "unsupervised; the next command takes it over"
    return failure or ("" if cause in _PLAIN else cause)


def age(seconds: float) -> str:
    """A time span in words."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size(count: int) -> str:
    """Bytes in words."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as what they hold. A head without a word is not printed."""
    shown = [head, *rows] if any(head) else rows
    widths = [max((len(line[column]) for line in shown), default=0) for column in range(len(head))]
    lines = []
    for line in shown:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
