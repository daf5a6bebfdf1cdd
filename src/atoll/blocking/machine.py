"""Machines for programs without an event loop."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Self

from atoll import aio
from atoll.blocking.capture import Capture
from atoll.blocking.core import Closing, blocking, connecting, made_from, opening, wait_for
from atoll.blocking.files import Files
from atoll.blocking.processes import Exposed, Process
from atoll.machine.registry import Named
from atoll.machine.spec import MachineSpec
from atoll.snapshot.catalog import Snapshot
from atoll.vm.state import State

__all__ = ["Machine"]


class Machine(Closing):
    """A machine of this user, by its name: ``atoll.aio.Machine`` with methods that wait."""

    _async: aio.Machine
    __init__ = made_from(aio.Machine)

    @classmethod
    @functools.wraps(aio.Machine.create.__func__)  # type: ignore[attr-defined]
    def create(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a machine; it is not started."""
        return cls._of(wait_for(aio.Machine.create(*args, **kwargs)))

    start = blocking(aio.Machine.start)
    snapshot = blocking(aio.Machine.snapshot)
    commit = blocking(aio.Machine.commit)
    suspend = blocking(aio.Machine.suspend)
    restore = blocking(aio.Machine.restore)
    stop = blocking(aio.Machine.stop)
    restart = blocking(aio.Machine.restart)
    pause = blocking(aio.Machine.pause)
    resume = blocking(aio.Machine.resume)
    remove = blocking(aio.Machine.remove)
    status = blocking(aio.Machine.status)
    stats = blocking(aio.Machine.stats)
    memory = blocking(aio.Machine.memory)
    share = blocking(aio.Machine.share)
    add_alias = blocking(aio.Machine.add_alias)
    remove_alias = blocking(aio.Machine.remove_alias)
    unshare = blocking(aio.Machine.unshare)
    join_network = blocking(aio.Machine.join_network)
    resize = blocking(aio.Machine.resize)
    set_egress = blocking(aio.Machine.set_egress)
    ports = blocking(aio.Machine.ports)
    add_ports = blocking(aio.Machine.add_ports)
    remove_ports = blocking(aio.Machine.remove_ports)
    wait = blocking(aio.Machine.wait)
    connect = blocking(aio.Machine.connect)
    close = blocking(aio.Machine.close)
    copy_in = blocking(aio.Machine.copy_in)
    copy_out = blocking(aio.Machine.copy_out)
    run = blocking(aio.Machine.run)
    start_process = opening(aio.Machine.start_process, Process)
    attach = opening(aio.Machine.attach, Process)
    processes = blocking(aio.Machine.processes)
    expose = opening(aio.Machine.expose, Exposed)
    capture = opening(aio.Machine.capture, Capture)
    shape = blocking(aio.Machine.shape)
    connect_vsock = connecting(aio.Machine.connect_vsock)
    ping = blocking(aio.Machine.ping)
    info = blocking(aio.Machine.info)

    @functools.wraps(aio.Machine.fork)
    def fork(self, *names: str) -> tuple[Self, ...]:
        """Copy the running machine to others that go on from the same instant."""
        return tuple(self._of(copy) for copy in blocking(aio.Machine.fork)(self, *names))

    @classmethod
    @functools.wraps(aio.Machine.from_snapshot.__func__)  # type: ignore[attr-defined]
    def from_snapshot(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a machine of a snapshot of another one."""
        return cls._of(wait_for(aio.Machine.from_snapshot(*args, **kwargs)))

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, the oldest first."""
        return self._async.snapshots()

    @property
    def files(self) -> Files:
        """The files of the machine, for whoever runs commands and from where they start."""
        return Files(self._async.files, self._owner)

    @property
    def name(self) -> str:
        """The machine's name."""
        return self._async.name

    def find(self) -> Named:
        """What was asked for, and what is. Raises ``StoreError``: ``store.missing``: there is none."""
        return self._async.find()

    @property
    def state(self) -> State:
        """What it does now. Raises as ``find``."""
        return self._async.state

    @property
    def spec(self) -> MachineSpec:
        """What was asked for. Raises as ``find``."""
        return self._async.spec

    @property
    def shell(self) -> str:
        """The shell of its image. Raises as ``find``."""
        return self._async.shell

    def prefer(
        self, *, env: Mapping[str, str] | None = None, workdir: str | None = None, user: str | None = None
    ) -> None:
        """Say what commands get that say nothing themselves, in the place of what the machine's spec says."""
        self._async.prefer(env=env, workdir=workdir, user=user)
