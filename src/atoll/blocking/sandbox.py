"""Sandboxes for programs without an event loop."""

from __future__ import annotations

import functools
from typing import Self

from atoll import aio
from atoll.blocking.capture import Capture
from atoll.blocking.core import Closing, blocking, connecting, made_from, opening
from atoll.blocking.files import Files
from atoll.blocking.processes import Exposed, Process
from atoll.vm.network.attachment import PortState

__all__ = ["Pool", "Sandbox"]


class Sandbox(Closing):
    """A fresh Linux VM with a root of its own: ``atoll.aio.Sandbox`` with methods that wait."""

    _async: aio.Sandbox
    __init__ = made_from(aio.Sandbox)

    open = blocking(aio.Sandbox.open)
    close = blocking(aio.Sandbox.close)
    run = blocking(aio.Sandbox.run)
    run_image = blocking(aio.Sandbox.run_image)
    start_image = opening(aio.Sandbox.start_image, Process)
    start = opening(aio.Sandbox.start, Process)
    start_process = opening(aio.Sandbox.start_process, Process)
    attach = opening(aio.Sandbox.attach, Process)
    processes = blocking(aio.Sandbox.processes)
    expose = opening(aio.Sandbox.expose, Exposed)
    capture = opening(aio.Sandbox.capture, Capture)
    shape = blocking(aio.Sandbox.shape)
    connect_vsock = connecting(aio.Sandbox.connect_vsock)
    set_egress = blocking(aio.Sandbox.set_egress)
    ping = blocking(aio.Sandbox.ping)
    info = blocking(aio.Sandbox.info)
    pause = blocking(aio.Sandbox.pause)
    resume = blocking(aio.Sandbox.resume)
    snapshot = blocking(aio.Sandbox.snapshot)

    @functools.wraps(aio.Sandbox.fork)
    def fork(self, count: int = 1) -> list[Self]:
        """Copy this sandbox as it runs."""
        return [self._of(copy) for copy in blocking(aio.Sandbox.fork)(self, count)]

    @property
    def labels(self) -> dict[str, str]:
        """What the program keeps with it."""
        return self._async.labels

    @property
    def published(self) -> tuple[PortState, ...]:
        """The ports of this host that were asked for and lead to it, once it is open."""
        return self._async.published

    @property
    def files(self) -> Files:
        """The files of the guest, for whoever runs commands and from where they start."""
        return Files(self._async.files, self._owner)

    @property
    def name(self) -> str:
        """The VM's name."""
        return self._async.name

    @property
    def image(self) -> str:
        """What its root is."""
        return self._async.image

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self


class Pool(Closing):
    """Keeps sandboxes ready: ``atoll.aio.Pool`` with methods that wait."""

    _async: aio.Pool
    __init__ = made_from(aio.Pool)

    open = blocking(aio.Pool.open)
    filled = blocking(aio.Pool.filled)
    close = blocking(aio.Pool.close)

    claim = opening(aio.Pool.claim, Sandbox._of)  # noqa: SLF001 - of this module

    @property
    def ready(self) -> int:
        """How many sandboxes stand ready."""
        return self._async.ready

    def __enter__(self) -> Self:
        self.open()
        return self
