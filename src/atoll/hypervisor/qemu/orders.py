"""Commands for a monitor that nobody has spoken to yet (QEMU's docs/interop/qmp-spec.txt).

Apart from the monitor itself, so that a clone can be told what to do before an event loop is loaded.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["orders"]


def orders(*commands: tuple[str, dict[str, Any]]) -> bytes:
    """``commands``, to be written at once and without waiting, behind the one that opens a session."""
    every = (("qmp_capabilities", {}), *commands)
    return b"".join(
        msgspec.json.encode({"execute": name, "arguments": arguments}) + b"\n" for name, arguments in every
    )
