"""Addresses for machines that nobody will ask for again."""

from __future__ import annotations

import os

__all__ = ["new_mac"]


def new_mac() -> str:
    """An Ethernet address that is nobody's (IEEE 802c: locally administered)."""
    return ":".join(f"{byte:02x}" for byte in (2, *os.urandom(5)))
