"""What can be said of KVM on this host, and what the device alone tells."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import msgspec

__all__ = ["Finding", "Verdict", "examine_device"]

_DEVICE = Path("/dev/kvm")


class Finding(StrEnum):
    """What the probe found."""

    WORKS = "works"
    MISSING = "missing"
    NO_PERMISSION = "no permission"
    HANGS = "hangs"
    CRASHES = "crashes"
    FOREIGN = "foreign architecture"


class Verdict(msgspec.Struct, frozen=True):
    """The finding, in words, and what would mend it. ``elapsed`` is the length of the boot test, seconds."""

    finding: Finding
    reason: str
    hint: str = ""
    elapsed: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether guests may be given KVM."""
        return self.finding is Finding.WORKS


def examine_device(device: Path = _DEVICE) -> Verdict | None:
    """Look at the device without starting a guest; None if nothing speaks against a boot test."""
    if not device.exists():
        hint = "enable virtualisation in the firmware and load kvm_intel or kvm_amd"
        return Verdict(Finding.MISSING, f"{device} does not exist", hint)
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        hint = f"sudo usermod -aG kvm {os.environ.get('USER', '$USER')}, then log in again"
        return Verdict(Finding.NO_PERMISSION, f"no permission to open {device}", hint)
    except OSError as error:
        return Verdict(Finding.MISSING, f"{device} cannot be opened: {error.strerror}")
    return None
