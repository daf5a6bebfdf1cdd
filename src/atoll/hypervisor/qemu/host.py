"""What this host's QEMU is and can do, found out once and remembered while the executable stays the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import msgspec

from atoll import process, store
from atoll.errors import PreflightError, ProcessError, StoreError
from atoll.hypervisor.model import Architecture
from atoll.hypervisor.qemu.argv import SANDBOX

__all__ = ["QemuHost", "cpu_identity", "find_program", "host_memory", "inspect_host", "install_hint"]

_PACKAGES = {Architecture.X86_64: "qemu-system-x86", Architecture.AARCH64: "qemu-system-arm"}

#: Oldest QEMU whose options are used here.
_OLDEST = (7, 2)


class QemuHost(msgspec.Struct, frozen=True):
    """One QEMU executable.

    Attributes:
        program: its path.
        identity: changes when the executable or the host's kernel does.
        version: such as ``7.2.22``.
        sandbox: whether it can confine itself by seccomp here.
    """

    SCHEMA: ClassVar[int] = 1

    program: str
    identity: str
    version: str
    sandbox: bool
    schema: int = 1


def cpu_identity() -> str:
    """What tells this host's CPU from another, as far as a guest may see it; empty where it is not told."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            first = file.read(8192).split(b"\n\n")[0]
    except OSError:
        return ""
    wanted = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags", b"CPU implementer", b"Features")
    lines = [line for line in first.splitlines() if line.startswith(wanted)]
    return b"\n".join(lines).decode(errors="replace")


def host_memory() -> int:
    """Bytes of memory that this host has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def install_hint(architecture: Architecture) -> str:
    """How to install QEMU for guests of ``architecture``."""
    return f"apt install {_PACKAGES[architecture]}"


def find_program(architecture: Architecture) -> Path:
    """QEMU's executable. Raises ``PreflightError`` if it is not installed."""
    return Path(process.require(f"qemu-system-{architecture}", hint=install_hint(architecture)))


def inspect_host(architecture: Architecture, cache: Path) -> QemuHost:
    """What is known of this host's QEMU; asked anew when the executable has changed.

    Args:
        architecture: of the guests.
        cache: directory for what was found.

    Raises:
        PreflightError: it is not installed, too old, or does not run.
    """
    program = find_program(architecture)
    status = program.stat()
    identity = f"{program}:{status.st_size}:{status.st_mtime_ns}:{os.uname().release}"
    record = cache / f"qemu-{architecture}.json"
    try:
        known = store.read_record(record, QemuHost)
    except StoreError:
        known = None
    if known is not None and known.identity == identity:
        return known
    host = QemuHost(
        program=str(program),
        identity=identity,
        version=_version(program, architecture),
        sandbox=_can_sandbox(program),
    )
    store.write_record(record, host)
    return host


def _version(program: Path, architecture: Architecture) -> str:
    try:
        answer = process.run([str(program), "--version"], timeout=10).stdout.decode(errors="replace")
    except ProcessError as error:
        message = f"{program} does not run: {error.message}"
        raise PreflightError(message, hint=install_hint(architecture), detail=error.detail) from error
    import re  # noqa: PLC0415 - once for each QEMU

    found = re.search(r"version (\d+)\.(\d+)(\.\d+)*", answer)
    if found is None:
        raise PreflightError(f"{program} does not tell its version", hint=install_hint(architecture))
    version = found[0].removeprefix("version ")
    if (int(found[1]), int(found[2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise PreflightError(f"QEMU {version} is too old; {oldest} is needed", hint="install a newer QEMU")
    return version


def _can_sandbox(program: Path) -> bool:
    """Whether QEMU starts under its seccomp filter: it may be built without, or the kernel may refuse."""
    argv = [str(program), "-sandbox", SANDBOX, "-machine", "none", "-nodefaults", "-display", "none"]
    try:
        process.run([*argv, "-monitor", "stdio"], stdin=b"quit\n", timeout=10)
    except ProcessError:
        return False
    return True
