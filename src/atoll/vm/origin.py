"""What a machine goes on from instead of booting, as its plan has it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from atoll import store
from atoll.hypervisor.port import Frozen

__all__ = ["Origin"]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A template, as it was when the machine was planned.

    Attributes:
        template: its name.
        manifest: without this file it is none.
        ram: its RAM.
        state: of its devices.
        stamps: of RAM and state; a file that has another was changed.
    """

    template: str
    manifest: Path
    ram: Path
    state: Path
    stamps: tuple[store.Stamp | None, store.Stamp | None]

    @property
    def frozen(self) -> Frozen | None:
        """Where it is; None if it is not what it was."""
        now = (store.stamp(self.ram), store.stamp(self.state))
        return Frozen(self.ram, self.state) if now == self.stamps and self.manifest.exists() else None

    def discard(self) -> None:
        """See to it that nobody starts from it again: it is made anew."""
        with contextlib.suppress(OSError):
            self.manifest.unlink()
