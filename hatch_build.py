"""Compile the guest agent: hook of the wheel build, and ``python hatch_build.py`` without one.

The compiler is the one inside the ``ziglang`` package, so no toolchain of the host is needed and both
architectures can be built anywhere. An agent whose sources, flags and compiler have not changed is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["ARCHITECTURES", "CustomBuildHook", "build_agent"]

ARCHITECTURES: Final = ("x86_64", "aarch64")

ROOT: Final = Path(__file__).resolve().parent
SOURCES: Final = ROOT / "guest-agent" / "src"
OUTPUT: Final = ROOT / "src" / "atoll" / "_bin"

#: Kept apart for the editor and the tests: guest-agent/Makefile uses the same.
WARNINGS: Final = tuple((ROOT / "guest-agent" / "warnings.txt").read_text().split())
FLAGS: Final = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-O2",
    "-static",
    "-s",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wl,--gc-sections",
    # Nothing of the machine that built it: the same sources give the same bytes.
    "-Wl,--build-id=none",
    "-fno-ident",
)


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts the agents into the wheel: the host's architecture for an editable install, else all."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is packed."""
        wanted = (platform.machine(),) if version == "editable" else ARCHITECTURES
        for architecture in wanted:
            binary = build_agent(architecture, self.metadata.version)
            build_data["force_include"][str(binary)] = f"atoll/_bin/{binary.name}"


def build_agent(architecture: str, version: str) -> Path:
    """Compile the agent for ``architecture`` unless it is up to date; the path of the binary.

    Raises:
        SystemExit: the architecture is not supported, or the compiler found an error.
    """
    if architecture not in ARCHITECTURES:
        sys.exit(f"error: no guest agent for {architecture}; supported: {', '.join(ARCHITECTURES)}")
    OUTPUT.mkdir(exist_ok=True)
    binary = OUTPUT / f"atoll-agent-{architecture}"
    stamp = binary.with_suffix(".sha256")
    command = _command(architecture, version)
    digest = _digest(command)
    if binary.exists() and stamp.exists() and stamp.read_text() == digest:
        return binary
    print(f"compiling the guest agent for {architecture}", file=sys.stderr, flush=True)
    # Another build may run at the same time; whoever is last to rename wins with the same bytes.
    partial = binary.with_suffix(f".{os.getpid()}")
    try:
        if subprocess.run([*command, "-o", partial], cwd=SOURCES, check=False).returncode:
            sys.exit(f"error: the guest agent does not compile for {architecture}")
        partial.replace(binary)
    finally:
        partial.unlink(missing_ok=True)
    stamp.write_text(digest)
    return binary


def _command(architecture: str, version: str) -> list[str]:
    """The compiler's command line but for the output; file names are relative to the sources."""
    return [
        *(sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl"),
        *(*FLAGS, *WARNINGS, f'-DATOLL_VERSION="{version}"'),
        *sorted(path.name for path in SOURCES.glob("*.c")),
    ]


def _digest(command: list[str]) -> str:
    """What the binary depends on: compiler, flags, and the names and contents of all sources."""
    digest = hashlib.sha256(importlib.metadata.version("ziglang").encode())
    digest.update("\0".join(command[1:]).encode())  # not the interpreter, which differs with each build
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Compile the guest agent into src/atoll/_bin.")
    parser.add_argument("--arch", choices=[*ARCHITECTURES, "all"], default=platform.machine())
    arch = parser.parse_args().arch
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for architecture in ARCHITECTURES if arch == "all" else (arch,):
        print(build_agent(architecture, version))


if __name__ == "__main__":
    _main()
