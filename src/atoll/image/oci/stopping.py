"""Giving up several reads at once, also those that wait for bytes which do not come."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from atoll.image.oci.source import Stream

__all__ = ["Stopping"]


class Stopping:
    """Whether the layers of an image are given up; shared by the threads that read them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        self._stopped = False

    def __bool__(self) -> bool:
        return self._stopped

    @contextlib.contextmanager
    def watching(self, stream: Stream) -> Iterator[None]:
        """Have ``stream`` closed if all is given up meanwhile, where it can be."""
        with self._lock:
            self._streams.append(stream)
        try:
            yield
        finally:
            with self._lock:
                self._streams.remove(stream)

    def stop(self) -> None:
        """Give all up: who waits in a read gets its stream's error."""
        with self._lock:
            self._stopped = True
            streams = list(self._streams)
        for stream in streams:
            close = getattr(stream, "close", None)
            if close is not None:
                with contextlib.suppress(Exception):  # what it says to that is of no matter any more
                    close()
