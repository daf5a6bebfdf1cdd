"""Ending a guest: by its agent, its power button, the hypervisor, a signal; each for a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from atoll.errors import AtollError
from atoll.events import Emit, StopTried
from atoll.guest.agent import Agent
from atoll.hypervisor.port import Resident
from atoll.vm.messages import StopStep
from atoll.vm.setup import run_quietly

__all__ = ["plan_steps", "stop_guest"]

#: Seconds for the hypervisor to end once it was told to: its disks are flushed in that time.
_QUIT = 5.0

#: Part of the time that the agent's attempt gets; the power button gets the rest.
_AGENT_SHARE = 0.75


def plan_steps(*, force: bool, timeout: float, killed: bool = False) -> tuple[tuple[str, float], ...]:
    """The attempts in their order, and the seconds that each may take."""
    if killed:
        return (("kill", _QUIT),)
    by_force = (("quit", _QUIT), ("kill", _QUIT))
    if force:
        return by_force
    return (("agent", timeout * _AGENT_SHARE), ("button", timeout * (1 - _AGENT_SHARE)), *by_force)


async def stop_guest(
    vm: Resident,
    agent: Agent | None,
    name: str,
    emit: Emit,
    *,
    force: bool,
    timeout: float,  # noqa: ASYNC109 - the guest's own part of the time
    farewell: str = "",
    killed: bool = False,
) -> tuple[StopStep, ...]:
    """End the guest; what was tried. The last step, a kill, always ends it.

    Args:
        vm: the guest's.
        agent: in it, or None.
        name: of the machine.
        emit: told of each step.
        force: without the guest's part.
        timeout: seconds for that.
        farewell: what the guest's shell does before its agent ends it, within the agent's share of the time.
        killed: it was killed already, and is about to be gone.
    """
    attempts: dict[str, Callable[[], Awaitable[None]]] = {
        "agent": lambda: _power_off(agent, farewell),
        "button": vm.press_power_button,
        "quit": vm.quit,
        "kill": lambda: _kill(vm),
    }
    steps: list[StopStep] = []
    for how, seconds in plan_steps(force=force, timeout=timeout, killed=killed):
        step = await _try(vm, how, attempts[how], seconds)
        steps.append(step)
        emit(StopTried(vm=name, how=how, elapsed=step.elapsed, ended=step.ended))
        if step.ended:
            break
    return tuple(steps)


async def _try(vm: Resident, how: str, attempt: Callable[[], Awaitable[None]], seconds: float) -> StopStep:
    began = time.monotonic()
    error = ""
    try:
        async with asyncio.timeout(seconds):
            if how == "agent" and await vm.paused():
                await vm.resume()  # a guest whose vCPUs stand still cannot power off
            try:
                await attempt()
            except AtollError as problem:
                error = problem.message
                if how in {"agent", "button"} and vm.process.poll() is None:
                    return StopStep(how, time.monotonic() - began, ended=False, error=error)
            await vm.wait()
    except TimeoutError:
        pass
    except AtollError as problem:
        error = problem.message
    ended = vm.process.poll() is not None
    return StopStep(how, time.monotonic() - began, ended=ended, error=error)


async def _power_off(agent: Agent | None, farewell: str) -> None:
    if agent is None:
        raise AtollError("there is no channel to the guest's agent")
    if farewell:
        await run_quietly(agent, ("/bin/sh", "-c", farewell))
    await agent.poweroff()


async def _kill(vm: Resident) -> None:
    vm.process.kill()
