"""The SDK for programs on an event loop.

::

async with atoll.aio.Sandbox("debian") as box:
    result = await box.run(["uname", "-a"])
"""

from __future__ import annotations

from atoll.guest.result import CommandFailedError, Result
from atoll.machine.machine import Machine
from atoll.sandbox.pool import Pool
from atoll.sandbox.sandbox import Sandbox

__all__ = ["CommandFailedError", "Machine", "Pool", "Result", "Sandbox"]
