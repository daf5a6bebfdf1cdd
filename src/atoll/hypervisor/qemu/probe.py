"""Whether KVM can be trusted here: boot-tested, because an open ``/dev/kvm`` proves nothing.

Nested or restricted hosts let a VM be created whose guest then hangs, or crash QEMU while it is set up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from atoll.errors import AtollError
from atoll.hypervisor.model import Machine
from atoll.hypervisor.port import Hypervisor, VirtualMachine
from atoll.hypervisor.qemu.verdict import Finding, Verdict
from atoll.process import describe_status

__all__ = ["DEADLINE", "boot_test"]

#: Seconds in which a guest must answer under KVM. It takes well under one where KVM works.
DEADLINE = 5.0


async def boot_test(
    hypervisor: Hypervisor,
    machine: Machine,
    proof: Callable[[VirtualMachine], Awaitable[None]],
    *,
    deadline: float = DEADLINE,
) -> Verdict:
    """Boot ``machine``, whose accelerator is the one in question, and see whether it lives.

    Args:
        hypervisor: what spawns it.
        machine: a small guest.
        proof: returns once the guest has answered.
        deadline: seconds after which the guest counts as hung.
    """
    began = time.monotonic()
    try:
        vm = hypervisor.spawn(machine)
    except AtollError as error:
        return Verdict(Finding.CRASHES, error.message)
    try:
        vm.console.watch()
        vm.diagnostics.watch()
        proven = asyncio.ensure_future(proof(vm))
        ended = asyncio.ensure_future(vm.wait())
        await asyncio.wait({proven, ended}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        elapsed = round(time.monotonic() - began, 3)
        if proven.done() and proven.exception() is None:
            return Verdict(Finding.WORKS, f"a guest booted in {elapsed:.2f} s", elapsed=elapsed)
        # A closed channel is seen before the exit of the process that held it.
        await asyncio.wait({ended}, timeout=1.0)
        if ended.done():
            reason = f"QEMU {describe_status(ended.result())}"
            said = vm.diagnostics.tail(1)
            return Verdict(Finding.CRASHES, f"{reason}: {said}" if said else reason, elapsed=elapsed)
        reason = f"a guest did not answer within {deadline:g} s"
        return Verdict(Finding.HANGS, reason, "nested virtualisation may be incomplete here", elapsed)
    finally:
        for waiter in (proven, ended):
            waiter.cancel()
        await asyncio.gather(proven, ended, return_exceptions=True)
        await vm.close()
