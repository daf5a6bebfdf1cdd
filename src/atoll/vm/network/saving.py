"""Captures that are written to a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path

from atoll import store
from atoll.errors import AtollError, NetworkError
from atoll.guest.opening import Closing
from atoll.vm.network.capture import Captured, Frames
from atoll.vm.network.reaching import ANSWER

__all__ = ["Capture", "CaptureFile", "begin_capture"]


class CaptureFile:
    """A pcapng file for its owner's eyes, which has whole blocks alone.

    Args:
        path: what is there already is written over, if it is no pipe.

    Raises:
        StoreError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        with store.refusing(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
            self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if self._is_file:
                os.fchmod(self._fd, 0o600)

    def write(self, blocks: list[bytes]) -> None:
        """Add blocks; the file is what it was if they cannot be. Raises ``StoreError``."""
        data = memoryview(b"".join(blocks))
        rest = data
        with store.refusing(self.path):
            try:
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                if self._is_file:
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._fd, self._size)
                raise
        self._size += len(data)

    def close(self) -> None:
        """Be done with it. Raises ``StoreError``: what was written is not all there."""
        with store.refusing(self.path):
            os.close(self._fd)


class Capture(Closing):
    """The frames of a VM's network card, on their way into a pcapng file.

    The file is complete when this is closed, or the card was pulled; until then it can be read as far as it
    is.
    """

    def __init__(self, frames: Frames, file: CaptureFile) -> None:
        self._frames = frames
        self._file = file
        self._copying: asyncio.Task[None] | None = asyncio.create_task(self._copy())

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def frames(self) -> int:
        """How many frames there were; 0 until it has ended."""
        return self._captured.frames

    @property
    def dropped(self) -> int:
        """How many of them are not in the file, as it was written too slowly; 0 until it has ended."""
        return self._captured.dropped

    async def close(self) -> None:
        """End it: what has passed until now is in the file. Closing twice is fine.

        Raises:
            StoreError: the file could not be written; it has what came before.
            NetworkError: ``network.gone``: the network's process was killed; the file has what came before.
        """
        copying, self._copying = self._copying, None
        if copying is None:
            return
        try:
            await self._frames.end()
            async with asyncio.timeout(ANSWER):
                await copying
        except TimeoutError:
            raise NetworkError("a capture does not end", code="stuck") from None
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            self._frames.close()
            self._file.close()

    @property
    def _captured(self) -> Captured:
        return self._frames.captured or Captured(0, 0)

    async def _copy(self) -> None:
        try:
            while blocks := await self._frames.read():
                await asyncio.to_thread(self._file.write, blocks)
        except AtollError:
            self._frames.close()  # nothing more is to be captured
            raise


async def begin_capture(frames: Frames, path: str | Path) -> Capture:
    """Write the frames from here on to a file.

    Raises:
        NetworkError: as ``Frames.open``; what the file held before is still there.
        StoreError: it cannot be written.
    """
    await frames.open()
    try:
        return Capture(frames, await asyncio.to_thread(CaptureFile, Path(path)))
    except BaseException:
        frames.close()
        raise
