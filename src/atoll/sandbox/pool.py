"""Sandboxes that are made before they are wanted, and stand still until then."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any, Self

from atoll.errors import AtollError, UsageError
from atoll.events import Emit, Warned, ignore
from atoll.guest.opening import Closing
from atoll.sandbox.pressure import look, room_for
from atoll.sandbox.sandbox import Sandbox

__all__ = ["Pool"]

#: What a sandbox that stands still may come to use while it is made, bytes.
_SIZE = 160 << 20

#: Seconds after which a pool that could not grow tries again.
_PAUSE = 1.0

#: Run once in each sandbox before it is stopped. Under TCG this is what a claim saves: QEMU has translated by
#: then what every command executes.
_WARM_UP = (("true",), ("/bin/sh", "-c", "true"))


class Pool(Closing):
    """Keeps ``size`` sandboxes ready; a claimed one is up within milliseconds, and belongs to who claimed it.

    Args:
        image: as for ``Sandbox``.
        size: how many stand ready; fewer while the host has no room for them.
        on_event: told of everything that happens, see ``atoll.events``.
        options: as for ``Sandbox``; all sandboxes of the pool have them.

    Raises:
        UsageError: ``usage.pool``: the size is none.
    """

    def __init__(
        self, image: str = "debian", *, size: int = 8, on_event: Emit = ignore, **options: Any
    ) -> None:
        if size < 1:
            raise UsageError(f"a pool of {size}", code="pool", hint="use a size of 1 or more")
        self.image = image
        self.size = size
        self._emit = on_event
        self._options = options
        self._ready: deque[Sandbox] = deque()
        self._taken = asyncio.Event()
        self._grown = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None

    @property
    def ready(self) -> int:
        """How many sandboxes stand ready."""
        return len(self._ready)

    async def open(self) -> None:
        """Begin to fill the pool. Does not wait for it; the first claims may have to."""
        if self._filling is None:
            self._filling = asyncio.create_task(self._fill())

    async def filled(self) -> None:
        """Wait until all sandboxes of the pool stand ready."""
        while len(self._ready) < self.size:
            self._grown.clear()
            await self._grown.wait()

    async def claim(self) -> Sandbox:
        """A sandbox that is up: one that stands ready, or else a new one. The caller closes it.

        Raises:
            AtollError: as ``Sandbox.open``, if a new one is needed.
        """
        while self._ready:
            box = self._ready.popleft()
            try:
                await box.vm.renew()
                if box.keeper is not None:
                    box.keeper.begin()
            except AtollError:  # it died while it stood here
                await box.close()
                continue
            except BaseException:
                await box.close()
                raise
            finally:
                self._taken.set()  # not before: making the next one would keep this one waiting
            return box
        box = self._make()
        await box.open()
        return box

    async def close(self) -> None:
        """Remove all sandboxes that nobody claimed. Closing twice is fine."""
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
            self._filling = None
        while self._ready:
            await self._ready.popleft().close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    def _make(self) -> Sandbox:
        return Sandbox(self.image, on_event=self._emit, **self._options)

    async def _fill(self) -> None:
        """Keep the pool full, for as long as it is open."""
        while True:
            if len(self._ready) >= self.size:
                self._taken.clear()
                await self._taken.wait()
            elif not room_for(look(), _SIZE):
                await asyncio.sleep(_PAUSE)
            else:
                await self._add()

    async def _add(self) -> None:
        box = self._make()
        try:
            await box.open()
            for argv in _WARM_UP:
                with contextlib.suppress(AtollError):  # an image may have neither
                    await box.run(argv)
            if box.keeper is not None:  # its time begins when it is claimed
                box.keeper.stop()
            await box.pause()
        except AtollError as error:
            await box.close()
            self._emit(Warned(message=f"the pool cannot grow: {error.message}"))
            await asyncio.sleep(_PAUSE)
        except BaseException:
            await box.close()
            raise
        else:
            self._ready.append(box)
            self._grown.set()
