"""Cold boot: raw QEMU with a minimal init (the floor) against Atoll's agent and its whole command.

The floor has the same QEMU, machine type, kernel and kernel command line; its init loads the modules of the
channel, opens the port and writes one byte. Runs alternate, so that changes of the host's speed meet both.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

from atoll.hypervisor.model import Machine
from atoll.hypervisor.qemu.argv import Descriptors, render
from atoll.image import cpio, kernel

HERE = Path(__file__).parent


def floor_initramfs(bench: common.Setting, into: Path) -> Path:
    """The bundle's initramfs with the minimal init in place of the agent."""
    init = into / "init"
    target = f"{bench.machine.architecture}-linux-musl"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target]
    subprocess.run([*compiler, "-Os", "-static", "-s", "-o", init, HERE / "floor_init.c"], check=True)
    bundle = kernel.load(bench.config.paths, bench.machine.kernel.parent.name)
    modules = bundle.initramfs.read_bytes()[: bundle.manifest.head]
    output = into / "floor.cpio"
    output.write_bytes(modules + cpio.archive([cpio.file("init", init.read_bytes(), 0o755)]))
    return output


def floor_once(bench: common.Setting, initramfs: Path) -> float:
    """Seconds from spawn to the minimal init's byte."""
    machine = bench.machine
    minimal = Machine(
        name="floor",
        architecture=machine.architecture,
        accelerator=machine.accelerator,
        vcpus=machine.vcpus,
        memory=machine.memory,
        kernel=machine.kernel,
        initramfs=initramfs,
        cmdline=machine.cmdline,
    )
    pairs = [socket.socketpair() for _ in range(3)]
    fds = [theirs.fileno() for _, theirs in pairs]
    argv = render(minimal, bench.host.program, Descriptors(*fds), sandbox=False)
    began = time.perf_counter()
    child = subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pairs[0][0].settimeout(60)
        assert pairs[0][0].recv(1) == b"R"
        return time.perf_counter() - began
    finally:
        child.kill()
        child.wait()
        for pair in pairs:
            for end in pair:
                end.close()


def command_once(*options: str) -> tuple[float, float]:
    """Seconds of `atoll run debian -- true`, whole, and from its start until the agent answered."""
    argv = [str(Path(sys.executable).parent / "atoll"), "run", "-v", *options, "debian", "--", "true"]
    began = time.perf_counter()
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert child.stderr is not None
    ready = 0.0
    for line in child.stderr:
        if b": agent " in line:
            ready = time.perf_counter() - began
    assert child.wait() == 0
    return time.perf_counter() - began, ready


def main(runs: int) -> None:
    bench = common.setting()
    print(f"boot: {bench.machine.accelerator}, {bench.machine.vcpus} vCPU, QEMU {bench.host.version}")
    floors, commands, agents = [], [], []
    with tempfile.TemporaryDirectory() as place:
        initramfs = floor_initramfs(bench, Path(place))
        command_once()
        floor_once(bench, initramfs)
        for _ in range(runs):
            floors.append(floor_once(bench, initramfs))
            whole, ready = command_once()
            commands.append(whole)
            agents.append(ready)
    common.line("floor: raw QEMU, minimal init, ready byte", floors)
    common.line("atoll run debian -- true: agent ready", agents)
    common.line("atoll run debian -- true: whole command", commands)
    pairs = zip(agents, floors, strict=True)
    common.verdict("agent ready / floor, median of pairs", statistics.median(a / f for a, f in pairs), 1.15)
    extra = statistics.median(c - f for c, f in zip(commands, floors, strict=True))
    common.verdict("whole command - floor, seconds, median of pairs", extra, 0.25)
