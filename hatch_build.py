"""Compile what is written in C: hook of the wheel build, and ``python hatch_build.py`` without one.

The compiler is the one inside the ``ziglang`` package, so no toolchain of the host is needed and both
architectures can be built anywhere. A binary whose sources, flags and compiler have not changed is kept.
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
from typing import Any, Final, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = ["AGENT", "ARCHITECTURES", "BINARIES", "CHECKSUM", "Binary", "CustomBuildHook", "build"]

ARCHITECTURES: Final = ("x86_64", "aarch64")

ROOT: Final = Path(__file__).resolve().parent
OUTPUT: Final = ROOT / "src" / "atoll" / "_bin"

#: Kept apart for the editor and the tests: guest-agent/Makefile uses the same.
WARNINGS: Final = tuple((ROOT / "guest-agent" / "warnings.txt").read_text().split())

#: Nothing of the machine that built it: the same sources give the same bytes.
_REPRODUCIBLE: Final = ("-Wl,--build-id=none", "-fno-ident", "-s")


class Binary(NamedTuple):
    """Something to compile.

    Attributes:
        name: of the file, with ``{}`` for the architecture.
        title: for messages.
        sources: the directory of its sources.
        flags: for the compiler.
    """

    name: str
    title: str
    sources: Path
    flags: tuple[str, ...]


AGENT: Final = Binary(
    "atoll-agent-{}",
    "the guest agent",
    ROOT / "guest-agent" / "src",
    (
        *("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-static"),
        *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"),
        *_REPRODUCIBLE,
    ),
)
CHECKSUM: Final = Binary(
    "atoll-checksum-{}.so",
    "the network's checksum",
    ROOT / "native",
    ("-std=c11", "-O2", "-shared", "-fPIC", "-nostdlib", *_REPRODUCIBLE),
)
BINARIES: Final = (AGENT, CHECKSUM)


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts the binaries into the wheel: of the host's architecture for an editable install, else of all."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is packed."""
        wanted = (platform.machine(),) if version == "editable" else ARCHITECTURES
        for architecture in wanted:
            for binary in BINARIES:
                path = build(binary, architecture, self.metadata.version)
                build_data["force_include"][str(path)] = f"atoll/_bin/{path.name}"


def build(binary: Binary, architecture: str, version: str) -> Path:
    """Compile ``binary`` for ``architecture`` unless it is up to date; where it is.

    Raises:
        SystemExit: the architecture is not supported, or the compiler found an error.
    """
    if architecture not in ARCHITECTURES:
        sys.exit(f"error: nothing for {architecture}; supported: {', '.join(ARCHITECTURES)}")
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / binary.name.format(architecture)
    stamp = path.with_suffix(".sha256")
    command = _command(binary, architecture, version)
    digest = _digest(binary, command)
    if path.exists() and stamp.exists() and stamp.read_text() == digest:
        return path
    print(f"compiling {binary.title} for {architecture}", file=sys.stderr, flush=True)
    # Another build may run at the same time; whoever is last to rename wins with the same bytes.
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        if subprocess.run([*command, "-o", partial], cwd=binary.sources, check=False).returncode:
            sys.exit(f"error: {binary.title} does not compile for {architecture}")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    stamp.write_text(digest)
    return path


def _command(binary: Binary, architecture: str, version: str) -> list[str]:
    """The compiler's command line but for the output; file names are relative to the sources."""
    return [
        *(sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl"),
        *(*binary.flags, *WARNINGS, f'-DATOLL_VERSION="{version}"'),
        *sorted(path.name for path in binary.sources.glob("*.c")),
    ]


def _digest(binary: Binary, command: list[str]) -> str:
    """What the binary depends on: compiler, flags, and the names and contents of all sources."""
    digest = hashlib.sha256(importlib.metadata.version("ziglang").encode())
    digest.update("\0".join(command[1:]).encode())  # not the interpreter, which differs with each build
    for path in sorted(binary.sources.glob("*.[ch]")):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Compile what is written in C into src/atoll/_bin.")
    parser.add_argument("--arch", choices=[*ARCHITECTURES, "all"], default=platform.machine())
    arch = parser.parse_args().arch
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for architecture in ARCHITECTURES if arch == "all" else (arch,):
        for binary in BINARIES:
            print(build(binary, architecture, version))


if __name__ == "__main__":
    _main()
