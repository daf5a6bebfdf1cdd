"""A running sandbox, taken apart into RAM and devices, and a VM that goes on from the two."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from atoll import aio
from atoll.hypervisor.model import MemoryFile
from atoll.hypervisor.qemu.stream import split
from atoll.vm.spawning import Clone, spawn_clone

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

COUNTER = "setsid sh -c 'while sleep 0.05; do echo x >> /tmp/count; done' > /dev/null 2>&1 &"
FILL = "head -c 20000000 /dev/urandom > /dev/shm/big; sha256sum /dev/shm/big"


def number(path):
    return Path(f"/proc/self/fd/{path}")


def memory_file(stack, size=0):
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.truncate(fd, size)
    return fd


async def taken_apart(stack, box):
    """Descriptors of a sandbox's RAM and of the stream of its devices, and all blocks of its memory."""
    whole, ram, devices = (memory_file(stack, size) for size in (0, box.vm.machine.memory, 0))
    await box.vm.freezable.copy(whole, leave_out_shared=True)
    name = "ram" if box.vm.machine.ram is not None else "pc.ram"
    with mmap.mmap(whole, 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as stream:
        parts = split(stream, {name: "ram"}, lambda _, offset, pages: os.pwritev(ram, pages, offset))
    os.write(devices, parts.devices)
    return ram, devices, parts.blocks


def going_on(box, name, ram, devices, *, shared, config):
    machine = replace(box.vm.machine, name=name, ram=MemoryFile(number(ram), shared=shared))
    clone = Clone("", number(devices), machine.memory)
    return aio.Sandbox(config=config, spawned=spawn_clone(box.vm.hypervisor, machine, clone, lambda _: None))


async def count(box):
    return int((await box.run(["sh", "-c", "wc -l < /tmp/count"], check=True)).stdout)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.usefixtures("no_leftovers")
async def test_processes_and_data_are_in_a_vm_that_goes_on_from_ram_and_devices(config, cold):
    with ExitStack() as stack:
        async with aio.Sandbox("debian", config=config, cold=cold) as box:
            digest = (await box.run(["sh", "-c", FILL], check=True)).stdout
            await box.run(["sh", "-c", COUNTER], check=True)
            ram, devices, blocks = await taken_apart(stack, box)
            assert os.fstat(devices).st_size < 1 << 20
            assert max(block.size for block in blocks if block.name.endswith("ram")) == box.vm.machine.memory
        async with going_on(box, "other", ram, devices, shared=cold, config=config) as other:
            assert (await other.run(["sha256sum", "/dev/shm/big"])).stdout == digest
            assert (await other.run(["hostname"])).stdout == "other\n"
            counted = await count(other)
            await other.run(["sleep", "0.3"], check=True)
            assert await count(other) > counted > 0


@pytest.mark.usefixtures("no_leftovers")
async def test_memory_that_was_plugged_in_goes_with_the_devices(config):
    with ExitStack() as stack:
        async with aio.Sandbox("debian", config=config, memory="768M") as box:
            digest = (await box.run(["sh", "-c", FILL], check=True)).stdout
            total = (await box.info()).memory_total
            ram, devices, blocks = await taken_apart(stack, box)
            plugged = box.vm.machine.max_memory - box.vm.machine.memory
            assert [block.size for block in blocks if block.name.endswith("/more")] == [plugged]
            assert os.fstat(devices).st_size > 20_000_000  # what the guest writes lies there first
        async with going_on(box, "grown", ram, devices, shared=False, config=config) as other:
            assert (await other.info()).memory_total == total
            assert (await other.run(["sha256sum", "/dev/shm/big"])).stdout == digest
