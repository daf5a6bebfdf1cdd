"""What the boot test finds in guests that live, hang, and die."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from atoll.guest.channel import Channel
from atoll.hypervisor.qemu.probe import boot_test
from atoll.hypervisor.qemu.verdict import Finding

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_leftovers")]


async def answers(vm):
    channel = Channel(vm.take_channel())
    try:
        await channel.ready()
    finally:
        channel.close()


async def never_answers(vm):
    await asyncio.Event().wait()


async def dies(vm):
    os.kill(vm.process.pid, signal.SIGKILL)
    await answers(vm)


async def test_a_guest_that_answers_works(backend):
    verdict = await boot_test(*backend, answers, deadline=60)
    assert verdict.finding is Finding.WORKS
    assert verdict.usable
    assert verdict.elapsed > 0


async def test_a_guest_that_does_not_answer_hangs(backend):
    verdict = await boot_test(*backend, never_answers, deadline=0.3)
    assert verdict.finding is Finding.HANGS
    assert not verdict.usable
    assert "0.3 s" in verdict.reason


async def test_a_hypervisor_that_dies_crashes(backend):
    verdict = await boot_test(*backend, dies, deadline=60)
    assert verdict.finding is Finding.CRASHES
    assert "SIGKILL" in verdict.reason
