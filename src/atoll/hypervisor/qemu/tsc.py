"""The rate of the host's time stamp counter, which guests under TCG read as their own.

Told with ``tsc_early_khz=`` (Linux kernel-parameters.txt), it spares the guest a calibration that takes
longer and fails when the emulator loses its time slice in the middle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["measure_khz"]

#: xor eax, eax; rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_TSC = bytes.fromhex("31c0 0f31 48c1e220 4809d0 c3")

#: Seconds between the two readings; the error of a reading, about 100 ns, is then 10 parts per million.
_INTERVAL = 0.01


def measure_khz() -> int | None:
    """The rate in kHz; None where the host has no such counter or forbids generated code."""
    if os.uname().machine != "x86_64":
        return None
    import ctypes  # noqa: PLC0415 - once for each boot of the host
    import mmap  # noqa: PLC0415

    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    code.write(_READ_TSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    first_time, first_count = _reading(read_tsc)
    time.sleep(_INTERVAL)
    last_time, last_count = _reading(read_tsc)
    return round((last_count - first_count) * 1_000_000 / (last_time - first_time))


def _reading(read_tsc: Callable[[], int]) -> tuple[int, int]:
    """The clock (ns) and the counter at one instant: of several tries the one least disturbed."""
    best: tuple[int, int, int] | None = None
    for _ in range(8):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        count = read_tsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, count)
    assert best is not None
    return best[1], best[2]
