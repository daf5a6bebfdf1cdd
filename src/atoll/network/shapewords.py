"""How people write what a link is to be like, and read what it is. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

from atoll.errors import UsageError
from atoll.network.shaping import Shape

__all__ = ["in_words", "parse_duration", "parse_shape"]

#: Seconds, and bytes in a second.
_TIMES: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES: Final = {"bit": 1 / 8, "kbit": 125.0, "mbit": 125e3, "gbit": 125e6}

#: Seconds that a frame may take, and bytes in a second that are worth the name of a rate.
_LONGEST: Final = 60.0
_SLOWEST: Final = 125.0

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z%]*)")


def parse_shape(
    *,
    latency: str | float | None = None,
    jitter: str | float | None = None,
    loss: str | float | None = None,
    rate: str | float | None = None,
) -> Shape:
    """What a link is to be like.

    Args:
        latency: such as ``50ms``, or seconds.
        jitter: likewise.
        loss: such as ``1%``, or a part of 1.
        rate: such as ``10Mbit``, or bits in a second.

    Raises:
        UsageError: ``usage.shape``: one of them is none.
    """
    speed = _read("rate", rate, _RATES, "bit", "10Mbit, or 500kbit")
    if rate is not None and speed < _SLOWEST:
        raise UsageError(f"rate: {rate} is less than 1kbit", code="shape", hint="write one such as 500kbit")
    return Shape(
        latency=_time("latency", latency),
        jitter=_time("jitter", jitter),
        loss=_part(loss),
        rate=speed,
    )


def parse_duration(text: str) -> float:
    """Seconds such as ``30s``, ``5m`` or ``1h``. Raises ``UsageError``: ``usage.duration``."""
    found = _AMOUNT.fullmatch(text.strip().lower())
    unit = (
        {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "h": 3600.0}.get(found[2]) if found is not None else None
    )
    if found is None or unit is None or not float(found[1]):
        hint = "write one such as 30s, 5m or 1h"
        raise UsageError(f"{text!r} is no duration", code="duration", hint=hint)
    return float(found[1]) * unit


def _time(what: str, value: str | float | None) -> float:
    seconds = _read(what, value, _TIMES, "s", "50ms, or 1.5s")
    if seconds > _LONGEST:
        raise UsageError(f"{what}: {value} is too long", code="shape", hint=f"{_LONGEST:.0f}s is the longest")
    return seconds


def _part(value: str | float | None) -> float:
    part = _read("loss", value, {"%": 0.01, "": 1.0}, "", "1%, or 0.01")
    if part > 1:
        raise UsageError(f"loss: {value} is more than all", code="shape", hint="write one such as 1%")
    return part


def _read(what: str, value: str | float | None, units: dict[str, float], plain: str, like: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, str):
        found = _AMOUNT.fullmatch(value.strip().lower())
        unit = "" if found is None else found[2] or (plain if float(found[1]) == 0 else "")
        if found is not None and unit in units:
            return float(found[1]) * units[unit]
    elif not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return value * units[plain]
    raise UsageError(
        f"{what}: {value!r} cannot be understood", code="shape", hint=f"write one such as {like}"
    )


def in_words(shape: Shape) -> str:
    """What a link is like, in the words that make it so."""
    said = []
    if shape.latency:
        said.append(f"latency {_said_time(shape.latency)}")
    if shape.jitter:
        said.append(f"jitter {_said_time(shape.jitter)}")
    if shape.loss:
        said.append(f"loss {shape.loss * 100:g}%")
    if shape.rate:
        said.append(f"rate {_said_rate(shape.rate)}")
    return ", ".join(said) or "as it is"


def _said_time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:g}{unit}"
    return f"{seconds * 1e6:g}us"


def _said_rate(rate: float) -> str:
    for unit, size in (("Gbit", 125e6), ("Mbit", 125e3), ("kbit", 125.0)):
        if rate >= size:
            return f"{rate / size:g}{unit}"
    return f"{rate * 8:g}bit"
