"""The running guest: latency of a command, and the way of its output against the guest's own pipe."""

from __future__ import annotations

import asyncio
import statistics
import time

import common

from atoll import aio

MIB = 1 << 20


def exec_latency(runs: int) -> None:
    """`true` in a running VM, start to exit code, through the SDK."""
    print("exec: `true` in a running VM")
    samples = asyncio.run(_exec_latency(max(200, runs * 20)))
    samples.sort()
    common.line("exec of true, start to exit code", [s * 1e3 for s in samples], "ms")
    common.verdict("p50, ms", samples[len(samples) // 2] * 1e3, 5)
    common.verdict("p99, ms", samples[len(samples) * 99 // 100] * 1e3, 15)


async def _exec_latency(count: int) -> list[float]:
    samples = []
    async with aio.Sandbox("debian") as box:
        pings = [await box.ping() for _ in range(100)]
        common.line("ping", [p * 1e6 for p in pings], "us", 0)
        for _ in range(20):
            await box.run(["/bin/true"])
        for _ in range(count):
            began = time.perf_counter()
            await box.run(["/bin/true"])
            samples.append(time.perf_counter() - began)
    return samples


def stdout_throughput(runs: int) -> None:
    """Output of a command to the host, against the same bytes through a pipe inside the guest."""
    print("stdout: MiB/s of a command's output")
    ours, pipes = asyncio.run(_throughput(max(5, runs // 2)))
    common.line("guest's own pipe", pipes, "MiB/s", 0)
    common.line("stdout to the host", ours, "MiB/s", 0)
    ratio = statistics.median(o / p for o, p in zip(ours, pipes, strict=True))
    common.verdict("stdout / guest's own pipe, median of pairs", ratio, 0.6, at_most=False)


async def _throughput(runs: int) -> tuple[list[float], list[float]]:
    size = 128
    produce = f"dd if=/dev/zero bs=64k count={size * 16} 2>/dev/null"
    ours, pipes = [], []
    async with aio.Sandbox("debian") as box:
        for _ in range(runs):
            inside = await box.run(["sh", "-c", f"{produce} | dd of=/dev/null bs=64k 2>/dev/null"])
            pipes.append(size / inside.elapsed)
            execution = await box.start_command(["sh", "-c", produce])
            began = time.perf_counter()
            count = 0
            while data := await execution.stdout.read():
                count += len(data)
            ours.append(size / (time.perf_counter() - began))
            assert count == size * MIB
            execution.release()
    return ours, pipes
