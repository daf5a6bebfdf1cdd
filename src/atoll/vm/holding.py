"""Who in a guest still has a file system that was unmounted at its own place.

A mount namespace has its mounts until it ends (mount_namespaces(7)): a container into which a directory was
bound keeps that file system, though nobody else sees it any more.
"""

from __future__ import annotations

import asyncio
import re

from atoll.errors import GuestError
from atoll.guest.agent import Agent
from atoll.guest.file_messages import FileRead, FileStat, Status
from atoll.vm.setup import run_quietly

__all__ = ["device_of", "find_device", "holders", "is_held", "parse_holders"]

#: So many are named at most.
_MOST = 8

#: Bytes of the guest's own list of mounts that are looked at.
_LIST = 1 << 20

#: One line for each mount namespace that has the file system: a process, its cgroup and its name.
_WHO = """\
seen=' '
for file in $(grep -l -- " - virtiofs $1 " /proc/[0-9]*/mountinfo 2> /dev/null); do
    pid=${file#/proc/}
    pid=${pid%/mountinfo}
    space=$(readlink "/proc/$pid/ns/mnt") || continue
    case $seen in *" $space "*) continue ;; esac
    seen="$seen$space "
    read -r name < "/proc/$pid/comm" && read -r group < "/proc/$pid/cgroup" && echo "$pid $group $name"
done
"""

#: Containers' cgroups are named after them: ``/docker/ID``, or ``docker-ID.scope``.
_CONTAINER = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


def find_device(mountinfo: str, tag: str) -> str:
    """The device number, ``MAJOR:MINOR``, of the virtiofs ``tag`` (proc_pid_mountinfo(5)); empty for none."""
    for line in mountinfo.splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.split(" ")[:2] == ["virtiofs", tag]:
            return mount.split(" ")[2]
    return ""


async def device_of(agent: Agent, tag: str) -> str:
    """The device number of the mounted virtiofs ``tag``; empty if that cannot be told."""
    stream = agent.open(FileRead(path="/proc/self/mountinfo"), end=True)
    try:
        await stream.reply(Status)
        text = b""
        while len(text) < _LIST and (data := await stream.read()):
            text += data
    except GuestError:
        return ""
    finally:
        stream.cancel()
    return find_device(text.decode(errors="replace"), tag)


async def is_held(agent: Agent, device: str) -> bool:
    """Whether the file system of this device number is mounted anywhere.

    As long as it is, it has an entry among the backing devices (Documentation/ABI/testing/sysfs-class-bdi).
    """
    if not device:
        return False
    try:
        await agent.call_again(FileStat(path=f"/sys/class/bdi/{device}"), Status)
    except GuestError:
        return False
    return True


async def holders(agent: Agent, tag: str) -> tuple[str, ...]:
    """Who has the virtiofs ``tag`` mounted, in words; empty if that cannot be told within some seconds."""
    try:
        async with asyncio.timeout(5.0):
            _, said = await run_quietly(agent, ("/bin/sh", "-c", _WHO, "sh", tag))
    except (GuestError, TimeoutError):
        return ()
    return parse_holders(said)


def parse_holders(said: str) -> tuple[str, ...]:
    """Containers by the first half of their id, as Docker shows them; else a process.

    Args:
        said: lines of process, cgroup (cgroups(7), ``0::PATH``) and name.
    """
    found = []
    for line in said.splitlines():
        pid, _, rest = line.partition(" ")
        group, _, name = rest.partition(" ")
        container = _CONTAINER.search(group)
        if container is not None:
            found.append(f"container {container[1]}")
        elif pid.isdigit():
            found.append(f"process {pid} ({''.join(filter(str.isprintable, name))[:64]})")
    return tuple(dict.fromkeys(found))[:_MOST]
