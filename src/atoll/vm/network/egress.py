"""What VMs may reach, as users say it: checked before a VM is made, and never left out."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from atoll.config import NetworkKind
from atoll.errors import UsageError
from atoll.vm.network.attachment import Attachment

__all__ = ["held_to", "parse_egress", "require_own", "shown_egress"]


def parse_egress(said: str | Iterable[str] | None) -> tuple[str, ...]:
    """The lines of a policy; of one text they are set apart by semicolons or line breaks.

    Raises:
        UsageError: ``usage.rule``: one of them is none.
    """
    lines = said.replace(";", "\n").splitlines() if isinstance(said, str) else list(said or ())
    kept = tuple(" ".join(line.split()) for line in lines if line.strip())
    if kept:
        from atoll.network.policy.parsing import parse_policy  # noqa: PLC0415 - most have none

        parse_policy(kept)
    return kept


def shown_egress(egress: Iterable[str]) -> str:
    """The lines as one text."""
    return "; ".join(egress)


def require_own(egress: tuple[str, ...], network: NetworkKind) -> None:
    """See that a VM's network can hold it to ``egress``. Raises ``UsageError``: ``usage.egress``."""
    if egress and network is not NetworkKind.OWN:
        what = "no network" if network is NetworkKind.NONE else "QEMU's user network"
        hint = "give it Atoll's own network: --network=own, in Python network='own'"
        raise UsageError(f"egress cannot be enforced with {what}", code="egress", hint=hint)


def held_to(attachment: Attachment | None, egress: tuple[str, ...]) -> Attachment | None:
    """A VM's attachment with that policy. Raises as ``require_own`` where it has none."""
    if attachment is None:
        require_own(egress, NetworkKind.NONE)
        return None
    return replace(attachment, egress=egress)
