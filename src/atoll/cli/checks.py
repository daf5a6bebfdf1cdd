"""What `atoll doctor` finds."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["Check", "Outcome"]


class Outcome(StrEnum):
    """How a check came out. Only ``fail`` makes the command fail."""

    OK = "ok"
    NOTE = "note"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """One finding."""

    name: str
    outcome: Outcome
    finding: str
    fix: str = ""
