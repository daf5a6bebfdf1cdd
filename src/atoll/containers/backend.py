"""What the listener needs of the engine behind it."""

from __future__ import annotations

from typing import Protocol

from atoll.guest.channel import Stream

__all__ = ["Backend"]


class Backend(Protocol):
    """An engine in a machine. Lives on one event loop; other processes may do the same to it meanwhile.

    All methods raise ``AtollError`` for what fails on purpose; that is what clients are told.
    """

    async def ensure_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - the engine bounds its own stages
        """Have the engine answer: made, started, resumed or just found, within ``timeout`` seconds.

        Cancelling it leaves nothing half done.
        """

    async def dial(self, window: int) -> Stream:
        """A new connection to the engine's socket in the guest, as ``Agent.connect`` makes it.

        Args:
            window: bytes that may be under way in either direction.

        Raises:
            AtollError: it cannot be had now. ``ensure_ready`` is asked then, and this once more.
        """

    async def busy(self) -> bool:
        """Whether anything runs in the engine that must go on, such as a container.

        An engine that does not run is not busy. What cannot be told is an error, and counts as busy.
        """

    async def suspend(self) -> None:
        """Have the engine rest until ``ensure_ready``. One that does not run already rests."""

    async def close(self) -> None:
        """Let go of the engine, which goes on. Closing twice is fine."""
