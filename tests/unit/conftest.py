"""What all unit tests share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_waits_for_the_disk():
    """Whatever is killed here, the host is not: what was written is there without it (fsync(2))."""
    patch = pytest.MonkeyPatch()
    for name in ("fsync", "fdatasync"):
        patch.setattr(os, name, lambda _: None)
    yield
    patch.undo()
