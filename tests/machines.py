"""Machines for tests: agents of the fake hypervisor under real supervisors, and what is there of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from atoll import process, store
from atoll.errors import ChannelError
from atoll.guest.messages import ExecStart
from atoll.hypervisor.model import Accelerator, Architecture, Machine
from atoll.machine import registry
from atoll.machine.launching import reach, summon
from atoll.machine.planning import FAKE
from atoll.machine.spec import Init, MachineSpec
from atoll.paths import Paths, VmPaths
from atoll.vm.bootplan import BootPlan, Setup
from atoll.vm.client import Control
from atoll.vm.restart import Policy
from atoll.vm.state import State

KILL = signal.SIGKILL


def hosted_machine(name: str = "test") -> Machine:
    """What the fake hypervisor is asked for: it looks at the name alone."""
    return Machine(
        name=name,
        architecture=Architecture.X86_64,
        accelerator=Accelerator.TCG,
        vcpus=1,
        memory=256 << 20,
        kernel=Path("/unused"),
        initramfs=Path("/unused"),
    )


def hosted_spec(**wishes) -> MachineSpec:
    """What is asked for by the maker of a machine of the fake hypervisor."""
    defaults = {
        "id": os.urandom(16).hex(),
        "image": "none",
        "created": time.time(),
        "init": Init.MINIMAL,
        "network": False,
        "accel": FAKE,
        "boot_timeout": 60.0,
    }
    return MachineSpec(**{**defaults, **wishes})


def enter(
    data: Path,
    name: str = "dev",
    *,
    setup: Setup | None = None,
    policy: Policy = Policy.NO,
    boot_timeout: float = 60.0,
) -> VmPaths:
    """Enter a machine of the fake hypervisor, with its plan already made."""
    place = registry.add(
        Paths(data=data, cache=data), name, hosted_spec(restart=policy), lambda place: place.data.touch()
    )
    plan = BootPlan(
        machine=hosted_machine(name),
        host=None,
        setup=setup or Setup(),
        policy=policy,
        boot_timeout=boot_timeout,
    )
    store.write_record(place.boot, plan)
    return place


async def supervised(place: VmPaths) -> Control:
    """A connection to the machine's supervisor, as commands make it."""
    for attempt in range(40):
        control = Control(reach(place) or summon(place))
        try:
            await control.status()
        except ChannelError:
            control.close()
            await asyncio.sleep(0.01 * attempt)
        else:
            return control
    raise AssertionError(f"{place.log('supervisor').read_text()}")


def recorded(place: VmPaths) -> State:
    """What is on disk."""
    return store.read_record(place.state, State)


def true_state(place: VmPaths) -> State:
    """What the next command sees."""
    return registry.observe(place)[0]


def processes_at(directory: Path) -> dict[int, str]:
    """Processes that have anything below ``directory`` open, run there or name it, but for this one."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if process.identify(int(entry)) is not None and _is_at(entry, str(directory)):
                found[int(entry)] = (
                    Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
    return found


def _is_at(pid: str, directory: str) -> bool:
    if directory in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
        return True
    links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))]
    for link in links:
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(directory):
                return True
    return False


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as those of paused machines of the fake hypervisor are."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def kill_all_at(directory: Path) -> None:
    """End whatever a failed test left."""
    for pid in processes_at(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, KILL)


async def until(condition, *, within: float = 60.0, what: str = ""):
    """Wait until ``condition`` holds; what it returned."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, what or "it did not come to pass"
        await asyncio.sleep(0.005)
    return found


async def gone(pid: int) -> None:
    """Wait for a process's end."""
    await until(lambda: process.identify(pid) is None, what=f"process {pid} still runs")


async def at_rest(place: VmPaths) -> None:
    """Wait until nobody looks after the machine, and see that nothing is left of its processes."""
    await until(lambda: not store.is_held(place.supervisor_lock), what="the supervisor stays")
    await until(lambda: not processes_at(place.directory), what=f"left: {processes_at(place.directory)}")
    sockets = [path.name for path in place.directory.iterdir() if path.is_socket()]
    assert not sockets, sockets


async def run(control: Control, *argv: str, name: str = "x", release: bool = True) -> bytes:
    """What a command in the guest writes."""
    execution = control.agent.start(ExecStart(id=name, argv=argv))
    try:
        await execution.started()
        return await execution.stdout.read_all()
    finally:
        if release:
            execution.release()
        else:
            execution.close()
