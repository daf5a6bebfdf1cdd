"""Captures of network cards, for programs without an event loop."""

from __future__ import annotations

from pathlib import Path

from atoll import aio
from atoll.blocking.core import Closing, blocking

__all__ = ["Capture"]


class Capture(Closing):
    """Frames on their way into a file: ``atoll.aio.Capture`` with methods that wait."""

    _async: aio.Capture

    close = blocking(aio.Capture.close)

    @property
    def path(self) -> Path:
        """The file."""
        return self._async.path

    @property
    def frames(self) -> int:
        """How many frames there were; 0 until it has ended."""
        return self._async.frames

    @property
    def dropped(self) -> int:
        """How many of them are not in the file, as it was written too slowly; 0 until it has ended."""
        return self._async.dropped
