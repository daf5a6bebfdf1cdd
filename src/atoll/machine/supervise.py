"""The program that a supervisor runs: ``python -m atoll.machine.supervise DIRECTORY [--client FD]``."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from atoll import store
from atoll.events import Emit, Event
from atoll.hypervisor.port import ResidentHypervisor
from atoll.hypervisor.qemu.backend import QemuHypervisor
from atoll.machine.ports import ported
from atoll.machine.spec import MachineSpec
from atoll.paths import VmPaths
from atoll.vm.bootplan import BootPlan
from atoll.vm.chain import disk_of, read_chain, with_disk
from atoll.vm.eventlog import EventLog
from atoll.vm.messages import Files
from atoll.vm.process import supervise

__all__ = ["main", "supervise_at"]


def supervise_at(
    place: VmPaths,
    *,
    client: socket.socket | None = None,
    start: bool = False,
    files: Files | None = None,
    emit: Emit,
) -> int:
    """Look after the machine at ``place``, whose plan is written already; the exit status.

    Args:
        place: its directory.
        client: as ``supervise``.
        start: likewise.
        files: likewise.
        emit: told of everything, beside the log of events.
    """
    log = EventLog(place.directory.parent.parent)

    def tell(event: Event) -> None:
        log.append(event)
        emit(event)

    return supervise(
        place,
        _hypervisor(read_plan(place)),
        lambda: read_plan(place),
        emit=tell,
        client=client,
        start=start,
        files=files,
        suspend=lambda: _suspend(place),
    )


async def _suspend(place: VmPaths) -> None:
    """Suspend the machine as a command would; nobody uses it now."""
    from atoll.config import load  # noqa: PLC0415 - for machines that are idle only
    from atoll.machine.machine import Machine  # noqa: PLC0415

    config = load({"data_dir": place.directory.parent.parent}).config
    async with Machine(place.directory.name, config=config) as machine:
        await machine.suspend()


def read_plan(place: VmPaths) -> BootPlan:
    """What is to be run, on the disk as it is now, with the ports of now. Raises ``StoreError``."""
    plan = store.read_record(place.boot, BootPlan)
    disk = disk_of(place, read_chain(place))
    plan = msgspec.structs.replace(plan, machine=with_disk(plan.machine, disk))
    return ported(plan, store.read_record(place.spec, MachineSpec))


def _hypervisor(plan: BootPlan) -> ResidentHypervisor:
    if plan.host is not None:
        return QemuHypervisor(plan.host)
    from atoll.hypervisor.fake import FakeHypervisor  # noqa: PLC0415 - for tests

    return FakeHypervisor()


def main(words: Sequence[str]) -> int:
    """Leave the session of whoever started this, and look after the machine in the background."""
    place = VmPaths(Path(words[0]))
    client = socket.socket(fileno=int(words[words.index("--client") + 1])) if "--client" in words else None
    return supervise_at(place, client=client, emit=lambda _: None)


if __name__ == "__main__":
    if os.fork():  # whoever started this need not reap a process that outlives it
        os._exit(0)
    sys.exit(main(sys.argv[1:]))
